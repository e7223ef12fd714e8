"""Clips of moved digits: their rule, and what is drawn frame by frame."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from test_images import blobs
from test_visual import seen_by

from pdecode import assembly, decode, methods, prompts, rng
from pdecode.data import packing, texts
from pdecode.evals import films, images
from pdecode.evals.bench import films as bench
from pdecode.families import frame_ahead, frame_blocks, frame_chunks, wavefront
from pdecode.models import denoiser, digits, frames, interfaces, toy, transformer
from pdecode.models.config import Config, Rope
from pdecode.rules import orders
from pdecode.train import TrainConfig, train
from pdecode.train.objectives import any_order, film_chunks
from pdecode.train.objectives import frame_diffusion as objective


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 17, (8, 8)).astype(np.uint8)


def test_a_clip_is_a_digit_that_its_actions_move():
    row = frames.record(picture(), 7, [1, 1, 2, 0, 3, 4, 4])
    assert len(row) == frames.RECORD == 520
    assert row[0] == digits.tokenizer.encode("7")[0]
    assert frames.tokenizer.encode("7 >>v.<^^") == row[: frames.HEAD].tolist()
    found = frames.parsed(row[None])
    assert found.classes.tolist() == [7]
    assert found.actions.tolist() == [[1, 1, 2, 0, 3, 4, 4]]
    (made,) = found.frames
    np.testing.assert_array_equal(made[0], picture())
    # Two to the right: the last two columns come first; then a row down.
    np.testing.assert_array_equal(made[2][:, :2], picture()[:, 6:])
    np.testing.assert_array_equal(made[3][1:], made[2][:-1])
    np.testing.assert_array_equal(made[4], made[3])
    # Right, right, down, left, up, up: one to the right, one up.
    np.testing.assert_array_equal(made[7], np.roll(picture(), (-1, 1), (0, 1)))
    drawn = frames.tokenizer.decode(row).split("\n")
    assert drawn[0] == " 7 > > v . < ^ ^" and len(drawn) == 65
    for wrong in ("7", "7 >>v.<^", "7 >>v.<^x", "x >>v.<^^"):
        with pytest.raises(ValueError, match="is no class"):
            frames.tokenizer.encode(wrong)


def test_numbers_and_squares_of_a_frame_go_back():
    image = picture()
    numbers = frames.values(image)
    assert numbers.min() >= -1 and numbers.max() <= 1
    np.testing.assert_array_equal(frames.levels(numbers + 0.05), image)
    np.testing.assert_array_equal(frames.levels(numbers * 9)[image == 16], 16)
    cut = frames.patches(np.stack([image, image.T]), 2)
    assert cut.shape == (2, 16, 4)
    np.testing.assert_array_equal(cut[0, 1].reshape(2, 2), image[:2, 2:4])
    np.testing.assert_array_equal(frames.unpatched(cut, 2)[0], image)


def test_the_clips_have_their_split_rule_and_hash(tmp_path):
    pytest.importorskip("sklearn")
    from pdecode.data import frames as data

    folder = str(tmp_path)
    sizes = {name: len(data.clips(name, folder).classes) for name in ("heldout",)}
    assert sizes == {"heldout": 354 * data.CLIPS}
    stream = packing.load_split("validation", folder, texts.KINDS["frames"].stream)
    assert packing.fingerprint(stream)[:12] == "bbb1e31dc9a5"
    found = frames.parsed(stream)
    for made, actions in zip(found.frames[:40], found.actions):
        np.testing.assert_array_equal(made, frames.clip(made[0], actions))
    # Four clips of a digit go different ways; actions repeat in 3/4 + 1/4 * 1/5.
    assert (found.frames[0, 0] == found.frames[3, 0]).all()
    assert (found.actions[0] != found.actions[1]).any()
    repeats = (found.actions[:, 1:] == found.actions[:, :-1]).mean()
    assert abs(repeats - 0.8) < 0.03
    counts = np.bincount(found.actions[:, 0], minlength=5) / len(found.actions)
    assert (abs(counts - 0.2) < 0.07).all()
    # The run scores pixels alone.
    facts = texts.Text(stream, "x", "token", texts.KINDS["frames"].given_ids, 520)
    assert facts.describe()["units"] == 136 * data.CLIPS * 512


# Diagonals across frames.

# A class and a frame of 2 x 2 pixels are the prompt; two frames follow.
FILMS = toy.joint(5, 2, 13, sharpness=2.0)
TOLD, NEW = 5, 8


def log_chance(seen, place, token):
    """Log-probability of `token` at `place` given {place: token}, by summing."""
    strings, chances = np.asarray(FILMS.strings), np.exp(np.asarray(FILMS.log_probs))
    fits = np.all([strings[:, p] == t for p, t in seen.items()], axis=0)
    return np.log(chances[fits & (strings[:, place] == token)].sum()) - np.log(
        chances[fits].sum()
    )


def law_of(tables, tokens):
    """Log-probabilities of a row's new tokens as the tables say; the prompt is seen."""
    found, prompt = np.zeros(NEW), dict(enumerate(tokens[:TOLD].tolist()))
    for turn, members in enumerate(tables.groups):
        seen = seen_by(tables, turn)
        for lane, place in enumerate(members):
            if place >= 0:
                fed = {TOLD + p: int(tokens[TOLD + s]) for p, s in seen[lane].items()}
                found[place] = log_chance(
                    prompt | fed, TOLD + place, tokens[TOLD + place]
                )
    return found


