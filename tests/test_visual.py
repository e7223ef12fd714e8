"""Orders of images: what is drawn when, from what, and with which law."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pdecode import methods, prompts
from pdecode.contracts import DraftHeads, Query, Sampling, Visibility
from pdecode.decode import decode, run
from pdecode.families import frontier, masked, wavefront
from pdecode.models import toy, transformer, two_pass
from pdecode.models.config import Config
from pdecode.rules import commit, orders
from pdecode.train import losses
from pdecode.train.objectives import any_order as objective

# A class of two values, then an image of 2 x 3 pixels.
HEIGHT, SIDE, VOCAB = 2, 3, 2
PIXELS = HEIGHT * SIDE
JOINT = toy.joint(11, VOCAB, 1 + PIXELS, sharpness=2.0)
STRINGS = np.asarray(JOINT.strings)
PROBS = np.exp(np.asarray(JOINT.log_probs, np.float64))
MASKED = toy.make_model(VOCAB, 1 + PIXELS, predicts="masked")
CAUSAL = toy.make_model(VOCAB, 1 + PIXELS)
SAMPLING = Sampling(1.0)
PROMPT = prompts.from_rows([[0], [1]] * 40, max_new_tokens=PIXELS)


@functools.partial(jax.jit, static_argnums=0)
def drawn(decoder, prompt=PROMPT, params=JOINT):
    return decode(decoder, params, prompt, jax.random.key(5))[0]


def log_chance(seen, place, token):
    """Log-probability of `token` at `place` given {position: token} by summing."""
    fits = np.all([STRINGS[:, p] == t for p, t in seen.items()], axis=0)
    fits = fits if seen else np.ones(len(STRINGS), bool)
    both = fits & (STRINGS[:, place] == token)
    return np.log(PROBS[both].sum() / PROBS[fits].sum())


def gap(generation, expected):
    """Largest difference of the rows' log-probabilities from `expected(tokens)`."""
    tokens, found = np.asarray(generation.tokens), np.asarray(generation.log_probs)
    want = np.array([expected(row) for row in tokens])
    return np.abs(found[:, 1 : 1 + PIXELS] - want).max()


def one_by_one(name):
    rank = orders.of(name, PIXELS, SIDE, seed=3)
    return np.argsort(np.argsort(rank, kind="stable"))


def any_order_law(rank, group_at_once=False):
    def expected(tokens):
        found = []
        for place in range(PIXELS):
            before = [p for p in range(PIXELS) if rank[p] < rank[place]]
            seen = {0: tokens[0]} | {1 + p: tokens[1 + p] for p in before}
            found.append(log_chance(seen, 1 + place, tokens[1 + place]))
        return found

    return expected


@pytest.mark.parametrize("name", orders.NAMES)
def test_every_order_one_by_one_is_the_models_any_order_law(name):
    """Each token's law is that given the ones before it in the order, and no other."""
    rank = one_by_one(name)
    made = frontier.frontier(MASKED, rank, max_new_tokens=PIXELS, sampling=SAMPLING)
    assert made.guarantee == "exact"
    out = drawn(made)
    assert gap(out, any_order_law(rank)) < 1e-5
    # The rows' log-probabilities add up to the joint's own, whatever the order.
    total = np.asarray(out.log_probs[:, 1:]).sum(1)
    joint = [
        log_chance({}, 0, row[0]) + part
        for row, part in zip(np.asarray(out.tokens), total)
    ]
    whole = [
        np.log(PROBS[(STRINGS == row).all(1)][0]) for row in np.asarray(out.tokens)
    ]
    np.testing.assert_allclose(joint, whole, atol=1e-5)


@pytest.mark.parametrize("name", ["halton", "spiral"])
def test_masked_methods_take_the_same_orders(name):
    rank = one_by_one(name)
    made = masked.masked_diffusion(
        MASKED, commit.by_rank(rank), max_new_tokens=PIXELS, sampling=SAMPLING
    )
    assert made.guarantee == "exact"
    assert gap(drawn(made), any_order_law(rank)) < 1e-5


def test_groups_are_independent_given_what_was_decided():
    rank = orders.diagonal(HEIGHT, SIDE)
    out = drawn(
        frontier.frontier(MASKED, rank, max_new_tokens=PIXELS, sampling=SAMPLING)
    )
    assert gap(out, any_order_law(rank)) < 1e-5
    # The control: groups are not the joint.
    assert gap(out, any_order_law(one_by_one("diagonal"))) > 0.1


