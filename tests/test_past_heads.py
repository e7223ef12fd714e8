"""Heads behind a layer over the target's past: Hydra++'s, Clover's and Amphista's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow

from pdecode import methods, prompts, trees
from pdecode.contracts import Sampling
from pdecode.decode import run
from pdecode.drafters import heads as drafters
from pdecode.families import speculative
from pdecode.models import (
    amphista_heads,
    clover_heads,
    hydra_heads,
    medusa_heads,
    transformer,
)
from pdecode.models.config import Config, Experts
from pdecode.rules import relaxed
from pdecode.train import TrainConfig, objectives, passes

SMALL = Config(
    vocab_size=7, width=8, num_layers=2, num_heads=2, num_kv_heads=1, mlp_width=12,
    mask_id=6,
)  # fmt: skip
MODEL = transformer.make_model(SMALL)
TARGET = transformer.init(SMALL, jax.random.key(0))
TABLE, HEAD = np.asarray(TARGET["embed"]), np.asarray(TARGET["head"])
TOKENS = np.array([[1, 0, 3, 2, 5, 4], [2, 2, 0, 1, 0, 5]], np.int32)
FROZEN = {"target": TARGET}
KEY = jax.random.key(1)


def moved(params):
    """`params` away from where they begin."""
    leaves, treedef = jax.tree.flatten(params)
    gen = np.random.default_rng(1)
    return jax.tree.unflatten(
        treedef, [jnp.float32(x + 0.4 * gen.normal(size=x.shape)) for x in leaves]
    )


STARTS = {
    "hydra_plus": hydra_heads.init(SMALL, 3, 2, KEY),
    "clover": clover_heads.init(SMALL, KEY, 2),
    "amphista": amphista_heads.init(SMALL, KEY, 3),
}
OWN = {name: moved(params) for name, params in STARTS.items()}
RECORDS = {
    "hydra_plus": hydra_heads.make_heads(SMALL, 3, 2, True),
    "clover": clover_heads.make_heads(SMALL, 3, 2),
    "amphista": amphista_heads.make_heads(SMALL, 3),
}
ROLES = {"hydra_plus": "chained_heads", "clover": "chained_heads", "amphista": "heads"}
METHODS = {"hydra_plus": "hydra", "clover": "hydra", "amphista": "medusa"}


@jax.jit
def hidden_at(tokens):
    return passes.hidden(passes.Pass(SMALL), TARGET, tokens)


def hidden_of(tokens):
    """States [n, E]; one shape, as what lies behind changes none of them."""
    whole = np.pad(np.asarray(tokens, np.int32), (0, 30 - len(tokens)))
    return np.asarray(hidden_at(whole[None]))[0, : len(tokens)]


def gated(gate, state, token):
    """A gate by its equation, head by head of attention."""
    kernel = {name: gate[name]["kernel"] for name in ("query", "key", "value")}
    query = slow.rms(state, gate["norm"]["weight"]) @ kernel["query"]
    key, value, out = token @ kernel["key"], token @ kernel["value"], []
    for part in (slice(0, 4), slice(4, 8)):
        q, k = query[part], key[part]
        out.append(q @ k / np.sqrt(q @ q * (k @ k)) * value[part])
    return state + np.concatenate(out)


def of_hydra_plus(own, hidden, read, path):
    state = slow.layer(own["past"]["layer_0"], hidden, 1)[-1]
    head = own[f"head_{len(path)}"]
    joined = np.concatenate([state, *TABLE[[*read[-1:], *path]]])
    inner = joined @ head["inner"]["kernel"] + head["inner"]["bias"]
    value = joined @ head["residual"]["kernel"] + slow.silu(inner)
    more = head["block_1"]
    value = value + slow.silu(value @ more["kernel"] + more["bias"])
    return (HEAD + head["change"]["head"]) @ value


def of_clover(own, hidden, read, path):
    past = own["past"]
    stream = np.stack(
        [gated(past["gate"], h, TABLE[token]) for h, token in zip(hidden, read)]
    )
    for name in ("layer_0", "layer_1"):
        stream = slow.layer(past[name], stream, 1)
    state = slow.rms(stream, past["norm"]["weight"])[-1]
    for token in path:
        state = gated(own["gate"], state, TABLE[token])
    if path:
        value = np.concatenate([state, TABLE[path[-1]]]) @ own["next"]["kernel"]
    else:
        value = state @ own["first"]["kernel"]
    return HEAD @ slow.rms(value, own["norm"]["weight"])


def of_amphista(own, hidden, read, path):
    past = own["past"]
    first = slow.layer(past["first"], hidden, 1)
    joined = np.concatenate([first, TABLE[read]], 1) @ past["fc"]["kernel"]
    second, drafting = slow.layer(past["second"], joined, 1), []
    for index in range(3):
        x, head = (first if index < 2 else second)[-1], own[f"head_{index}"]
        x = x + slow.silu(x @ head["kernel"] + head["bias"])
        drafting.append(x + own["positions"][index])
    seen = slow.layer(own["encoder"], np.stack(drafting), full=True)
    return HEAD @ seen[len(path)]


BY_HAND = {"hydra_plus": of_hydra_plus, "clover": of_clover, "amphista": of_amphista}


def by_hand(name, committed, path):
    """Logs of the law behind committed tokens, the root last, and a drafted path."""
    own, read = jax.tree.map(np.asarray, OWN[name]), list(committed[1:])
    hidden = hidden_of(committed)[:-1]
    return slow.logs(BY_HAND[name](own, hidden, read, list(path)), SMALL.mask_id)


def config(name, model=SMALL, **options):
    more = {"hydra_plus": {"num_layers": 2, "prefix_attention": True}}
    return TrainConfig(
        name="x", model=model, steps=1, warmup_steps=0, row_len=6,
        objective="hydra" if name == "hydra_plus" else name,
        frozen={"target": "target"},
        options={"num_heads": 3, **more.get(name, {}), **options},
    )  # fmt: skip


# By name: options, what each head's loss is multiplied by.
LOSSES = {
    "hydra_plus": ({"labels": "target"}, [1, 1, 1]),
    "clover": ({"head_decay": 0.5, "feature_weight": 0, "law_weight": 2}, [2, 1, 0.5]),
    "amphista": ({"head_decay": 0.5}, [0.5, 0.25, 0.125]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_papers_by_hand(name):
    options, rates = LOSSES[name]
    made = config(name, **options)
    loss = jax.jit(objectives.find(made.objective).loss(made))
    batch = {"tokens": jnp.asarray(TOKENS)}
    value, aux = loss(OWN[name], FROZEN, batch, None, 0)
    total, rows = 0.0, 0
    for row, tokens in enumerate(TOKENS):
        states = hidden_of(tokens)
        for place in range(5):
            rows += place + 2 < 6
            for head in range(3):
                wanted = place + 2 + head
                assert bool(aux["scored"][row, place, head]) == (wanted < 6)
                if wanted >= 6:
                    continue
                logs = by_hand(name, tokens[: place + 2], tokens[place + 2 : wanted])
                law = np.exp(slow.logs(HEAD @ states[wanted - 1], SMALL.mask_id))
                of_text = logs[tokens[wanted]]
                total -= rates[head] * (
                    of_text if name == "amphista" else (law * logs).sum()
                )
                np.testing.assert_allclose(
                    aux["nats"][row, place, head], -of_text, rtol=1e-3, atol=1e-4
                )
    assert rows == aux["weight"] == 8
    np.testing.assert_allclose(value, total / rows, rtol=1e-4)


def test_clovers_states_are_drawn_to_the_targets():
    """The term of smooth L1 by itself, from the states that the heads answer with."""
    made = config("clover", law_weight=0, feature_weight=3, head_decay=0.5)
    batch = {"tokens": jnp.asarray(TOKENS)}
    clover = objectives.find("clover")
    value, _ = jax.jit(clover.loss(made))(OWN["clover"], FROZEN, batch, None, 0)
    heads, total = RECORDS["clover"], 0.0
    for tokens in TOKENS:
        true = hidden_of(tokens)
        for place in range(4):
            query = drafters.past.pairs(
                jnp.asarray(tokens[None, 1 : place + 2]), jnp.ones(1, jnp.int32),
                jnp.asarray(true[None, : place + 1]),
            )._replace(slots=None)  # fmt: skip
            query = query._replace(
                visible=query.visible._replace(
                    start=query.visible.start * 0, stop=query.visible.stop - 1
                )
            )
            state, _ = heads.past.apply(OWN["clover"]["past"], TARGET, query, None)
            for head in range(min(3, 4 - place)):
                seen = jnp.asarray(tokens[None, None, place + 1 : place + 2 + head])
                found, _ = heads.apply(OWN["clover"], TARGET, head, state[:, -1:], seen)
                gap = np.abs(np.asarray(found[0, 0]) - true[place + 1 + head])
                far = np.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean()
                total += 3 * 0.5**head * far / 8
    np.testing.assert_allclose(value, total, rtol=1e-4)


@pytest.mark.parametrize("name", OWN)
def test_the_heads_learn_and_nothing_else(name):
    made, batch = config(name), {"tokens": jnp.asarray(TOKENS)}

    def of(own, frozen):
        loss = objectives.find(made.objective).loss(made)
        return loss(own, frozen, batch, None, 0)[0]

    mine, its = jax.jit(jax.grad(of, (0, 1)))(OWN[name], FROZEN)
    for path, leaf in jax.tree_util.tree_leaves_with_path(mine):
        assert np.abs(leaf).max() > 0, path
    for path, leaf in jax.tree_util.tree_leaves_with_path(its):
        assert np.abs(leaf).max() == 0, path


# What is drafted, against a drafter that keeps nothing and reads everything anew.

PROMPT = prompts.from_rows([[1, 4, 0], [3], [2, 2, 5, 1, 0, 4]], max_new_tokens=9)
LONG = PROMPT._replace(max_new_tokens=jnp.full(3, 20))
TREE = trees.choices([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 1, 0)])


def drafter_of(name):
    make = drafters.tree if name == "amphista" else drafters.chained_tree
    return make(MODEL, RECORDS[name], TREE)


def tree_by_hand(name, committed):
    tokens, paths = [], []
    for node, parent in enumerate(TREE.parents):
        nth = TREE.parents[:node].count(parent)
        path = paths[parent] if parent >= 0 else []
        order = np.argsort(-by_hand(name, committed, path), kind="stable")
        tokens.append(int(order[nth]))
        paths.append([*path, tokens[-1]])
    return tokens


def wrong_drafts(name, drafter):
    """Drafts that are not those by hand, and how many tokens a round committed."""
    decoder = speculative.draft_verify(
        MODEL, drafter, max_new_tokens=20, sampling=Sampling(1.0),
        acceptance=relaxed.typical(0.15, 1.0),
    )  # fmt: skip
    params = {"model": TARGET, ROLES[name]: OWN[name]}
    wrong, sizes = 0, []
    for draft, rows in slow.rounds(decoder, params, LONG, jax.random.key(5)):
        for row, committed in enumerate(rows):
            if len(committed) > 1:  # nothing stands before the first token
                wrong += draft.tokens[row].tolist() != tree_by_hand(name, committed)
        sizes.append([len(row) for row in rows])
    return wrong, np.diff(sizes, axis=0)


@pytest.mark.parametrize("name", OWN)
def test_trees_are_those_of_a_drafter_that_keeps_nothing(name):
    wrong, sizes = wrong_drafts(name, drafter_of(name))
    assert wrong == 0 and sizes.max() > 2  # several were accepted at once


def test_a_past_that_is_not_kept_is_caught():
    """Negative control: what was committed is not waited for, but the last of it."""
    right = drafter_of("clover")

    def observe(params, keys, state, round):
        after = right.observe(params, keys, state, round)
        return after._replace(features=after.features[:, ::-1])

    assert wrong_drafts("clover", right._replace(observe=observe))[0] > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", OWN)
def test_no_token_is_another(name, temperature):
    common = {"max_new_tokens": 9, "knobs": {"temperature": temperature}}
    key, params = jax.random.key(1), {"model": TARGET, ROLES[name]: OWN[name]}
    plain, _ = run(methods.autoregressive, MODEL, TARGET, PROMPT, key, **common)
    ahead, stats = run(
        getattr(methods, METHODS[name]), (MODEL, RECORDS[name]), params, PROMPT, key,
        branching=(3, 2, 1), **common,
    )  # fmt: skip
    np.testing.assert_array_equal(plain.tokens, ahead.tokens)
    # A call of the layers a draft.
    assert (stats.num_draft_calls == stats.num_calls).all()


def test_another_rule_changes_the_tokens():
    """Negative control: whatever is possible passes."""
    key, params = jax.random.key(1), {"model": TARGET, "heads": OWN["amphista"]}
    plain, _ = run(
        methods.autoregressive, MODEL, TARGET, PROMPT, key, max_new_tokens=9,
        knobs={"temperature": 1.0},
    )  # fmt: skip
    lossy = speculative.draft_verify(
        MODEL, drafter_of("amphista"), max_new_tokens=9, sampling=Sampling(1.0),
        acceptance=relaxed.typical(0.0, 0.0),
    )  # fmt: skip
    *_, (_, rows) = slow.rounds(lossy, params, PROMPT, key, 6)
    its = [np.asarray(plain.tokens)[row, : len(each)] for row, each in enumerate(rows)]
    assert any(list(mine) != each for mine, each in zip(its, rows))


# Where they begin, and what they are without their own parts.


@pytest.mark.parametrize("name", STARTS)
def test_every_head_begins_with_the_targets_own_best_token(name):
    hidden = jnp.asarray(hidden_of(TOKENS[0]))[None]
    own, record = STARTS[name], RECORDS[name]
    query = drafters.past.pairs(
        jnp.asarray(TOKENS[:1, 1:]), jnp.zeros(1, jnp.int32), hidden[:, :-1]
    )
    query = query._replace(slots=None)
    state, _ = record.past.apply(own["past"], TARGET, query, None)
    expected = np.argmax(hidden[0, :-1] @ HEAD.T, -1)
    for index in range(3):
        if name == "amphista":
            found, weight = record.apply(own, state)[:, :, index], HEAD
        else:
            seen = jnp.ones((1, 5, index + 1), jnp.int32)
            found, head = record.apply(own, TARGET, index, state, seen)
            weight = head.weight
        np.testing.assert_array_equal(np.argmax(found[0] @ weight.T, -1), expected)


def test_clovers_layers_begin_as_the_targets_last_one():
    own = clover_heads.init(SMALL, KEY, 2, TARGET)
    for name in ("layer_0", "layer_1"):
        jax.tree.map(
            np.testing.assert_array_equal, own["past"][name], TARGET["layer_1"]
        )


@pytest.mark.parametrize(
    ("field", "value"), [("experts", Experts(4, 2, 12)), ("post_norms", True)]
)
def test_clover_copies_no_layer_that_is_not_of_its_kind(field, value):
    model = dataclasses.replace(SMALL, **{field: value})
    run, target = config("clover", model=model), transformer.init(model, KEY)
    start = objectives.of(run).start
    with pytest.raises(ValueError, match=f"model.{field}=.*leave start_from out"):
        start(run, KEY, target)
    own = start(run, KEY, None)  # the way out
    loss = jax.jit(objectives.of(run).loss(run))
    batch = {"tokens": jnp.asarray(TOKENS)}
    assert np.isfinite(loss(own, {"target": target}, batch, KEY, 0)[0])


def test_amphista_without_stages_and_encoder_is_medusa():
    own = {
        **STARTS["amphista"],
        **{k: OWN["amphista"][k] for k in ("head_0", "head_1")},
    }
    twin = medusa_heads.init(2, 1, 8, 7)
    for head in ("head_0", "head_1"):
        twin[head]["block_0"] = own[head]
    state = jax.random.normal(KEY, (2, 8))
    expected = medusa_heads.make_heads(2).apply(twin, state)
    found = RECORDS["amphista"].apply(own, jnp.concatenate([state, state], -1))
    np.testing.assert_allclose(found[:, :2], expected, atol=1e-5)


def test_amphistas_slots_are_told_apart_by_their_places_alone():
    """Heads in another order: without places so are the results, with them not."""
    own = dict(OWN["amphista"])
    state = jnp.tile(jax.random.normal(KEY, (2, 8)), (1, 2))  # both stages the same
    order = [2, 0, 1]
    turned = {f"head_{k}": own[f"head_{old}"] for k, old in enumerate(order)}
    for places, is_same in ((jnp.zeros((3, 8)), True), (own["positions"], False)):
        own["positions"] = places
        one = RECORDS["amphista"].apply(own, state)
        other = RECORDS["amphista"].apply({**own, **turned}, state)
        gap = np.abs(np.asarray(one)[:, order] - other).max()
        assert (gap < 1e-5) == is_same


def test_what_does_not_fit_is_refused():
    odd = Config(vocab_size=7, width=9, num_layers=1, num_heads=2, head_dim=4)
    for call, message in (
        (lambda: clover_heads.make_heads(odd, 1), "width=9 of .* no multiple"),
        (lambda: clover_heads.make_heads(SMALL, 1, 0), "num_layers=0"),
        (lambda: amphista_heads.make_heads(SMALL, 0), "num_heads=0"),
        (lambda: hydra_heads.make_heads(SMALL, 2, 0), "num_layers=0"),
        (
            lambda: methods.nar(
                MODEL, RECORDS["amphista"], max_new_tokens=4, row_length=2
            ),
            "Amphista's heads have a layer before them",
        ),
        (lambda: config("amphista", labels="x"), "labels='x' must be one of"),
        (lambda: config("clover", feature_weight=0, law_weight=0), "nothing is learnt"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