def tables_of(mode, stand_in):
    cut = 4 if mode == "image" else None
    rank = orders.wavefront(NEW, 2, 1, frame_length=cut)
    instead = orders.latest_above(rank, 2)
    if stand_in == "frame":
        instead = orders.before_in_frame(rank, 4)
    return rank, wavefront.tables(rank, instead)


def test_diagonals_go_on_into_the_next_frame_and_see_what_was_fed():
    """Over space and time: each token's law is that of what stood where, by sums."""
    model = toy.make_model(2, 13)
    prompt = prompts.from_rows(np.asarray(FILMS.strings)[::200, :TOLD].tolist(),
                               max_new_tokens=NEW)  # fmt: skip
    kinds = [("image", "last"), ("video", "last"), ("video", "frame")]
    rank = tables_of("video", "last")[0]
    # The next frame begins before this one has ended: time is a diagonal too.
    assert rank[4] == rank[3] and tables_of(*kinds[0])[0][4] > rank[4]
    for kind in kinds:
        made, _ = decode.run(
            methods.diagonal_decoding, model, FILMS, prompt, jax.random.key(1),
            knobs={"temperature": 1.0}, max_new_tokens=NEW, row_length=2, window=1,
            frame_length=4, mode=kind[0], stand_in=kind[1],
        )  # fmt: skip
        said = np.asarray(made.log_probs)[:, TOLD:]
        for other in kinds:
            tables = tables_of(*other)[1]
            want = [law_of(tables, row) for row in np.asarray(made.tokens)]
            gap = np.abs(said - np.array(want)).max()
            # The controls: no other kind's law is this one's.
            assert gap < 1e-4 if other == kind else gap > 1e-2


@pytest.mark.parametrize("stand_in", ["last", "frame"])
def test_a_window_of_a_row_is_raster_decoding_over_frames(stand_in):
    config = Config(
        vocab_size=5, width=16, num_layers=2, num_heads=2, mlp_width=24,
        max_positions=32,
    )  # fmt: skip
    model = transformer.make_model(config)
    params = jax.tree.map(
        lambda leaf: 2 * leaf, transformer.init(config, jax.random.key(0))
    )
    prompt = prompts.from_rows([[1, 2, 0, 3, 4], [2, 1, 1, 0, 0]], max_new_tokens=12)
    given = model, params, prompt, jax.random.key(1)
    common = dict(knobs={"temperature": 1.0}, max_new_tokens=12)
    grid = dict(row_length=2, frame_length=4, mode="video", stand_in=stand_in)
    plain, _ = decode.run(methods.autoregressive, *given, **common)
    made, stats = decode.run(
        methods.diagonal_decoding, *given, window=2, **grid, **common
    )
    np.testing.assert_array_equal(made.tokens, plain.tokens)
    assert (stats.num_calls == 12).all()
    # The control: where rows begin early it is another draw, of fewer calls.
    other, stats = decode.run(
        methods.diagonal_decoding, *given, window=1, **grid, **common
    )
    assert (other.tokens != plain.tokens).any() and (stats.num_calls == 7).all()


# Frames of numbers, denoised block by block.

CONFIG = Config(
    vocab_size=7, width=16, num_layers=2, num_heads=2, mlp_width=24,
    rope=Rope(theta=100.0), attention="block_causal", block_len=4, predicts="values",
)  # fmt: skip
NET = denoiser.make_net(CONFIG, 1)
PARAMS = denoiser.init(NET, jax.random.key(0))
# Turns begin at zero; these turn.
PARAMS = jax.tree.map(
    lambda leaf: leaf + 0.2 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
    PARAMS,
)
ROWS, COUNT = 3, 4
GIVEN = jax.random.randint(jax.random.key(1), (ROWS, COUNT, 2), 0, 7)
FIRST = jax.random.normal(jax.random.key(2), (ROWS, COUNT, 4, 1))
KEYS = rng.row_keys(jax.random.key(3), jnp.arange(ROWS))
PLANS = {
    "acdit": frame_blocks.acdit(NET, num_steps=3),
    "inferix": frame_blocks.inferix(NET, num_steps=2),
    "window": frame_blocks.inferix(NET, num_steps=2, window=2),
    "sinks": frame_blocks.inferix(NET, num_steps=2, window=1, sinks=1),
}