def test_orders_visit_every_cell_and_are_those_of_their_names():
    for name, (height, width) in itertools.product(
        orders.NAMES, [(1, 5), (2, 3), (8, 8), (5, 1)]
    ):
        rank = orders.of(name, height * width, width)
        assert sorted(set(rank)) == list(range(rank.max() + 1))
        if name not in ("diagonal", "hierarchical"):
            assert sorted(rank) == list(range(height * width))
    assert orders.spiral(3, 3).tolist() == [8, 7, 6, 1, 0, 5, 2, 3, 4]
    assert orders.diagonal(2, 3).tolist() == [0, 1, 2, 1, 2, 3]
    assert orders.hierarchical(4, 4).tolist() == [0, 2, 1, 2, 2, 2, 2, 2, 1, 2, 1] + (
        [2] * 5
    )
    assert len(set(orders.diagonal(8, 8))) == 15
    # Bases 2 and 3: (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9).
    first = np.argsort(orders.halton(8, 9))[:4]
    assert [divmod(cell, 9) for cell in first] == [(4, 3), (2, 6), (6, 1), (1, 4)]
    # The end of the last row is missing.
    assert orders.of("raster", 5, 3).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="unknown order 'zigzag'"):
        orders.of("zigzag", 4, 2)


@pytest.mark.parametrize("schedule", ["arccos", "cosine"])
def test_sizes_of_arpg_leave_what_its_schedule_says(schedule):
    sizes = orders.masked_sizes(256, 64, schedule)
    assert sizes.sum() == 256 and sizes.min() >= 1 and len(sizes) == 64
    left = 256
    for step in range(1, len(sizes)):
        share = np.arccos(step / 64) * 2 / np.pi
        if schedule == "cosine":
            share = np.cos(np.pi / 2 * step / 64)
        left = min(max(int(256 * share), 1), left - 1)
        assert 256 - sizes[:step].sum() == left
    assert orders.masked_sizes(5, 5, schedule).tolist() == [1] * 5


def test_lpd_picks_are_near_what_is_decided_and_far_from_each_other():
    cells = np.stack(np.indices((8, 8)), -1).reshape(-1, 2)
    sizes = orders.group_sizes(64, 32)
    firsts = set()
    for seed in range(5):
        rank = orders.local(8, 8, sizes, seed=seed, repulsion=2)
        assert np.bincount(rank).tolist() == sizes.tolist()
        firsts.add(int(np.flatnonzero(rank == 0)[0]))
        for group in range(1, 12):
            mine, decided = cells[rank == group], cells[rank < group]
            apart = np.abs(mine[:, None] - mine[None]).max(-1)
            assert (apart[~np.eye(len(mine), dtype=bool)] > 2).all()
            near = np.abs(mine[:1, None] - decided[None]).max(-1).min(1)
            assert (near == 1).all() or len(decided) < 3
    assert len(firsts) > 2  # the first pick is free


# Any-order networks: what is trained is what is decoded.
NET = Config(
    vocab_size=6, width=16, num_layers=2, num_heads=2, mlp_width=24, rope=None,
    max_positions=7, predicts="masked", mask_id=5,
)  # fmt: skip


def of_network(rank, network=transformer, **options):
    """Largest difference between what steps say and what the packed pass says."""
    params = network.init(NET, jax.random.key(1))
    params = jax.tree.map(lambda leaf: 2 * leaf, params)
    made = frontier.frontier(
        network.make_model(NET), rank, max_new_tokens=PIXELS, sampling=SAMPLING,
        **options,
    )  # fmt: skip
    out = drawn(made, params=params)
    ranks = jnp.broadcast_to(jnp.pad(jnp.asarray(rank) + 1, (1, 0)), out.tokens.shape)
    nats = objective.any_order_loss(NET, params, out.tokens, ranks)
    return np.abs(np.asarray(out.log_probs)[:, 1:] + np.asarray(nats)[:, 1:]).max()


def test_a_step_with_a_cache_says_what_the_packed_pass_was_trained_on():
    """In groups, whose queries see each other as in LPD, and one by one (ARPG)."""
    groups = orders.diagonal(HEIGHT, SIDE)
    assert of_network(groups, is_group_seen=True) < 1e-4
    assert of_network(one_by_one("random")) < 1e-4
    # All at once: more lanes than the row has places.
    assert of_network(np.zeros(PIXELS, int), is_group_seen=True) < 1e-4
    assert of_network(one_by_one("random"), is_group_seen=True) < 1e-4
    # Controls: queries that do not see each other; tokens stored as in a sequence.
    assert of_network(groups, is_group_seen=False) > 1e-3
    assert of_network(groups, is_group_seen=True, is_fresh_causal=True) > 1e-3


