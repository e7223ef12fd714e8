"""Coarse to fine by slices of a flow: the law of the stages, a network, its loss."""

import argparse
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import RUN, stored_model

from pdecode import assembly, recipes, rng
from pdecode.cli import train as train_command
from pdecode.evals import staged_digits
from pdecode.families import staged as family
from pdecode.models import digits, embedded, frames, staged
from pdecode.models.config import Config
from pdecode.models.staged import Grid, Staged
from pdecode.rules import pyramids
from pdecode.train import export, settings
from pdecode.train.objectives import staged_flow as objective

SLICES = ((0.0, 0.7), (0.4, 0.85), (0.6, 1.0))


def basis(sides):
    """Noises of each stage, a unit of one of them a row: [N, side, side] each."""
    sizes = [side * side for side in sides]
    whole = np.split(np.eye(sum(sizes)), np.cumsum(sizes)[:-1], axis=1)
    return [jnp.asarray(w).reshape(-1, s, s) for w, s in zip(whole, sides)]


def test_a_grown_stage_has_the_noise_of_the_next():
    """Of an empty image: both ends of a slice are white, and of its strength."""
    noises = basis((1, 2, 4))
    found = pyramids.ends(jnp.zeros((21, 4, 4)), SLICES, noises)
    for (begin, end), pair in zip(SLICES, found):
        for time, x in zip((begin, end), pair):
            rows = np.asarray(x).reshape(21, -1)
            want = (1 - time) ** 2 * np.eye(rows.shape[1])
            np.testing.assert_allclose(rows.T @ rows, want, atol=1e-6)
    # What is left at the end is the image, whatever the noise.
    image = jax.random.normal(jax.random.key(0), (21, 4, 4))
    for (_, end), (_, last), (_, noisy) in zip(
        SLICES, pyramids.ends(image, SLICES, noises), found
    ):
        mean = image
        while mean.shape != last.shape:
            mean = pyramids.shrunk(mean)
        np.testing.assert_allclose(last - noisy, end * mean, atol=1e-5)


def test_a_slice_begins_where_it_can_be_reached():
    for slices, message in (
        ((), "must begin at 0 and end at 1"),
        (((0.0, 0.9),), "must begin at 0 and end at 1"),
        (((0.1, 1.0),), "must begin at 0 and end at 1"),
        (((0.0, 0.5), (0.6, 0.6), (0.2, 1.0)), "must rise within"),
        (((0.0, 0.5), (1 / 3, 1.0)), "must begin below 0.3333"),
    ):
        with pytest.raises(ValueError, match=message):
            pyramids.check(slices)


# A Gaussian image of 2 x 2 cells, whose velocity is known.
MEAN = np.array([0.5, -1.0, 0.3, 2.0])
_ROOT = np.random.default_rng(1).normal(size=(4, 4)) * 0.7
COV = _ROOT @ _ROOT.T + 0.1 * np.eye(4)


def gaussian(slices):
    """A net whose velocity is the mean one, given how the stage before ended."""
    flat, keep = np.full((4, 4), 0.25), np.eye(4)
    whole = np.zeros((9, 9))  # of an image less its mean, a noise, and four
    whole[:4, :4], whole[4, 4], whole[5:, 5:] = COV, 1, np.eye(4)
    image = np.eye(9)[:4]
    if len(slices) == 1:
        stages = [
            (np.eye(9)[5:], image, np.zeros((0, 9)), np.zeros(4), MEAN, np.zeros(0))
        ]
    else:
        (_, end), (begin, _) = slices
        coarse = end * 0.25 * image.sum(0) + (1 - end) * np.eye(9)[4]
        centre = end * MEAN.mean()
        left = max((1 - begin) ** 2 - (2 * begin / end * (1 - end)) ** 2, 0) ** 0.5
        lifted = (1 - begin) * (keep - flat) @ np.eye(9)[5:]
        lifted = lifted + left * flat @ np.eye(9)[5:] + begin / end * coarse[None]
        stages = [
            (np.eye(9)[4:5], coarse[None], np.zeros((0, 9)), np.zeros(1),
             np.array([centre]), np.zeros(0)),
            (lifted, image, coarse[None], np.full(4, begin / end * centre), MEAN,
             np.array([centre])),
        ]  # fmt: skip

    def conditions(params, classes, grown):
        if not grown:
            return jnp.zeros((classes.shape[0], len(stages[0][0]), 1))
        return grown[0].reshape(-1, 4, 1)

    def velocity(params, told, x, time):
        first, last, given, at_first, at_last, at_given = stages[
            int(len(stages) > 1 and x.shape[1] == 4)
        ]
        now = time[0, 0]
        here = (1 - now) * first + now * last
        seen = jnp.concatenate([here, jnp.asarray(given)])
        both = seen @ whole @ seen.T + 1e-7 * jnp.eye(len(seen))
        gain = (last - first) @ whole @ seen.T @ jnp.linalg.inv(both)
        known = x[..., 0] - ((1 - now) * at_first + now * at_last)[None]
        if len(given):
            known = jnp.concatenate([known, told[:, :1, 0] - at_given[None]], 1)
        return ((at_last - at_first)[None] + known @ gain.T)[..., None]

    return Staged(conditions, velocity, Grid(2, 1, len(slices)), slices)