def film(plan, num_given=1, keys=KEYS, given=GIVEN):
    made = jax.jit(frame_blocks.draw, static_argnums=0)(
        plan, PARAMS, keys, FIRST[: len(keys), :num_given], given
    )
    return jax.tree.map(np.asarray, made)


def slow_film(plan, num_given=1):
    """The same steps without a cache: each call has all clean frames, anew."""
    found = np.array(FIRST)
    for index in range(num_given, COUNT):
        frame = np.asarray(frame_blocks.fresh(plan, KEYS, jnp.full(ROWS, index), 0))
        for step in range(plan.num_steps):
            here, there = 1 - step / plan.num_steps, 1 - (step + 1) / plan.num_steps
            velocity = slow_velocity(plan, found[:, :index], frame, here)
            if plan.is_renoised:
                at = jnp.full(ROWS, index), step + 1
                again = np.asarray(frame_blocks.fresh(plan, KEYS, *at))
                frame = (1 - there) * (frame - here * velocity) + there * again
            else:
                frame = frame - (here - there) * velocity
        found[:, index] = frame
    return found


def slow_velocity(plan, past, frame, time):
    """Of a noised frame behind clean ones, in one call of all of them."""
    count = past.shape[1]
    nth = np.arange(count + 1)
    ago = nth[:, None] - nth[None]
    near = np.ones_like(ago, bool)
    if plan.window is not None:
        # A clean frame counts in its own window, the noised one does not.
        near = ago < plan.window
        near[count] = ago[count] <= plan.window
    among = (ago >= 0) & (near | (nth < plan.sinks)[None]) | (ago == 0)
    values = np.concatenate([past, frame[:, None]], 1)
    return np.asarray(whole(values, np.float32(time), among))


@jax.jit
def whole(values, time, among, given=GIVEN):
    count = values.shape[1]
    is_last = jnp.broadcast_to(jnp.arange(count) == count - 1, (ROWS, count))
    call = denoiser.Call(
        values=values,
        time=jnp.where(is_last, time, 0.0),
        is_noised=is_last,
        given=given[:, :count],
        index=jnp.broadcast_to(jnp.arange(count), (ROWS, count)),
        among=jnp.broadcast_to(among, (ROWS, count, count)),
    )
    return denoiser.apply(NET, PARAMS, call)[0][:, -1]