def test_arpgs_two_passes_with_a_cache_are_the_packed_ones():
    groups = orders.diagonal(HEIGHT, SIDE)
    assert of_network(groups, two_pass) < 1e-4
    # Its queries see no others, whatever they are allowed.
    assert of_network(groups, two_pass, is_group_seen=True) < 1e-4
    # Controls: tokens stored as in a sequence; a second pass that a token's own lane
    # answers, as in a transformer.
    assert of_network(groups, two_pass, is_fresh_causal=True) > 1e-3
    cut = two_pass.make_model(NET)
    params = two_pass.init(NET, jax.random.key(1))
    made = frontier.frontier(cut, groups, max_new_tokens=PIXELS, sampling=SAMPLING)
    out = drawn(made, params=params)
    ranks = jnp.broadcast_to(jnp.pad(jnp.asarray(groups) + 1, (1, 0)), out.tokens.shape)
    both = jnp.concatenate([out.tokens, jnp.full_like(out.tokens, NET.mask_id)], 1)
    place = jnp.broadcast_to(jnp.arange(14) % 7, both.shape)
    nowhere = jnp.zeros_like(place)
    seen = Visibility(nowhere, nowhere, among=objective.twice(ranks))
    query = Query(both, place, None, seen)
    wrong = two_pass.forward(NET, params, query, jnp.zeros(both.shape, bool))
    logits = losses.logits_of(NET, params, wrong.hidden[:, 7:])
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, out.tokens)
    assert np.abs(np.asarray(out.log_probs + nats)[:, 1:]).max() > 1e-3


@pytest.mark.parametrize("network", [transformer, two_pass])
def test_a_query_more_changes_no_other_in_arpg(network):
    """The first group of a coarse order says what the same places say alone."""
    params = network.init(NET, jax.random.key(1))
    model = network.make_model(NET)

    def first(rank, **options):
        made = frontier.frontier(
            model, rank, max_new_tokens=PIXELS, sampling=Sampling(0.0), **options
        )
        return np.asarray(drawn(made, params=params).log_probs)[:, 1:]

    both, alone = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 2])
    np.testing.assert_allclose(first(both)[:, 0], first(alone)[:, 0], atol=1e-6)
    with_other, without = (first(r, is_group_seen=True)[:, 0] for r in (both, alone))
    changed = np.abs(with_other - without).max()
    assert changed > 1e-4 if network is transformer else changed < 1e-6


@pytest.mark.parametrize("growth", ["linear", "constant"])
def test_guidance_grows_with_what_is_decided(growth):
    """Against the law by hand: g * cond - (g - 1) * null at every position."""
    scale, steps = 3.0, PIXELS
    generation, stats = run(
        methods.arpg, MASKED, JOINT, PROMPT, jax.random.key(0),
        knobs={"guidance_scale": scale, "temperature": 1.0},
        guidance_growth=growth, steps=steps, max_new_tokens=PIXELS, order_seed=2,
    )  # fmt: skip
    rank = orders.of("random", PIXELS, None, 2)

    def law(is_growing):
        def expected(tokens):
            found = []
            for place in range(PIXELS):
                before = [p for p in range(PIXELS) if rank[p] < rank[place]]
                seen = {1 + p: tokens[1 + p] for p in before}
                g = 1 + (scale - 1) * len(before) / PIXELS if is_growing else scale
                mixed = [
                    g * log_chance(seen | {0: tokens[0]}, 1 + place, token)
                    - (g - 1) * log_chance(seen, 1 + place, token)
                    for token in range(VOCAB)
                ]
                own = mixed[tokens[1 + place]]
                found.append(own - np.logaddexp(*mixed))
            return found

        return expected

    assert gap(generation, law(growth == "linear")) < 1e-4
    assert gap(generation, law(growth != "linear")) > 1e-2
    assert (stats.num_calls == 2 * steps).all()


# The wavefront.


def seen_by(tables, turn):
    """{lane: {place: place of the token that stands there}} as of this step."""
    content = {}
    for step in range(turn + 1):
        for lane in np.flatnonzero(tables.is_lane[step]):
            content[int(tables.place[step, lane])] = int(tables.source[step, lane])
    return {
        lane: {p: s for p, s in content.items() if p <= tables.place[turn, lane]}
        for lane in np.flatnonzero(tables.is_lane[turn])
    }