def moments(net, rows=20_000, num_steps=24):
    keys = rng.row_keys(jax.random.key(0), jnp.arange(rows))
    run = jax.jit(functools.partial(family.drawn, net, num_steps=num_steps))
    made = run({}, jnp.zeros(rows, jnp.int32), keys)
    values = np.asarray(made.values, np.float64).reshape(rows, 4)
    return values.mean(0), np.cov(values.T)


def is_right(found):
    mean, cov = found
    return np.abs(mean - MEAN).max() < 0.05 and np.abs(cov - COV).max() < 0.08


@pytest.mark.parametrize("slices", [((0.0, 1.0),), ((0.0, 0.5), (0.2, 1.0))])
def test_stages_end_with_the_law_of_the_data(slices):
    """Of a Gaussian, whose mean velocity is linear; one stage is a plain flow."""
    assert is_right(moments(gaussian(slices)))


def test_a_stage_that_is_grown_without_its_noise_has_another_law(monkeypatch):
    """Controls: no noise in the squares' means, and too much of it all."""
    net = gaussian(((0.0, 0.5), (0.2, 1.0)))
    right = pyramids.lift

    def flat(x, end, begin, noise):
        return right(x, end, begin, noise - pyramids.grown(pyramids.shrunk(noise)))

    for wrong in (flat, lambda x, end, begin, noise: right(x, end, begin, 1.5 * noise)):
        monkeypatch.setattr(pyramids, "lift", wrong)
        assert not is_right(moments(net))


# The network and its loss.
NET = Config(
    vocab_size=7, width=16, num_layers=2, num_heads=2, mlp_width=24, rope=None,
    max_positions=30, attention="bidirectional", predicts="uniform", tied=True,
)  # fmt: skip
OWN = objective.Options(side=8, levels=5, patch=2, slices=SLICES, draws=3)
PARAMS = jax.tree.map(
    lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
    staged.init(NET, OWN.grid, jax.random.key(1)),
)


def config_of(**more):
    own = {**dataclasses.asdict(OWN), **more}
    return dataclasses.replace(
        RUN, objective="staged_flow",
        model=dataclasses.replace(NET, max_positions=65), row_len=65, options=own,
    )  # fmt: skip


def test_patches_are_squares_and_go_back():
    image = jnp.arange(64.0).reshape(1, 8, 8)
    patches = frames.patches(image, 2)
    assert patches.shape == (1, 16, 4) and patches[0, 1].tolist() == [2, 3, 10, 11]
    np.testing.assert_array_equal(frames.unpatched(patches, 2), image)


def test_the_loss_is_its_definition_stage_by_stage_as_it_is_drawn():
    """A decoder's passes, of the stages so far, say what one pass over all does."""
    net = staged.make_net(NET, OWN.grid, SLICES)
    rows = jnp.asarray(np.random.default_rng(0).integers(0, 5, (2, 65)))
    batch = {"tokens": rows, **objective.drawn_noise(OWN, jax.random.key(2), 2)}
    loss = objective.loss(config_of())
    run = jax.jit(jax.value_and_grad(lambda p: loss(p, {}, batch, None, 0)[0]))
    value, grads = run(PARAMS)
    image = (rows[:, 1:] / 2 - 1).reshape(2, 8, 8)
    noises = [batch[f"noise_{stage}"] for stage in range(3)]
    conditions, velocity = jax.jit(net.conditions), jax.jit(net.velocity)
    grown, found, lane = [], [], 0
    for first, last in pyramids.ends(image, SLICES, noises):
        told = conditions(PARAMS, rows[:, 0], grown)
        begin, end = frames.patches(first, 2), frames.patches(last, 2)
        here = slice(lane, lane := lane + begin.shape[1])
        for draw in range(3):
            time = batch["times"][:, draw, here]
            at = (1 - time[..., None]) * begin + time[..., None] * end
            way = velocity(PARAMS, told, at, time)
            found.append(np.square(np.asarray(way - (end - begin))).mean(-1))
        grown.append(pyramids.grown(last))
    found = np.concatenate(found, 1)
    assert found.shape == (2, 3 * (1 + 4 + 16))
    np.testing.assert_allclose(value, found.mean(), rtol=1e-5)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads))