@pytest.mark.parametrize(
    ("name", "num_given"),
    [("acdit", 0), ("acdit", 2), ("inferix", 1), ("window", 0), ("sinks", 1)],
)
def test_a_film_with_a_cache_is_the_film_without(name, num_given):
    plan = PLANS[name]
    made = film(plan, num_given)
    slow = slow_film(plan, num_given)
    np.testing.assert_allclose(made.film, slow, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(made.film[:, :num_given], FIRST[:, :num_given])
    drawn = COUNT - num_given
    if name == "acdit":
        # As many calls as steps: the frame before rides in the first of them.
        assert (made.num_calls == 3 * drawn).all()
        rides = drawn - (num_given == 0)
        assert (made.num_lanes == (3 * drawn + rides) * 4).all()
        assert (made.num_prefill_calls == max(num_given - 1, 0)).all()
    else:
        assert (made.num_calls == (2 + 1) * drawn).all()
        assert (made.num_lanes == made.num_calls * 4).all()
        assert (made.num_prefill_calls == num_given).all()


def test_keys_of_noised_frames_are_of_what_nobody_sees(monkeypatch):
    """Control: a cache that the last denoising call wrote makes another film."""
    plan, right = PLANS["inferix"], film(PLANS["inferix"])
    apply = denoiser.apply

    def noisy(net, params, call, cache):
        if call.places is None:
            return apply(net, params, call, cache)
        half = frame_blocks.fresh(plan, KEYS, call.index[:, 0], 1)[:, None]
        values = 0.5 * call.values + 0.5 * half
        noised = call._replace(
            values=values, time=call.time + 0.5, is_noised=~call.is_noised
        )
        return apply(net, params, noised, cache)

    monkeypatch.setattr(frame_blocks.denoiser, "apply", noisy)
    jax.clear_caches()
    assert np.abs(film(plan).film[:, 1:] - right.film[:, 1:]).max() > 0.05
    monkeypatch.undo()
    jax.clear_caches()
    # And a window that leaves frames out is another film too, a longer one is not.
    whole_window = frame_blocks.inferix(NET, num_steps=2, window=COUNT)
    np.testing.assert_array_equal(film(whole_window).film, right.film)
    assert np.abs(film(PLANS["sinks"]).film[:, 3] - right.film[:, 3]).max() > 1e-3


def test_a_film_is_its_own_in_any_company():
    plan = PLANS["acdit"]
    together = film(plan)
    for row in range(2):
        some = slice(row, row + 1)
        made = jax.jit(frame_blocks.draw, static_argnums=0)(
            plan, PARAMS, KEYS[some], FIRST[some, :1], GIVEN[some]
        )
        np.testing.assert_allclose(made.film[0], together.film[row], atol=1e-5)


def test_the_cache_keeps_the_first_frames_and_the_latest():
    plan = frame_blocks.inferix(NET, num_steps=1, window=2, sinks=1)
    given = jnp.zeros((1, 7, 2), jnp.int32)
    state, num_prefill = frame_blocks.begin(plan, PARAMS, FIRST[:1], given, slack=1)
    assert num_prefill == 4 and state.held.tolist() == [[0, 1, 2, 3]]
    index = jnp.array([4])
    state = frame_blocks.keep(plan, PARAMS, state, index, index > 0)
    assert state.held.tolist() == [[0, 4, 2, 3]]
    call = frame_blocks.present(plan, state, index + 1, FIRST[:1, 0], 0)
    assert call.seen.tolist() == [[True, True, False, True]]  # 0; 3 and 4
    # Frame 4 is thrown away and drawn again: it is not seen, and 2 is not lost.
    call = frame_blocks.present(plan, state, index, FIRST[:1, 0], 0)
    assert call.seen.tolist() == [[True, False, True, True]]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: frame_blocks.acdit(NET, num_steps=0), "num_steps=0 must be at least"),
        (lambda: frame_blocks.inferix(NET, window=0), "window=0 must be at least 1"),
        (lambda: frame_blocks.inferix(NET, sinks=1), "sinks=1 without a window"),
        (lambda: film(PLANS["acdit"], COUNT), "4 frames are there already of the 4"),
        (lambda: denoiser.make_net(CONFIG, 3), "is no square frame that squares of"),
        (
            lambda: denoiser.make_net(dataclasses.replace(CONFIG, window=2), 1),
            "a denoiser needs model.window=None, not 2",
        ),
    ],
)
def test_what_makes_no_film_is_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()


# What is trained is what is decoded.

RUN = TrainConfig(
    name="films", model=CONFIG, objective="frame_diffusion", data="rows",
    options={"head_len": COUNT, "num_levels": 7}, row_len=COUNT * 5, batch_size=ROWS,
    steps=1, warmup_steps=0, eval_every=1, checkpoint_every=1,
)  # fmt: skip
TOKENS = jax.random.randint(jax.random.key(7), (ROWS, COUNT * 5), 0, 7)


def test_the_loss_is_each_frames_own_behind_clean_ones():
    """Against one call a frame, as a decoder without a cache makes it."""
    batch = objective.noise(RUN)({"tokens": TOKENS}, jax.random.key(8))
    loss = jax.jit(lambda batch: objective.loss(RUN)(PARAMS, {}, batch, None, 0))
    value, aux = loss(batch)
    time, noise = np.asarray(batch["time"]), np.asarray(batch["noise"])
    clean = np.asarray(TOKENS[:, COUNT:], np.float64) / 3 - 1
    clean = clean.reshape(ROWS, COUNT, 4, 1)
    head = TOKENS[:, :COUNT]
    given = jnp.stack([jnp.repeat(head[:, :1], COUNT, 1), head], -1)
    errors = []
    for index in range(COUNT):
        past, t = clean[:, :index], time[:, index, None, None]
        frame = (1 - t) * clean[:, index] + t * noise[:, index]
        values = np.concatenate([past, frame[:, None]], 1).astype(np.float32)
        among = np.tril(np.ones((index + 1, index + 1), bool))
        velocity = whole(values, time[:, index, None], among, given)
        errors.append(np.square(velocity - (noise - clean)[:, index]))
    assert abs(float(value) - np.mean(errors)) < 1e-5
    assert float(aux["weight"]) == TOKENS[:, COUNT:].size
    # Controls: the other velocity, and times of other frames.
    assert abs(float(value) - np.mean(np.square(velocity + noise[:, -1]))) > 1e-3
    late = loss(batch | {"time": jnp.asarray(time[:, ::-1])})
    assert abs(float(value) - float(late[0])) > 1e-3