def wavefront_law(tables):
    """Log-probabilities of a row as the tables say, by summing over the joint."""

    def expected(tokens):
        found = np.zeros(PIXELS)
        for turn, members in enumerate(tables.groups):
            seen = seen_by(tables, turn)
            for lane, place in enumerate(members):
                if place >= 0:
                    given = {1 + p: tokens[1 + s] for p, s in seen[lane].items()}
                    found[place] = log_chance(given, 1 + place, tokens[1 + place])
        return found

    return expected


def decoder_of(window, **options):
    rank = orders.wavefront(PIXELS, SIDE, window, **options)
    return wavefront.wavefront(
        CAUSAL, rank, orders.latest_above(rank, SIDE), max_new_tokens=PIXELS,
        sampling=SAMPLING,
    ), rank  # fmt: skip


@pytest.mark.parametrize("window", [1, 2])
def test_a_wavefront_sees_what_was_fed_and_nothing_else(window):
    made, rank = decoder_of(window)
    tables = wavefront.tables(rank, orders.latest_above(rank, SIDE))
    assert made.guarantee == "lossy"
    assert gap(drawn(made), wavefront_law(tables)) < 1e-5


@pytest.mark.parametrize(
    ("method", "sizes"),
    [
        (methods.zipar, {"window": SIDE}),
        (methods.zipar, {"window": 100, "is_first_whole": True}),
        (methods.diagonal_decoding, {"window": SIDE, "mode": "video"}),
        (methods.diagonal_decoding, {"window": 9, "frame_length": SIDE}),
    ],
)
def test_a_window_of_a_row_is_raster_decoding_token_for_token(method, sizes):
    model = toy.make_model(VOCAB, 2 + PIXELS, eos_ids=())
    law = toy.chain(1, VOCAB, 2 + PIXELS)
    prompt = prompts.from_rows(
        [[0], [1, 0]] * 20, max_new_tokens=[PIXELS, PIXELS - 2] * 20
    )
    for temperature in (0.0, 1.0):
        common = dict(knobs={"temperature": temperature}, max_new_tokens=PIXELS)
        given = (model, law, prompt, jax.random.key(3))
        plain, _ = run(methods.autoregressive, *given, **common)
        made, stats = run(method, *given, row_length=SIDE, **sizes, **common)
        np.testing.assert_array_equal(made.tokens, plain.tokens)
        np.testing.assert_array_equal(made.lengths, plain.lengths)
        assert (stats.num_calls == made.lengths).all()
    # The control: a smaller window draws something else with the same noise.
    sizes = {**sizes, "window": 1, "frame_length": PIXELS, "is_first_whole": False}
    sizes.pop("frame_length" if method is methods.zipar else "is_first_whole")
    other, _ = run(method, *given, row_length=SIDE, **sizes, **common)
    assert (other.tokens != plain.tokens).any()


def test_a_stand_in_that_stays_is_another_law(monkeypatch):
    """Control: MineWorld's released code never feeds a row's true last token."""
    _, rank = decoder_of(1)
    above = orders.latest_above(rank, SIDE)
    right = wavefront.tables(rank, above)
    is_end = (right.place % SIDE == SIDE - 1) & (right.source == right.place)
    wrong = right._replace(is_lane=right.is_lane & ~is_end)
    monkeypatch.setattr(wavefront, "tables", lambda *_: wrong)
    assert gap(drawn(decoder_of(1)[0]), wavefront_law(right)) > 1e-2


def test_slots_that_nothing_was_fed_to_are_not_seen(monkeypatch):
    """Control: ZipAR's released code attends to slots that hold nothing yet."""

    def noisy(prompt, num_slots):
        # An empty slot would say that the first pixel is 1.
        empty = jnp.ones((prompt.tokens.shape[0], 1, num_slots, 2), jnp.int32)
        return {"keys": empty}

    model = CAUSAL._replace(init_cache=noisy)
    rank = orders.wavefront(PIXELS, SIDE, 1)
    above = orders.latest_above(rank, SIDE)
    right = wavefront.tables(rank, above)
    law = wavefront_law(right)
    sizes = dict(max_new_tokens=PIXELS, sampling=SAMPLING)
    out = drawn(wavefront.wavefront(model, rank, above, **sizes))
    assert gap(out, law) < 1e-5
    wrong = right._replace(written=np.ones_like(right.written))
    monkeypatch.setattr(wavefront, "tables", lambda *_: wrong)
    out = drawn(wavefront.wavefront(model, rank, above, **sizes))
    assert gap(out, law) > 1e-2