def test_sizes_that_do_not_come_out_even_are_refused():
    for more, message in (
        ({"side": 6}, "side=6 halved 2 times must leave whole patches of patch=2"),
        ({"patch": 4}, "patches of patch=4"),
        ({"side": 16}, "hold no class and image of side=16"),
        ({"levels": 1}, "levels=1 must be at least 2"),
        ({"slices": ((0.0, 0.5), (0.4, 1.0))}, "must begin below"),
    ):
        with pytest.raises(ValueError, match=message):
            objective.start(config_of(**more), jax.random.key(0), None)
    with pytest.raises(ValueError, match=r"21 patches exceed model\.max_positions=20"):
        staged.check(dataclasses.replace(NET, max_positions=20), OWN.grid)
    net = staged.make_net(NET, OWN.grid, SLICES)
    keys = rng.row_keys(jax.random.key(0), jnp.arange(1))
    with pytest.raises(ValueError, match="num_steps=0"):
        family.drawn(net, PARAMS, jnp.zeros(1, jnp.int32), keys, num_steps=0)


def test_a_folder_of_it_draws_digits_and_is_no_model_of_tokens(tmp_path):
    config = dataclasses.replace(
        config_of(levels=17), data="digits", name="staged",
        model=dataclasses.replace(
            NET, vocab_size=digits.VOCAB_SIZE, max_positions=65
        ),
    )  # fmt: skip
    params = jax.device_get(objective.start(config, jax.random.key(0), None))
    record = export.describe(config, params)
    export.write(tmp_path, "weights", params, record, dtype=np.float32)
    net, _, _ = embedded.load(str(tmp_path))
    assert net.slices == SLICES and net.grid == Grid(8, 2, 3)
    pictures, classes, made = staged_digits.draw(str(tmp_path), 20, 2)
    assert pictures.shape == (20, 8, 8) and pictures.max() < 17
    assert classes.tolist() == [*range(10)] * 2
    assert (made.num_calls, made.num_head_calls) == (3, 12)
    # A row is its own: in other company it is the same.
    again, _, _ = staged_digits.draw(str(tmp_path), 3, 2)
    np.testing.assert_array_equal(again, pictures[:3])
    with pytest.raises(ValueError, match="draws values, no tokens"):
        recipe = recipes.find("autoregressive")
        assembly.assemble(recipe, {"max_new_tokens": 4}, str(tmp_path), None)
    args = argparse.Namespace(out=str(tmp_path))
    told = train_command._next_command(args, record).split()
    assert told[:3] == ["python", "-m", staged_digits.__name__] and told[3] == args.out
    # Settings of a run leave its slices as they are, or change them.
    told = settings.override(config, ["draws=2", "slices=((0.0, 0.5), (0.1, 1.0))"])
    assert told.options.slices == ((0.0, 0.5), (0.1, 1.0)) and told.options.draws == 2
    assert settings.override(config, ["draws=2"]).options.slices == SLICES
    with pytest.raises(ValueError, match=r"options\.slices is of type tuple"):
        settings.override(config, ["slices=((0.0, 'x'),)"])
    with pytest.raises(ValueError, match="holds no run of objective='staged_flow'"):
        staged_digits.draw(stored_model(tmp_path / "other"), 3, 2)


def test_a_small_net_learns_what_belongs_together():
    """Images of two kinds a class, all of whose cells agree: coarse decides fine."""
    own = {"side": 4, "levels": 5, "patch": 2, "slices": ((0.0, 0.8), (0.5, 1.0))}
    config = dataclasses.replace(config_of(**own), row_len=17)
    model = dataclasses.replace(NET, width=32, num_heads=2, head_dim=16)
    config = dataclasses.replace(config, model=model)
    params = objective.start(config, jax.random.key(0), None)
    update, loss = optax.adam(3e-3), objective.loss(config)

    @jax.jit
    def train(params, key):
        def step(carry, key):
            params, state = carry
            key_kind, key_noise = jax.random.split(key)
            kind = jax.random.randint(key_kind, (64, 1), 0, 4)
            rows = jnp.repeat(kind, 17, 1).at[:, 0].set(kind[:, 0] // 2)
            noise = objective.drawn_noise(config.options, key_noise, 64)
            grads = jax.grad(
                lambda p: loss(p, {}, {"tokens": rows, **noise}, None, 0)[0]
            )
            change, state = update.update(grads(params), state, params)
            return (optax.apply_updates(params, change), state), None

        carry = params, update.init(params)
        return jax.lax.scan(step, carry, jax.random.split(key, 1200))[0][0]

    params = train(params, jax.random.key(1))
    net = staged.make_net(config.model, config.options.grid, config.options.slices)
    classes = jnp.arange(400) % 2
    keys = rng.row_keys(jax.random.key(0), jnp.arange(400))
    made = jax.jit(functools.partial(family.drawn, net, num_steps=8))(
        params, classes, keys
    )
    values = np.asarray(made.values).reshape(400, 16)
    kind = np.clip(np.rint((values.mean(1) + 1) * 2), 0, 3)
    assert values.std(1).mean() < 0.15  # of one image's cells
    assert (kind // 2 == np.asarray(classes)).mean() > 0.9
    # Both kinds of a class, about equally often.
    assert np.bincount(kind.astype(int), minlength=4).min() > 60
