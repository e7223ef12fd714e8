"""CJ-GRPO: the rollouts, the ratio along their canvases, and a reward that rises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases.objectives import CANVAS
from tiny import RUN

from pdecode import decode, methods, prompts, rng
from pdecode.models import transformer
from pdecode.train import passes
from pdecode.train.objectives import grpo
from pdecode.train.objectives.masked_diffusion import is_answer

END = 2
SMALL = dataclasses.replace(
    CANVAS, vocab_size=5, mask_id=4, eos_ids=(3,), width=24, mlp_width=48, sliding=()
)
HOW = passes.of_decoding(SMALL)
PARAMS = transformer.init(SMALL, jax.random.key(0))
OTHER = transformer.init(SMALL, jax.random.key(1))
# The other one of 0 and 1, and EOS.
ROWS = np.array(
    [[a, b, END, 1 - b, 3, 3, 3] for a in (0, 1) for b in (0, 1)] * 2, np.int32
)
GROUP = 4


def config_of(**options):
    return dataclasses.replace(
        RUN, model=SMALL, objective="grpo", unit="token", row_len=7,
        frozen={"reference": "x"},
        options={"group": GROUP, "prompt_end": END, **options},
    )  # fmt: skip


def drawn(seed=0, rows=ROWS):
    return grpo.noise(config_of())({"tokens": jnp.asarray(rows)}, jax.random.key(seed))


@jax.jit
def made_of(params, batch):
    rows, keys = grpo.groups(batch, GROUP)
    answer = is_answer(rows, END)
    return rows, answer, grpo.rollout(HOW, params, rows, answer, keys, 1.0)


def test_the_ratio_is_one_at_the_first_update():
    """The probability of what a step filled, of the canvas that it saw."""
    _, _, found = made_of(PARAMS, drawn())
    again = jax.jit(lambda p: grpo.path_log_probs(HOW, p, found, 1.0))(PARAMS)
    filled = np.asarray(found.filled)
    np.testing.assert_allclose(again[filled], found.log_probs[filled], atol=1e-5)
    # The control: other canvases, here all those of the first step.
    first = jnp.broadcast_to(found.canvases[:1], found.canvases.shape)
    wrong = grpo.path_log_probs(HOW, PARAMS, found._replace(canvases=first), 1.0)
    assert np.abs(wrong - found.log_probs)[filled].max() > 0.01


def test_steps_fill_one_and_then_the_rest_of_four_places():
    rows, answer, found = made_of(PARAMS, drawn())
    filled = np.asarray(found.filled)
    assert (filled.sum(0) == np.asarray(answer)).all()
    assert filled.sum(2)[:2].T.tolist() == [[1, 3]] * len(rows)
    np.testing.assert_array_equal(found.tokens[:, :3], rows[:, :3])
    # Answers of a group differ, and do not depend on the batch they come in.
    assert len(np.unique(found.tokens[:GROUP], axis=0)) > 1
    few = {name: leaf[4:6] for name, leaf in drawn().items()}
    np.testing.assert_array_equal(made_of(PARAMS, few)[2].tokens, found.tokens[16:24])


def test_the_rollout_is_the_decode():
    rows = jnp.asarray(ROWS)
    keys = rng.row_keys(jax.random.key(0), jnp.arange(len(ROWS)))
    found = jax.jit(
        lambda p: grpo.rollout(HOW, p, rows, is_answer(rows, END), keys, 0.0)
    )(PARAMS)
    prompt = prompts.from_rows(ROWS[:, :3].tolist(), max_new_tokens=4)
    out, _ = decode.run(
        methods.ascending_steps, transformer.make_model(SMALL), PARAMS, prompt,
        jax.random.key(0), max_new_tokens=4,
    )  # fmt: skip
    done = np.asarray(out.committed)[:, :7]
    assert done[:, 3].all() and done.sum() > len(ROWS)
    np.testing.assert_array_equal(out.tokens[:, :7][done], found.tokens[done])


def slow_loss(found, reward, log_probs, reference, beta):
    """An answer, a step and a token at a time."""
    total = 0.0
    reward = reward.reshape(-1, GROUP)
    advantage = (reward - reward.mean(1, keepdims=True)).ravel()
    for answer in range(len(advantage)):
        for step, filled in enumerate(np.asarray(found.filled)[:, answer]):
            values = []
            for place in np.flatnonzero(filled):
                at = step, answer, place
                ratio = np.exp(log_probs[at] - found.log_probs[at])
                r = np.exp(reference[at] - log_probs[at])
                kl = r - 1 - np.log(r)
                assert kl >= -1e-6
                values.append(beta * kl - ratio * advantage[answer])
            total += np.mean(values) if values else 0.0
    return total / len(advantage)


def test_the_loss_is_the_papers_by_hand():
    batch = drawn(3)
    rows, answer, found = made_of(PARAMS, batch)
    reward = np.array(
        [float((made[3:5] == row[3:5]).all()) for made, row in zip(found.tokens, rows)]
    )
    np.testing.assert_array_equal(
        grpo.rewards(found.tokens, rows, answer, (3,)), reward
    )
    assert 0 < reward.sum() < len(reward)
    both = [
        np.asarray(jax.jit(lambda p: grpo.path_log_probs(HOW, p, found, 1.0))(params))
        for params in (PARAMS, OTHER)
    ]
    value, aux = jax.jit(grpo.loss(config_of(beta=0.5)))(
        PARAMS, {"reference": OTHER}, batch, None, 0
    )
    wanted = slow_loss(found, reward, *both, 0.5)
    np.testing.assert_allclose(value, wanted, rtol=1e-4)
    assert float(aux["weight"]) == len(ROWS)
    # The control: without the KL it is another number.
    assert abs(slow_loss(found, reward, *both, 0.0) - wanted) > 1e-2


def test_gradients_are_a_policys_and_reach_no_reference():
    batch = drawn(3)
    loss = grpo.loss(config_of(beta=0.0))

    def value(params, reference):
        return loss(params, {"reference": reference}, batch, None, 0)[0]

    mine, its = jax.jit(jax.grad(value, argnums=(0, 1)))(PARAMS, OTHER)
    assert all(np.abs(leaf).max() > 1e-7 for leaf in jax.tree.leaves(mine))
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(its))
    # That of - advantage * log p.
    rows, answer, found = made_of(PARAMS, batch)
    reward = grpo.rewards(found.tokens, rows, answer, (3,)).reshape(-1, GROUP)
    advantage = (reward - reward.mean(1, keepdims=True)).reshape(1, -1, 1)

    def plain(params):
        log_probs = grpo.path_log_probs(HOW, params, found, 1.0)
        each = jnp.where(found.filled, -advantage * log_probs, 0.0)
        count = jnp.maximum(found.filled.sum(-1), 1)
        return (each.sum(-1) / count).sum(0).mean()

    wanted = jax.jit(jax.grad(plain))(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), mine, wanted)


def test_the_reward_rises():
    """And so does the share of right answers of the decode."""
    config = config_of(beta=0.0, group=16)
    loss, noise = grpo.loss(config), grpo.noise(config)
    optimizer = optax.adam(5e-3)

    @jax.jit
    def update(params, state, key):
        batch = noise({"tokens": jnp.asarray(ROWS)}, key)
        slope = jax.grad(lambda p: loss(p, {"reference": p}, batch, None, 0)[0])(params)
        change, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, change), state

    def right(params):
        return float(grpo._num_right(SMALL, END, params, ROWS, jnp.ones(8, bool))) / 8

    params, state = PARAMS, optimizer.init(PARAMS)
    before = right(params)
    for number in range(150):
        params, state = update(params, state, jax.random.key(number))
    assert right(params) > before + 0.3