GRIDS = list(itertools.product((1, 2, 5), (1, 3, 8), (1, 2, 7, 8)))


@pytest.mark.parametrize("is_first_whole", [False, True])
def test_calls_of_zipar_have_a_closed_form(is_first_whole):
    for height, width, window in GRIDS:
        rank = orders.wavefront(
            height * width, width, window, is_first_whole=is_first_whole
        )
        gap = min(window, width)
        calls = width + (height - 1) * gap
        if is_first_whole and height > 1:
            calls = 2 * width + (height - 2) * gap
        assert len(set(rank)) == rank.max() + 1 == calls
        if window >= width:
            assert (np.diff(rank) > 0).all()
        grid = rank.reshape(height, width)
        # What is to the left, and `window` tokens of the row above, are there.
        assert (np.diff(grid, axis=1) == 1).all()
        assert (grid[1:, 0] > grid[:-1, gap - 1]).all()
    paper = orders.wavefront(90 * 90, 90, 7)
    assert paper.max() + 1 == 713


def test_a_place_of_nar_is_the_mean_of_what_its_neighbours_say():
    """Against sums over the joint, and a head for what is below made by hand."""
    turned = np.roll(np.eye(VOCAB + 1), 1, 1).astype(np.float32)
    heads = DraftHeads(1, lambda params, hidden: (hidden @ params)[:, None])
    params = {"model": JOINT, "heads": jnp.asarray(turned)}
    made = methods.nar(CAUSAL, heads, max_new_tokens=PIXELS, row_length=SIDE)
    diagonal = orders.diagonal(HEIGHT, SIDE)

    def law(sees_own_diagonal=True, is_mean=True):
        def said(tokens, place):
            """What the lane at `place` says of the next one; -1 is the class."""
            if place + 1 == PIXELS:
                return np.zeros(VOCAB + 1)
            near = diagonal[place] + sees_own_diagonal if place >= 0 else 0
            given = {0: tokens[0]} | {
                1 + p: tokens[1 + p] for p in range(PIXELS)
                if diagonal[p] < near or p == place
            }  # fmt: skip
            # What is known is certain; the toy's impossible is finite.
            with np.errstate(divide="ignore"):
                chances = [log_chance(given, 2 + place, t) for t in range(VOCAB)]
            return np.maximum([*chances, -2.0], toy.IMPOSSIBLE)

        def expected(tokens):
            found = []
            for place in range(PIXELS):
                row, column = divmod(place, SIDE)
                logits = []
                if column or not row:
                    logits.append(said(tokens, place - 1))
                if row or not column:
                    above = place - SIDE if row else -1
                    logits.append(said(tokens, above) @ turned)
                whole = (np.mean if is_mean else np.sum)(logits, 0)[:VOCAB]
                whole = whole - np.logaddexp.reduce(whole)
                found.append(whole[tokens[1 + place]])
            return found

        return expected

    out = drawn(made, params=params)
    assert gap(out, law()) < 1e-4
    # Controls: a diagonal whose tokens do not see each other; a sum of logits.
    assert gap(out, law(sees_own_diagonal=False)) > 1e-2
    assert gap(out, law(is_mean=False)) > 1e-2
    for height, width in ((8, 8), (3, 5)):
        sizes = dict(max_new_tokens=height * width, row_length=width)
        assert methods.nar(CAUSAL, heads, **sizes).max_steps == height + width - 1


@pytest.mark.parametrize("is_first_whole", [False, True])
def test_blocks_follow_a_first_one(is_first_whole):
    out, stats = run(
        methods.next_block, MASKED, JOINT, PROMPT, jax.random.key(0),
        knobs={"temperature": 1.0}, block_length=2, is_first_whole=is_first_whole,
        max_new_tokens=PIXELS,
    )  # fmt: skip
    rank = np.array([0, 0, 1, 1, 2, 2] if is_first_whole else [0, 1, 2, 2, 3, 3])
    assert gap(out, any_order_law(rank)) < 1e-5
    assert gap(out, any_order_law(np.arange(PIXELS))) > 1e-2
    assert (stats.num_calls == len(set(rank))).all()
    # NBP: 1280 tokens in blocks of 16; DetailFlow: 128 in blocks of 8.
    for total, size, calls in ((1280, 16, 95), (128, 8, 23)):
        made = methods.next_block(MASKED, max_new_tokens=total, block_length=size)
        assert made.max_steps == calls
    whole = dict(block_length=16, is_first_whole=True, max_new_tokens=768)
    assert methods.next_block(MASKED, **whole).max_steps == 48
    one = methods.next_block(MASKED, max_new_tokens=PIXELS, block_length=1)
    assert one.guarantee == "exact"


