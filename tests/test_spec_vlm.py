"""A draft layer behind an image that it condenses: operators, loss, drafts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import methods, prompts, rng, trees
from pdecode.contracts import Query, Sampling, SlotRun, Visibility
from pdecode.decode import run
from pdecode.drafters import features
from pdecode.families import speculative
from pdecode.models import (
    condensers,
    embedded,
    prefixed,
    transformer,
    visual_layers,
)
from pdecode.models.condensers import Condenser
from pdecode.models.config import Config
from pdecode.train import TrainConfig, export, passes
from pdecode.train.objectives import spec_vlm as objective

IMAGE = 6
SMALL = Config(
    vocab_size=9, width=8, num_layers=2, num_heads=2, num_kv_heads=1, mlp_width=12,
    mask_id=8,
)  # fmt: skip
TARGET = transformer.init(SMALL, jax.random.key(2))
MODEL = transformer.make_model(SMALL)
OPTIONS = {
    "num_features": IMAGE, "num_question": 1, "prune": 1, "pool": 2, "conv": 3,
    "latents": 4, "text_only": True, "law_weight": 0.3, "feature_noise": 0.0,
}  # fmt: skip
CONFIG = TrainConfig(
    name="x", model=SMALL, objective="spec_vlm", steps=1, warmup_steps=0, row_len=12,
    frozen={"target": "target"}, options=OPTIONS,
)  # fmt: skip
CONDENSER = CONFIG.options.condenser
# Large weights: laws differ from token to token.
OWN = jax.tree.map(
    lambda leaf: 2 * leaf + 0.1,
    visual_layers.init(SMALL, CONDENSER, jax.random.key(1)),
)
# The question's token v chooses operator v % 5.
OWN["condenser"]["gate"] = jnp.linalg.inv(TARGET["embed"][:8]) @ (
    3 * jax.nn.one_hot(jnp.arange(8) % 5, 5)
)
LAYER = visual_layers.make_layer(SMALL, CONDENSER)
FROZEN = {"target": TARGET}
TOKENS = np.random.default_rng(0).integers(0, 8, (12, 12)).astype(np.int32)
TOKENS[:, IMAGE] = np.arange(12) % 8


def softmax(scores):
    weight = np.exp(scores - scores.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def condensed_by_hand(own, image, question):
    """Vectors [n, E] of an image [C, E], and the operator's number."""
    own = jax.tree.map(np.asarray, own["condenser"])
    choice = int(np.argmax(question @ own["gate"]))
    name = OPTIONS_ORDER[choice]
    if name == "none":
        return image[:0], choice
    count = OPTIONS[name]
    if name == "latents":
        return softmax(own["latents"] @ image.T) @ image, choice
    run_len = IMAGE // count
    runs = [image[i * run_len : (i + 1) * run_len] for i in range(count)]
    if name == "prune":
        return np.stack([each[0] for each in runs]), choice
    if name == "pool":
        return np.stack([each.mean(0) for each in runs]), choice
    made = [
        sum(vector @ kernel for vector, kernel in zip(each, own["conv"]))
        for each in runs
    ]
    return np.stack(made), choice


OPTIONS_ORDER = ("prune", "pool", "conv", "latents", "none")


def rotated(x, position):
    """[H, D] turned as a Llama does."""
    half = x.shape[-1] // 2
    angle = position * 10_000.0 ** (-np.arange(half) / half)
    first, second = x[:, :half], x[:, half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], 1)