def test_a_noised_frame_sees_clean_ones_before_it_and_itself():
    """By gradients of each frame's error; and training moves every parameter."""
    clean, given = objective.read(RUN.options, NET, TOKENS)
    drawn = objective.noise(RUN)({"tokens": TOKENS}, jax.random.key(8))
    time, noise = drawn["time"], drawn["noise"]

    def velocity(clean, noised):
        # What is noised is given apart, so that its clean self may be told from it.
        shape = (ROWS, COUNT)
        index = jnp.broadcast_to(jnp.arange(COUNT), shape)
        call = denoiser.Call(
            jnp.concatenate([clean, noised], 1),
            jnp.concatenate([0 * time, time], 1),
            jnp.broadcast_to(jnp.arange(2 * COUNT) >= COUNT, (ROWS, 2 * COUNT)),
            jnp.concatenate([given, given], 1),
            jnp.concatenate([index, index], 1),
            any_order.twice(index),
        )
        return denoiser.apply(NET, PARAMS, call)[0][:, COUNT:].sum((0, 2, 3))

    by_clean, by_noised = jax.jit(jax.jacobian(velocity, (0, 1)))(clean, noise)
    sees = np.abs(by_clean).max((1, 3, 4)) > 0
    np.testing.assert_array_equal(sees, np.tril(np.ones((COUNT, COUNT)), -1) > 0)
    sees = np.abs(by_noised).max((1, 3, 4)) > 0
    np.testing.assert_array_equal(sees, np.eye(COUNT) > 0)

    batch, loss = drawn | {"tokens": TOKENS}, objective.loss(RUN)
    grads = jax.jit(jax.grad(lambda p: loss(p, {}, batch, None, 0)[0]))(PARAMS)
    still = [
        path for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not np.abs(leaf).max() > 0
    ]  # fmt: skip
    assert not still, still


# Frames ahead of a player.

WAYS = jnp.array([[1, 1, 1, 1, 1, 1], [1, 2, 2, 2, 3, 3], [4, 1, 1, 1, 1, 2]])
PLAYED = jnp.stack([jnp.repeat(GIVEN[:, :1, 0], 6, 1), WAYS], -1)
# Behind one frame given, of two ahead: 11 11 1, 22 2 33, 11 11 2.
ROUNDS, LOST = [3, 3, 3], [0, 1, 0]


def played(plan, num_ahead):
    made = jax.jit(frame_ahead.played, static_argnums=(0, 5))(
        plan, PARAMS, KEYS, FIRST[:, :1], PLAYED, num_ahead
    )
    return jax.tree.map(np.asarray, made)


@pytest.mark.parametrize("name", ["acdit", "window"])
def test_frames_ahead_are_the_frames_of_the_actions_that_came(name, monkeypatch):
    plan, total = PLANS[name], PLAYED.shape[1] - 1
    right = film(plan, 1, given=PLAYED)
    made = played(plan, 2)
    np.testing.assert_allclose(made.film, right.film, rtol=1e-4, atol=1e-4)
    assert made.num_rounds.tolist() == ROUNDS
    assert made.num_drawn.tolist() == [total + lost for lost in LOST]
    each = plan.num_steps + plan.is_apart
    np.testing.assert_array_equal(made.num_calls, made.num_drawn * each)
    # One ahead is none: every action waits.
    assert (played(plan, 1).num_rounds == total).all()
    # Control: frames that are shown whatever was done make another film.
    count = jnp.full(ROWS, 2)
    monkeypatch.setattr(
        frame_ahead,
        "num_shown",
        lambda index, *_: jnp.minimum(count, PLAYED.shape[1] - index),
    )
    jax.clear_caches()
    wrong = played(plan, 2).film
    np.testing.assert_allclose(wrong[0], right.film[0], rtol=1e-4, atol=1e-4)
    assert np.abs(wrong[1:] - right.film[1:]).max() > 0.05
    monkeypatch.undo()
    jax.clear_caches()
    with pytest.raises(ValueError, match="num_ahead=0 must be at least 1"):
        played(plan, 0)