def test_frames_follow_each_other_or_overlap():
    height, width, frames, window = 3, 4, 5, 2
    sizes = (frames * height * width, width, window)
    image = orders.wavefront(*sizes, frame_length=height * width)
    assert image.max() + 1 == frames * (width + (height - 1) * window)
    video = orders.wavefront(*sizes)
    # Asymptotically height * window calls a frame.
    assert video.max() + 1 == frames * height * window + (width - window)
    assert sorted(np.argsort(video)) == list(range(len(video)))
    before = orders.before_in_frame(video, height * width)
    assert before[0] == -1 - height * width and before[17] == 4


def test_a_frame_before_stands_in_from_the_prompt():
    """The second row's stand-in is the end of the first row of the prompt's frame."""
    rank = orders.wavefront(4, 2, 1)
    tables = wavefront.tables(rank, orders.before_in_frame(rank, 4))
    assert tables.place[1, :2].tolist() == [0, 1]
    assert tables.source[1, :2].tolist() == [0, -3]


def test_what_does_not_fit_is_refused():
    sizes = dict(max_new_tokens=PIXELS)
    with pytest.raises(ValueError, match="the wavefront family reads a causal model"):
        rank = orders.wavefront(PIXELS, SIDE, 1)
        above = orders.latest_above(rank, SIDE)
        wavefront.wavefront(MASKED, rank, above, sampling=SAMPLING, **sizes)
    with pytest.raises(ValueError, match=r"stand_in\[3\]=5 is drawn no earlier"):
        rank = orders.wavefront(PIXELS, SIDE, 1)
        wavefront.tables(rank, np.full(PIXELS, 5))
    with pytest.raises(ValueError, match="frame_length=4 is no multiple of row_length"):
        methods.diagonal_decoding(CAUSAL, row_length=3, frame_length=4, **sizes)
    with pytest.raises(ValueError, match="has groups of its own"):
        methods.any_order(MASKED, order="diagonal", steps=2, **sizes)
    with pytest.raises(ValueError, match="never see later ones"):
        model = MASKED._replace(attention="causal")
        methods.maskgit(model, **sizes)


@pytest.mark.parametrize("new", [PIXELS, PIXELS - 1])
def test_a_row_of_nar_that_ends_early_sees_no_empty_slots(new):
    """On a network: what lies behind its end, its neighbours' text too, is not seen."""
    config = Config(
        vocab_size=VOCAB, width=8, num_layers=1, num_heads=2, max_positions=32
    )
    model = transformer.make_model(config)
    heads = DraftHeads(1, lambda params, hidden: hidden[:, None] * params)
    own = transformer.init(config, jax.random.key(5))
    params = {"model": own, "heads": jnp.float32(-1)}

    def decoded(rows, limits, ids):
        prompt = prompts.from_rows(rows, max_new_tokens=limits, row_ids=ids)
        return run(
            methods.nar, (model, heads), params, prompt, jax.random.key(3),
            knobs={"temperature": 0.0}, max_new_tokens=new, row_length=SIDE,
        )[0]  # fmt: skip

    rows, limits = [[0], [1], [1, 0, 1, 0, 1]], [new, new - 1, PIXELS - 2]
    together = decoded(rows, limits, [0, 1, 2])
    for index, (row, limit) in enumerate(zip(rows, limits)):
        alone, end = decoded([row], [limit], [index]), len(row) + limit
        np.testing.assert_array_equal(
            together.tokens[index, :end], alone.tokens[0, :end]
        )
        np.testing.assert_allclose(
            together.log_probs[index, :end], alone.log_probs[0, :end], atol=1e-6
        )
        # What it leaves out is of the last diagonals: a whole image begins the same.
        whole = decoded([row], [new], [index])
        np.testing.assert_allclose(
            alone.log_probs[0, len(row) : end],
            whole.log_probs[0, len(row) : end],
            atol=1e-6,
        )


def test_models_that_the_families_of_images_cannot_serve_are_refused():
    with pytest.raises(ValueError, match="layers that see a window"):
        methods.any_order(MASKED._replace(slides=True), max_new_tokens=PIXELS)