def normed(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def attended_by_hand(block, stream, positions, num_heads=2):
    """What causal attention adds to normed lanes [n, E] in turn, in numpy."""
    kernel = {name: leaf["kernel"] for name, leaf in block["attention"].items()}
    keys, values, out = [], [], []
    for x, position in zip(stream, positions):
        query = rotated((x @ kernel["query"]).reshape(num_heads, -1), position)
        keys.append(rotated((x @ kernel["key"]).reshape(1, -1), position)[0])
        values.append(x @ kernel["value"])
        weight = softmax(query @ np.stack(keys).T / np.sqrt(query.shape[1]))
        out.append((weight @ np.stack(values)).reshape(-1) @ kernel["out"])
    return np.stack(out)


def streamed_by_hand(own, tokens, read):
    """What the layer begins with, and where: condensed image, then joined text."""
    table = np.asarray(TARGET["embed"])
    image, choice = condensed_by_hand(own, read[:IMAGE], table[tokens[IMAGE]])
    text = [
        np.concatenate([table[token], feature]) @ np.asarray(own["fc"]["kernel"])
        + np.asarray(own["fc"]["bias"])
        for token, feature in zip(tokens[IMAGE:], read[IMAGE - 1 : len(tokens) - 1])
    ]
    spread = [(2 * i + 1) * IMAGE // 8 for i in range(4)][4 - len(image) :]
    places = [*spread, *range(IMAGE, IMAGE + len(text))]
    return np.concatenate([image, np.stack(text)]), places, choice


def by_hand(own, tokens, read):
    """Features [n, E] of SpecVLM's layer at the n text tokens of a row, in numpy."""
    stream, places, _ = streamed_by_hand(own, tokens, np.asarray(read))
    block = jax.tree.map(np.asarray, own["layer_0"])
    before = normed(stream, block["attention_norm"]["weight"])
    stream = stream + attended_by_hand(block, before, places)
    mlp = {name: leaf["kernel"] for name, leaf in block["mlp"].items()}
    inner = normed(stream, block["mlp_norm"]["weight"])
    gate = inner @ mlp["gate"]
    stream = stream + (gate / (1 + np.exp(-gate)) * (inner @ mlp["up"])) @ mlp["down"]
    return stream[len(stream) - (len(tokens) - IMAGE) :]


@jax.jit
def _hidden(tokens):
    return passes.hidden(passes.Pass(SMALL), TARGET, tokens)


def hidden_of(tokens):
    padded = np.zeros((1, 24), np.int32)  # a causal model does not see it
    padded[0, : len(tokens)] = tokens
    return np.asarray(_hidden(padded))[0, : len(tokens)]


def logs_of(feature):
    """Logs of the target's law of a feature, without the mask."""
    raw = np.asarray(TARGET["head"]) @ np.asarray(feature)
    raw[SMALL.mask_id] = -1e9
    raw -= raw.max()
    return raw - np.log(np.exp(raw).sum())


# The objective.


def test_the_loss_is_the_papers_by_hand():
    """Every operator is chosen by some row; the question is given."""
    batch = {
        "tokens": jnp.asarray(TOKENS),
        "gate_noise": jnp.zeros((len(TOKENS), len(CONDENSER.counts))),
    }
    value, aux = jax.jit(objective.loss(CONFIG))(OWN, FROZEN, batch, None, 0)
    total, nats, chosen = [], [], set()
    for tokens in TOKENS:
        true = hidden_of(tokens)
        guess = by_hand(OWN, tokens, true)
        chosen.add(streamed_by_hand(OWN, tokens, true)[2])
        for place in range(IMAGE, len(tokens) - 1):
            gap = np.abs(guess[place - IMAGE] - true[place])
            far = np.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean()
            mine, its = logs_of(guess[place - IMAGE]), logs_of(true[place])
            total.append(far - 0.3 * (np.exp(its) * mine).sum())
            nats.append(-mine[tokens[place + 1]])
    assert chosen == set(range(5))
    np.testing.assert_allclose(value, np.mean(total), rtol=1e-4)
    np.testing.assert_allclose(np.ravel(aux["nats"]), nats, rtol=1e-3, atol=1e-4)
    assert aux["places"].tolist() == [7, 8, 9, 10, 11] and aux["scored"].all()


def test_a_longer_question_is_not_scored_and_not_seen_too_early():
    options = dict(OPTIONS, num_question=3)
    config = dataclasses.replace(CONFIG, options=options)
    batch = {"tokens": jnp.asarray(TOKENS), "gate_noise": jnp.zeros((12, 5))}
    _, aux = jax.jit(objective.loss(config))(OWN, FROZEN, batch, None, 0)
    assert aux["scored"].sum(0).tolist() == [0, 0, 12, 12, 12]


def test_layer_operators_and_gate_learn_and_nothing_else():
    noise = objective.noise(CONFIG)
    batch = noise({"tokens": jnp.asarray(TOKENS)}, jax.random.key(2))
    assert batch["gate_noise"].shape == (12, 5)
    # Each operator is somebody's.
    batch["gate_noise"] = 99.0 * jax.nn.one_hot(jnp.arange(12) % 5, 5)

    def of(own, frozen, batch):
        return objective.loss(CONFIG)(own, frozen, batch, None, 0)[0]

    grad = jax.jit(jax.grad(of, (0, 1)))
    mine, its = grad(OWN, FROZEN, batch)
    for path, leaf in jax.tree_util.tree_leaves_with_path(mine):
        if path[-1].key != "gate":  # its soft choice is hard here
            assert np.abs(leaf).max() > 0, path
    for path, leaf in jax.tree_util.tree_leaves_with_path(its):
        assert np.abs(leaf).max() == 0, path
    batch["gate_noise"] = jnp.zeros((12, 5))
    soft = jax.tree.map(lambda leaf: leaf, OWN)
    soft["condenser"] = {**OWN["condenser"], "gate": 0.1 * OWN["condenser"]["gate"]}
    mine, _ = grad(soft, FROZEN, batch)
    assert np.abs(mine["condenser"]["gate"]).max() > 0


def test_an_operator_alone_has_no_gate_and_its_own_length():
    image = jax.random.normal(jax.random.key(3), (2, IMAGE, 8))
    for name, count in (("prune", 3), ("pool", 2), ("conv", 1), ("latents", 5)):
        made = Condenser(IMAGE, ((name, count),))
        params = condensers.init(made, 8, jax.random.key(4))
        assert "gate" not in params and made.num_gone == IMAGE - count
        found, first = condensers.apply(made, params, image, image[:, :1])
        assert found.shape == (2, count, 8) and first.tolist() == [0, 0]
    # A convolution begins as pooling; a query that is sure selects a token.
    pool = condensers.operator("pool", 2, {}, image)
    made = Condenser(IMAGE, (("conv", 2),))
    conv = condensers.init(made, 8, jax.random.key(4))
    found = condensers.operator("conv", 2, conv, image)
    np.testing.assert_allclose(found, pool, atol=1e-6)
    sure = {
        "latents": 1e4
        * image[0, [4, 1]]
        / jnp.square(image[0, [4, 1]]).sum(-1)[:, None]
    }
    scores = np.asarray(sure["latents"] @ image[0].T)
    found = condensers.operator("latents", 2, sure, image[:1])[0]
    np.testing.assert_allclose(found, image[0, scores.argmax(-1)], atol=1e-5)


def test_the_gate_chooses_by_the_question():
    """The best at decoding, under its noise in training; the length is the choice's."""
    image = jax.random.normal(jax.random.key(3), (6, IMAGE, 8))
    question = jax.random.normal(jax.random.key(5), (6, 2, 8))
    _, first = condensers.apply(CONDENSER, OWN["condenser"], image, question)
    scores = np.asarray(question.mean(1) @ OWN["condenser"]["gate"])
    counts = np.array([count for _, count in CONDENSER.counts])
    assert first.tolist() == (4 - counts[scores.argmax(-1)]).tolist()
    assert len(set(first.tolist())) > 1
    pushed = -scores + 10 * np.eye(5)[[2] * 6]
    _, first = condensers.apply(
        CONDENSER, OWN["condenser"], image, question, jnp.asarray(pushed)
    )
    assert first.tolist() == [1] * 6


# Drafts, against a drafter that keeps nothing and reads everything anew.

ROWS = [TOKENS[b, :size].tolist() for b, size in enumerate((8, 7, 10, 9, 8, 7))]
NEW = 8
PROMPT = prompts.from_rows(ROWS, max_new_tokens=NEW)
PARAMS = {"model": TARGET, "layer": OWN}


def best_by_hand(topology, committed):
    """Tokens of a static tree of best children."""
    true = hidden_of(committed)
    tokens, paths = [], []
    for node, parent in enumerate(topology.parents):
        nth = topology.parents[:node].count(parent)
        path = paths[parent] if parent >= 0 else []
        text, read = list(committed), true
        guess = by_hand(OWN, text, read)[-1]
        for token in path:
            # What stands at the last token is the layer's own guess.
            read = np.concatenate([read[: len(text) - 1], guess[None], guess[None]])
            text.append(token)
            guess = by_hand(OWN, text, read)[-1]
        order = np.argsort(-logs_of(guess), kind="stable")
        tokens.append(int(order[nth]))
        paths.append([*path, tokens[-1]])
    return tokens


@pytest.mark.parametrize(
    "topology",
    [trees.chain(3), trees.choices([(0,), (1,), (0, 0), (1, 0), (0, 0, 0)])],
    ids=["chain", "tree"],
)
def test_drafts_are_those_of_a_drafter_that_keeps_nothing(topology):
    sampling = Sampling(1.0)
    drafter = features.static_tree(MODEL, LAYER, topology, sampling)
    decoder = speculative.draft_verify(
        MODEL, drafter, max_new_tokens=NEW, sampling=sampling
    )
    keys = rng.row_keys(jax.random.key(3), PROMPT.row_ids)
    state, info = jax.jit(decoder.init)(PARAMS, keys, PROMPT)
    # Six image tokens take four slots.
    assert info.num_draft_tokens.tolist() == [len(row) - 1 - 2 for row in ROWS]

    @jax.jit
    def turn(state):
        draft, _ = drafter.propose(PARAMS, keys, state.drafter, state.prefix)
        return draft, decoder.step(PARAMS, keys, state)[0]

    for _ in range(3):
        lengths, text = state.prefix.length.tolist(), np.asarray(state.prefix.tokens)
        draft, state = turn(state)
        for row, length in enumerate(lengths):
            if length < len(ROWS[row]) + NEW:
                wanted = best_by_hand(topology, text[row, :length].tolist())
                assert draft.tokens[row].tolist() == wanted


# Decoding a model that reads an image as context.

FEATURES = jax.random.normal(jax.random.key(9), (4, IMAGE, 8))
BESIDE = prompts.from_rows(
    [[0] * IMAGE + text for text in ([1, 2], [5], [3, 3, 1], [7])],
    max_new_tokens=12, context=FEATURES,
)  # fmt: skip


def decoded(method, models, params, temperature, prompt=BESIDE, **sizes):
    found, stats = run(
        method, models, params, prompt, jax.random.key(5),
        knobs={"temperature": temperature}, max_new_tokens=12, **sizes,
    )  # fmt: skip
    return np.asarray(found.tokens), stats


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("method", "sizes"),
    [("eagle", {"branching": (2, 1)}),
     ("eagle2", {"num_nodes": 6, "width": 3, "max_depth": 3})],
)  # fmt: skip
def test_decoding_is_the_multimodal_targets_token_for_token(method, sizes, temperature):
    """And a target that reads the condensed image says something else: the control."""
    target = prefixed.prefixed(MODEL, IMAGE)
    plain, _ = decoded(methods.autoregressive, target, TARGET, temperature)
    found, stats = decoded(
        getattr(methods, method), (target, LAYER), PARAMS, temperature, **sizes
    )
    np.testing.assert_array_equal(found, plain)
    assert (stats.num_draft_calls > 0).all()
    pooled = jnp.repeat(condensers.operator("pool", 2, {}, FEATURES), 3, 1)
    less = BESIDE._replace(context=pooled)
    other, _ = decoded(methods.autoregressive, target, TARGET, temperature, less)
    assert (other != plain).any()


def test_image_tokens_and_context_are_one_to_the_layer():
    """What is trained on rows of image tokens drafts behind features just as well."""
    ids = TOKENS[:4, :IMAGE]
    table = TARGET["embed"]
    texts = [[1, 2], [5], [3, 3, 1], [7]]
    as_tokens = prompts.from_rows(
        [[*map(int, row), *text] for row, text in zip(ids, texts)], max_new_tokens=12
    )
    given = BESIDE._replace(context=table[ids] - table[:1][None])
    sizes = {"branching": (2, 1)}
    one, mine = decoded(methods.eagle, (MODEL, LAYER), PARAMS, 0.0, as_tokens, **sizes)
    target = prefixed.prefixed(MODEL, IMAGE)
    two, its = decoded(methods.eagle, (target, LAYER), PARAMS, 0.0, given, **sizes)
    np.testing.assert_array_equal(one[:, IMAGE:], two[:, IMAGE:])
    assert mine.num_calls.tolist() == its.num_calls.tolist()


def test_a_question_is_no_longer_than_its_row():
    """Of two tokens that the gate may read these have one, and padding asks nothing."""
    condenser = CONDENSER._replace(num_question=2)
    layer = visual_layers.make_layer(SMALL, condenser)
    rows = [[1] * IMAGE + [token] for token in range(8)]
    prompt = prompts.from_rows(rows, max_new_tokens=2, pad_to=IMAGE + 3)
    read = jax.random.normal(jax.random.key(3), (8, IMAGE + 2, 8))
    cache = layer.init_cache(prompt, 16)
    assert layer.begin is not None
    begin = jax.jit(layer.begin)
    cache = begin(OWN, TARGET, prompt.tokens, read, cache)
    counts = [count for _, count in condenser.counts]
    wanted = [4 - counts[token % 5] for token in range(8)]
    assert cache["first"].tolist() == wanted
    # Control: where padding is text the first operator is chosen as well.
    whole = cache | {"length": jnp.full(8, IMAGE + 3)}
    other = begin(OWN, TARGET, prompt.tokens, read, whole)
    assert other["first"].tolist() != wanted


def test_the_gate_reads_the_targets_own_embeddings():
    """Scaled, where the target's are: nothing of the sum but its size is another."""
    scaled = dataclasses.replace(SMALL, embed_scale=3.0)
    seen = []

    def apply(made, params, features, question, noise=None):
        seen.append(np.asarray(question))
        return right(made, params, features, question, noise)

    right, features = condensers.apply, jnp.ones((12, 11, 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(condensers, "apply", apply)
        visual_layers.read_rows(scaled, CONDENSER, OWN, TARGET, TOKENS, features)
    np.testing.assert_allclose(
        seen[0], 3 * TARGET["embed"][TOKENS[:, IMAGE : IMAGE + 1]]
    )


def test_what_stands_before_the_text_is_never_written_over():
    cache = LAYER.init_cache(PROMPT, 24)
    lanes = jnp.broadcast_to(jnp.arange(3), (6, 3))
    for slots, stored in (
        (lanes + IMAGE - 1, [4, 5]),  # the image takes four
        (lanes + IMAGE, [4, 5, 6]),
        (SlotRun(jnp.full(6, IMAGE - 1)), []),
        (SlotRun(jnp.full(6, IMAGE)), [4, 5, 6]),
        (SlotRun(jnp.full(6, IMAGE), lanes < 2), [4, 5]),
    ):
        query = Query(
            1 + lanes, IMAGE + lanes, slots, Visibility(0 * lanes, IMAGE + lanes + 1),
            jnp.ones((6, 3, 8)),
        )  # fmt: skip
        _, after = LAYER.apply(OWN, TARGET, query, cache)
        written = np.abs(after["layer"][0]["k"]).max((1, 3)) > 0
        for row in written:
            assert np.flatnonzero(row).tolist() == stored


def test_an_operator_without_weights_is_kept_and_loaded(tmp_path):
    """Its dictionary is empty, and files hold none of these."""
    options = OPTIONS | {"prune": 0, "conv": 0, "latents": 0, "text_only": False}
    config = dataclasses.replace(CONFIG, options=options)
    own = objective.start(config, jax.random.key(1), None)
    assert own["condenser"] == {}
    record = export.describe(config, own)
    export.write(tmp_path, "weights", own, record, dtype=np.float32)
    stored, _ = embedded.read_pair(tmp_path, "weights")
    assert "condenser" not in stored
    layer = visual_layers.make_layer(SMALL, config.options.condenser)
    found = [
        decoded(
            methods.eagle, (MODEL, layer), {"model": TARGET, "layer": each}, 0.0,
            PROMPT, branching=(2, 1),
        )
        for each in (own, stored)
    ]  # fmt: skip
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1].num_calls.tolist() == found[1][1].num_calls.tolist()


def test_what_cannot_be_is_refused():
    short = prompts.from_rows([[1] * IMAGE], max_new_tokens=2)
    for call, message in (
        (lambda: LAYER.init_cache(short, 9), "prompts of 6 tokens .* give 7 at least"),
        (lambda: condensers.check(Condenser(IMAGE, (("pool", 4),))),
         "pool=4 must divide num_features=6"),
        (lambda: condensers.check(Condenser(IMAGE, (("latents", 7),))),
         "latents=7 must be at least 1 and at most num_features=6"),
        (lambda: condensers.check(Condenser(IMAGE, (("none", 1),))),
         "none=1 must be 0"),
        (lambda: condensers.check(Condenser(IMAGE, (("crop", 1),))),
         "unknown operator 'crop'"),
        (lambda: condensers.check(Condenser(IMAGE, ())), "one operator at least"),
        (lambda: condensers.check(Condenser(0, (("none", 0),))), "num_features=0 must"),
        (lambda: objective.start(
            dataclasses.replace(CONFIG, row_len=8), jax.random.key(0), None),
         "row_len=8 must be at least 9"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


# Learning.


def test_a_layer_learns_to_draft_behind_images():
    """A few hundred steps on a random target's own answers: fewer calls."""
    import optax

    options = dict(OPTIONS, prune=0, latents=2, text_only=False)
    config = dataclasses.replace(CONFIG, options=options, row_len=IMAGE + 13)
    condenser = config.options.condenser
    layer = visual_layers.make_layer(SMALL, condenser)
    own = objective.start(config, jax.random.key(1), None)
    draw = np.random.default_rng(3)
    rows = [[*draw.integers(0, 8, IMAGE + 1).tolist()] for _ in range(48)]
    prompt = prompts.from_rows(rows, max_new_tokens=12)
    text, _ = decoded(methods.autoregressive, MODEL, TARGET, 1.0, prompt)
    made = objective.noise(config)
    update = optax.adamw(5e-3)

    @jax.jit
    def turn(carry, key):
        own, state = carry
        batch = made({"tokens": jnp.asarray(text[:, : IMAGE + 13])}, key)
        loss = objective.loss(config)
        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(
            own, FROZEN, batch, key, 0
        )
        changes, state = update.update(grads, state, own)
        return (optax.apply_updates(own, changes), state), value

    carry = own, update.init(own)
    keys = jax.random.split(jax.random.key(6), 200)
    (learnt, _), values = jax.lax.scan(turn, carry, keys)
    assert values[-10:].mean() < 0.7 * values[:10].mean()
    fresh = [[*draw.integers(0, 8, IMAGE + 1).tolist()] for _ in range(24)]
    prompt = prompts.from_rows(fresh, max_new_tokens=12)
    calls = []
    for each in (own, learnt):
        params = {"model": TARGET, "layer": each}
        _, stats = decoded(
            methods.eagle, (MODEL, layer), params, 0.0, prompt, branching=(1, 1, 1)
        )
        calls.append(int(stats.num_calls.sum()))
    assert calls[1] < 0.8 * calls[0]