def test_frames_ahead_are_the_same_with_wide_numbers():
    plan, calls = PLANS["acdit"], jax.jit(frame_ahead.played, static_argnums=(0, 5))
    narrow = played(plan, 2)
    with jax.enable_x64(True):
        wide = calls(plan, PARAMS, KEYS, FIRST[:, :1], PLAYED, 2)
    for mine, its in zip(wide, narrow, strict=True):
        assert mine.dtype == its.dtype
    np.testing.assert_allclose(wide.film, narrow.film, rtol=1e-4, atol=1e-4)
    for name in ("num_rounds", "num_calls", "num_drawn"):
        np.testing.assert_array_equal(getattr(wide, name), getattr(narrow, name))


# What drawn clips are worth.


def some_clips(count=40):
    """Clips of images whose classes a classifier can tell, with the rule's actions."""
    pixels, labels = blobs(count, 2)
    from pdecode.data import frames as data

    return frames.parsed(data.records(pixels, labels, 1))


def test_the_right_clips_are_worth_most_and_wrong_ones_are_told(tmp_path):
    by, asked = images.judge(blobs(400, 0), blobs(200, 1)), some_clips()
    best = films.worth(by, asked.frames, asked)
    assert min(best.accuracy) > 0.9 and max(best.error) == 0
    # A picture that another action would make too does not count; these are none.
    assert min(best.motion) == 1 and best.motion_interval[0][0] > 0.9
    # A digit that stands still: its class is right only where it would be there.
    still = np.repeat(asked.frames[:, :1], frames.NUM_FRAMES, 1)
    found = films.worth(by, still, asked)
    stays = (asked.actions == 0).mean(0)
    np.testing.assert_allclose(found.motion, stays)
    assert found.accuracy[-1] < best.accuracy[-1] and found.error[-1] > 1
    # Other digits that move as asked: the motion is right, and nothing else.
    other = np.roll(asked.frames[:, 0], 1, 0)
    other = np.stack([frames.clip(*each) for each in zip(other, asked.actions)])
    found = films.worth(by, other, asked)
    assert min(found.motion) == 1 and max(found.accuracy) < 0.1
    films.strip(tmp_path / "s.png", [asked.frames[0], still[0][:4]], scale=1)
    page = matplotlib.image.imread(tmp_path / "s.png")[..., 0]
    assert page.shape == (22, 82)
    np.testing.assert_allclose(
        page[2:10, 12:20], 1 - asked.frames[0, 1] / 16, atol=0.01
    )


def test_a_film_goes_to_pictures_and_back():
    asked = some_clips(4)
    numbers, given = films.numbers(asked, 2)
    assert numbers.shape == (4, 8, 16, 4) and given.shape == (4, 8, 2)
    np.testing.assert_array_equal(films.pictures(numbers, 2), asked.frames)
    rows = np.stack([frames.record(*each) for each in zip(
        asked.frames[:, 0], asked.classes, asked.actions)])  # fmt: skip
    # The same as the trainer reads.
    options = objective.Options(patch=2)
    config = dataclasses.replace(CONFIG, block_len=64, vocab_size=frames.VOCAB_SIZE)
    read = objective.read(options, denoiser.make_net(config, 2), jnp.asarray(rows))
    np.testing.assert_allclose(read[0], numbers, atol=1e-6)
    np.testing.assert_array_equal(read[1], given)


def test_trained_runs_of_both_kinds_draw_clips(tmp_path, monkeypatch, capsys):
    """From two folders to the table, the strips and the numbers."""
    denoiser_config = TrainConfig(
        name="d", objective="frame_diffusion", options={"patch": 4}, data="frames",
        model=dataclasses.replace(
            CONFIG, block_len=64, vocab_size=frames.VOCAB_SIZE, num_layers=1,
            sliding=(),
        ),
        steps=1, warmup_steps=0, row_len=frames.RECORD, batch_size=4, eval_every=1,
        checkpoint_every=1, eval_rows=4,
    )  # fmt: skip
    model = Config(
        vocab_size=frames.VOCAB_SIZE, width=8, num_layers=1, num_heads=2, rope=None,
        mlp_width=8, tied=True, max_positions=frames.RECORD, mask_id=frames.MASK_ID,
    )  # fmt: skip
    asked = some_clips(8)
    rows = np.concatenate([frames.record(*each) for each in zip(
        asked.frames[:, 0], asked.classes, asked.actions)])  # fmt: skip
    raster = dataclasses.replace(
        denoiser_config, name="r", objective="autoregressive", model=model,
        options=None,
    )  # fmt: skip
    options = {"patch": 4, "chunk": 4, "overlap": 2}
    chunks = dataclasses.replace(
        denoiser_config, name="c", objective="film_chunks", options=options
    )
    found, streams = [], (rows.astype(np.uint16),) * 2
    for config in (denoiser_config, chunks, raster):
        folder = tmp_path / config.name
        train(config, folder, streams=streams, mesh={"data": 1}, log=lambda line: None)
        found.append(str(folder))
    suite = bench.entries(*found)
    for wrong in ((found[1], None, None), (None, found[0], None)):
        with pytest.raises(ValueError, match=r"is no run of configs/frames_.*: give"):
            bench.entries(*wrong)
    with pytest.raises(ValueError, match="denoises frames, which are no tokens: draw"):
        assembly.load(found[0])
    by = images.judge(blobs(100, 0), blobs(100, 1))
    monkeypatch.setattr(bench.visual, "judge", lambda: by)
    monkeypatch.setattr(bench.data, "clips", lambda split: asked)
    calls = {
        "acdit 4": 4 * 7, "inferix 4": 5 * 7, "vin 25 joined 0.6": 50,
        "diagonal video 2": 7 * 16 + 6,
    }  # fmt: skip
    some = {name: suite[name] for name in (*calls, "nfd 10 ahead 3")}
    monkeypatch.setattr(bench, "entries", lambda *_: some)
    folders = ["--denoiser", found[0], "--chunks", found[1], "--raster", found[2]]
    bench.main([*folders, "--clips", "3", "--out", str(tmp_path / "films")])
    assert "the right clips" in capsys.readouterr().out
    made = json.loads((tmp_path / "films.json").read_text())
    assert {name: made["lines"][name]["calls"] for name in calls} == calls
    ahead = made["lines"]["nfd 10 ahead 3"]
    assert ahead["waits"] < 70 <= ahead["calls"]
    assert (tmp_path / "films-2.png").stat().st_size > 500


# Chunks that an interface joins.

JOINED = interfaces.init(NET, jax.random.key(0))
JOINED = jax.tree.map(
    lambda leaf: leaf + 0.2 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
    JOINED,
)


def chunked(plan, rows=slice(None)):
    made = jax.jit(frame_chunks.draw, static_argnums=0)(
        plan, JOINED, KEYS[rows], FIRST[rows, :1], PLAYED[rows]
    )
    return jax.tree.map(np.asarray, made)


def slow_chunk(film, time, given, begin, chunk):
    """One chunk's velocity by a call of its own, behind the interface."""
    context = interfaces.interface(NET, JOINED, film, time, given, 2)
    some = slice(begin, begin + chunk)

    def behind(leaf):
        return jnp.concatenate([jnp.zeros_like(leaf[:, :1]), leaf[:, some]], 1)

    among = np.ones((1 + chunk, 1 + chunk), bool)
    among[0, 1:] = False
    index = jnp.broadcast_to(jnp.arange(film.shape[1]), time.shape)
    call = denoiser.Call(
        behind(film), behind(time), behind(time > 0), behind(given), behind(index),
        jnp.broadcast_to(among, (len(film), *among.shape)), context=context,
    )  # fmt: skip
    return denoiser.apply(NET, JOINED, call)[0][:, 1:]


def test_chunks_side_by_side_are_chunks_one_by_one():
    """And what joins them is linear along the overlap, then the earlier chunk's."""
    plan = frame_chunks.vin(
        NET, chunk=4, overlap=2, every=2, num_steps=2, fused=0.5
    )  # fmt: skip
    made = chunked(plan)
    film = np.array(frame_chunks.noise_of(plan, KEYS, 6))
    film[:, 0] = FIRST[:, 0]
    slow = jax.jit(slow_chunk, static_argnums=(3, 4))
    for step in range(2):
        time = np.full((ROWS, 6), 1 - step / 2, np.float32)
        time[:, 0] = 0
        one, other = (np.asarray(slow(film, time, PLAYED, b, 4)) for b in (0, 2))
        half = one[:, 2:] * [[[[2 / 3]], [[1 / 3]]]] + other[:, :2] * [
            [[[1 / 3]], [[2 / 3]]]
        ]
        shared = half if step == 0 else one[:, 2:]
        velocity = np.concatenate([one[:, :2], shared, other[:, 2:]], 1)
        film = np.where(
            np.arange(6)[None, :, None, None] > 0, film - velocity / 2, film
        )
        film = film.astype(np.float32)
    np.testing.assert_allclose(made.film, film, rtol=1e-4, atol=1e-4)
    # Three frames read, the interface in three layers, two chunks behind it; twice.
    assert (made.num_calls == 4).all()
    assert (made.num_lanes == 2 * (3 + 3 + 2 * 5) * 4).all()
    # Controls: never joined, or always.
    for share in (0.0, 1.0):
        other = frame_chunks.vin(
            NET, chunk=4, overlap=2, every=2, num_steps=2, fused=share
        )
        assert np.abs(chunked(other).film - made.film).max() > 1e-3
    # A row is its own.
    alone = chunked(plan, slice(1, 2)).film
    np.testing.assert_allclose(alone[0], made.film[1], rtol=1e-4, atol=1e-4)


def test_what_cannot_be_chunks_is_refused():
    sizes = {"chunk": 4, "overlap": 2, "every": 2, "num_steps": 2, "fused": 0.5}
    for name, wrong in (("num_steps", 0), ("every", 0), ("fused", 2)):
        with pytest.raises(ValueError, match=f"{name}={wrong}"):
            frame_chunks.vin(NET, **(sizes | {name: wrong}))


@pytest.mark.parametrize("is_linear", [True, False])
def test_shares_of_every_frame_sum_to_one(is_linear):
    for count, chunk, overlap in (
        (6, 4, 2),
        (8, 4, 2),
        (8, 2, 1),
        (9, 5, 1),
        (4, 4, 2),
    ):
        shares = interfaces.weights(count, chunk, overlap, is_linear)
        total = np.zeros(count)
        for begin, own in zip(interfaces.starts(count, chunk, overlap), shares):
            total[begin : begin + chunk] += own
        np.testing.assert_allclose(total, 1, atol=1e-6)
    assert interfaces.weights(6, 4, 2, True)[0].tolist() == pytest.approx(
        [1, 1, 2 / 3, 1 / 3]
    )
    for wrong in ((6, 4, 3), (6, 4, 1), (6, 7, 0), (6, 0, 0)):
        with pytest.raises(ValueError, match="does not cut 6 frames"):
            interfaces.starts(*wrong)


def test_a_chunk_sees_the_others_through_the_interface_alone(monkeypatch):
    time = jnp.full((ROWS, 6), 0.5)
    film = jax.random.normal(jax.random.key(4), (ROWS, 6, 4, 1))

    def sees():
        """Which frames each of three chunks of two depends on."""

        def velocity(film):
            found = interfaces.of_chunks(
                NET, JOINED, film, time, time > 0, PLAYED, jnp.array([0, 2, 4]), 2, 2
            )
            return found.sum((0, 2, 3, 4))

        by_film = jax.jit(jax.jacobian(velocity))(film)
        return (np.abs(by_film).max((1, 3, 4)) > 0).astype(int).tolist()

    # The interface reads frames 0, 2 and 4.
    assert sees() == [[1, 1, 1, 0, 1, 0], [1, 0, 1, 1, 1, 0], [1, 0, 1, 0, 1, 1]]
    # Control: without it chunks are films of their own.
    silent = jnp.zeros((ROWS, 1, 4, 16))
    monkeypatch.setattr(interfaces, "interface", lambda *_: silent)
    assert sees() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]


def test_the_loss_of_chunks_is_that_of_each_by_itself():
    run = dataclasses.replace(
        RUN, objective="film_chunks", row_len=30,
        options={"head_len": 6, "num_levels": 7, "chunk": 4, "overlap": 2},
    )  # fmt: skip
    tokens = jax.random.randint(jax.random.key(7), (ROWS, 30), 0, 7)
    batch = film_chunks.noise(run)({"tokens": tokens}, jax.random.key(8))
    loss = film_chunks.loss(run)
    both = jax.jit(jax.value_and_grad(lambda p: loss(p, {}, batch, None, 0)[0]))
    value, grads = both(JOINED)
    clean, given = objective.read(run.options, NET, tokens)
    time = jnp.repeat(batch["time"][:, None], 6, 1).at[:, 0].set(0)
    share = time[..., None, None]
    film = (1 - share) * clean + share * batch["noise"]
    slow = jax.jit(slow_chunk, static_argnums=(3, 4))
    wanted = batch["noise"] - clean
    errors = [np.square(slow(film, time, given, b, 4) - wanted[:, b : b + 4])
              for b in (0, 2)]  # fmt: skip
    # The first frame is told, and not scored.
    scored = [errors[0][:, 1:].ravel(), errors[1].ravel()]
    assert abs(float(value) - np.concatenate(scored).mean()) < 1e-5
    assert abs(float(value) - np.mean(errors)) > 1e-4
    still = [
        path for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not np.abs(leaf).max() > 0
    ]  # fmt: skip
    assert not still, still
    with pytest.raises(ValueError, match="num_given=6 leaves none of row_len=30's 6"):
        film_chunks.net_of(
            dataclasses.replace(
                run, options={**dataclasses.asdict(run.options), "num_given": 6}
            )
        )
