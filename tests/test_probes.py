"""Probes that guess ahead: of PPD, SPACE and hidden transfer; losses and drafts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import cache as caches
from pdecode import methods, prompts, rng, trees
from pdecode.contracts import PromptTokens, Query, Sampling, SlotRun, Visibility
from pdecode.decode import run
from pdecode.drafters import probes
from pdecode.families import speculative
from pdecode.models import transfers, transformer
from pdecode.models.config import Config
from pdecode.train import TrainConfig, losses
from pdecode.train.objectives import hidden_transfer, ppd, space

SMALL = Config(
    vocab_size=7, width=8, num_layers=2, num_heads=2, num_kv_heads=1, mlp_width=12,
    mask_id=6,
)  # fmt: skip
MODEL = transformer.make_model(SMALL)
TARGET = transformer.init(SMALL, jax.random.key(0))
# Each says something of its own, and of the text before it.
CHANGE = 0.5 * jax.random.normal(jax.random.key(1), (3, 8))
PARAMS = {"model": TARGET, "prompt_tokens": {"change": CHANGE}}
RECORD = PromptTokens(3, token=2)
TOKENS = np.array([[1, 0, 3, 2, 5, 4, 0], [2, 2, 0, 1, 0, 5, 3]], np.int32)


def logs(raw):
    raw = np.array(raw, np.float64)
    raw[SMALL.mask_id] = -1e9
    raw -= raw.max()
    return raw - np.log(np.exp(raw).sum())


ROOM = 24  # of a text and prompt tokens behind it; what follows is not seen


@jax.jit
def states(tokens, extra):
    """Hidden states [R, E] of a causal text, layer by layer."""
    place = jnp.arange(ROOM, dtype=jnp.int32)[None]
    visible = Visibility(jnp.zeros_like(place), place + 1)
    query = Query(tokens[None], place, None, visible, extra[None])
    stream = transformer.embedded(SMALL, TARGET, query)
    for layer in range(2):
        block = TARGET[f"layer_{layer}"]
        stream, _ = transformer.one_layer(SMALL, layer, block, query, stream, None)
    return transformer.final_norm(SMALL, TARGET, stream)[0]


def laws_behind(text, num, is_mask=False):
    """Logs of the target's law behind `text`, and at each of `num` probes."""
    tokens, extra = np.zeros(ROOM, np.int32), np.zeros((ROOM, 8), np.float32)
    size = len(text) + num
    tokens[:size] = [*text, *[SMALL.mask_id if is_mask else RECORD.token] * num]
    if not is_mask:
        extra[len(text) : size] = CHANGE[:num]
    found = np.asarray(states(tokens, extra))[len(text) - 1 : size]
    return [logs(np.asarray(TARGET["head"]) @ state) for state in found]


CONFIG = TrainConfig(
    name="x", model=SMALL, objective="ppd", steps=1, warmup_steps=0, row_len=7,
    frozen={"target": "target"},
    options={"num_tokens": 3, "token": 2, "decay": 0.5, "num_places": 3},
)  # fmt: skip
PLACES = np.array([[0, 2, 4], [3, 1, 4]], np.int32)
BATCH = {"tokens": jnp.asarray(TOKENS), "places": jnp.asarray(PLACES)}
FROZEN = {"target": TARGET}


def test_the_loss_is_the_papers_by_hand():
    value, aux = jax.jit(ppd.loss(CONFIG))({"change": CHANGE}, FROZEN, BATCH, None, 0)
    total, nats = 0.0, np.zeros((2, 6, 3))
    for row, text in enumerate(TOKENS.tolist()):
        for place in PLACES[row]:
            said = laws_behind(text[: place + 1], 3)[1:]
            for nth, mine in enumerate(said):
                stands = place + 2 + nth
                if stands >= len(text):
                    continue
                its = laws_behind(text[:stands], 0)[0]
                chance = np.exp(its)
                total += 0.5**nth / 3 * (chance * (its - mine))[chance > 0].sum()
                nats[row, place, nth] = -mine[text[stands]]
    np.testing.assert_allclose(value, total / 6, rtol=1e-4)
    np.testing.assert_allclose(aux["nats"] * aux["scored"], nats, rtol=1e-3, atol=1e-4)
    assert aux["weight"] == 6 and aux["scored"].sum() == (nats != 0).sum()


def test_a_divergence_of_equal_laws_is_none():
    raw = jax.random.normal(jax.random.key(2), (3, 5)).at[:, 1].set(-1e9)
    law = jax.nn.softmax(raw)
    same = losses.divergence(-jax.nn.log_softmax(raw), law)
    np.testing.assert_allclose(same, 0, atol=1e-6)
    assert (losses.divergence(-jax.nn.log_softmax(raw[::-1]), law)[::2] > 0.01).all()


def test_prompt_tokens_learn_and_nothing_else():
    def of(own, frozen):
        return ppd.loss(CONFIG)(own, frozen, BATCH, None, 0)[0]

    mine, its = jax.jit(jax.grad(of, (0, 1)))({"change": CHANGE}, FROZEN)
    assert (np.abs(mine["change"]).max(1) > 0).all()
    for path, leaf in jax.tree_util.tree_leaves_with_path(its):
        assert np.abs(leaf).max() == 0, path


def test_places_of_a_row_are_different_ones_with_a_guess():
    noise = ppd.noise(CONFIG)(BATCH, jax.random.key(0))["places"]
    assert noise.shape == (2, 3) and noise.max() <= 4
    many = ppd.noise(CONFIG)({"tokens": jnp.zeros((99, 7), int)}, jax.random.key(0))
    ordered = np.sort(many["places"], 1)
    assert (np.diff(ordered) > 0).all() and set(ordered.ravel()) == set(range(5))


# SPACE.

SPACE = dataclasses.replace(
    CONFIG, objective="space", frozen={}, options={"num_masks": 3, "mask_weight": 0.5}
)


def test_the_loss_of_masks_is_the_papers_by_hand():
    value, aux = jax.jit(space.loss(SPACE))(TARGET, {}, BATCH, None, 0)
    total, weight, nats = 0.0, 0.0, np.zeros((2, 6, 4))
    for row, text in enumerate(TOKENS.tolist()):
        for place in range(6):
            said = laws_behind(text[: place + 1], 3, is_mask=True)
            for nth, mine in enumerate(said):
                is_asked = nth == 0 or place in PLACES[row]
                if not is_asked or place + 1 + nth >= len(text):
                    continue
                nats[row, place, nth] = -mine[text[place + 1 + nth]]
                rate = 0.5 if nth else 1.0
                total, weight = total + rate * nats[row, place, nth], weight + rate
    np.testing.assert_allclose(value, total / weight, rtol=1e-4)
    np.testing.assert_allclose(aux["nats"] * aux["scored"], nats, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(aux["weight"], weight)
    assert aux["scored"].sum() == (nats != 0).sum()


def test_all_of_the_model_learns_and_masks_change_no_text():
    def of(params, weight):
        options = {"num_masks": 3, "mask_weight": weight}
        config = dataclasses.replace(SPACE, options=options)
        return space.loss(config)(params, {}, BATCH, None, 0)[0]

    grads = jax.jit(jax.grad(of), static_argnums=1)(TARGET, 1.0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(leaf).max() > 0, path
    assert np.abs(grads["embed"][SMALL.mask_id]).max() > 0
    plain = jax.jit(lambda: losses.next_token_loss(SMALL, TARGET, BATCH["tokens"])[0])()
    np.testing.assert_allclose(of(TARGET, 0.0), plain.mean(), rtol=1e-5)


# Hidden transfer.

BELOW = (1, 0)
MAPS = jnp.eye(8)[None] + 0.5 * jax.random.normal(jax.random.key(5), (2, 8, 8))
TRANSFER = dataclasses.replace(
    CONFIG, objective="hidden_transfer", options={"layers": BELOW, "num_places": 3}
)


@functools.partial(jax.jit, static_argnums=0)
def layer_of(layer, stream, places):
    """A causal layer of the target on lanes [R, E] at positions."""
    place = jnp.arange(ROOM, dtype=jnp.int32)[None]
    visible = Visibility(jnp.zeros_like(place), place + 1)
    query = Query(jnp.zeros_like(place), places[None], None, visible)
    block = TARGET[f"layer_{layer}"]
    return transformer.one_layer(SMALL, layer, block, query, stream[None], None)[0][0]


def laws_of_states(text, num, below=BELOW):
    """Logs of the target's law behind `text`, and at each pseudo state, one by one."""
    stream, states, size = np.asarray(TARGET["embed"])[text], {}, len(text)
    for layer in range(3):
        for k in range(num):
            if below[k] == layer:
                states[k] = stream[-1] @ np.asarray(MAPS[k])
        if layer == 2:
            break
        there = sorted(states)
        lanes, places = np.zeros((ROOM, 8), np.float32), np.zeros(ROOM, np.int32)
        lanes[: size + len(there)] = [*stream, *(states[k] for k in there)]
        places[: size + len(there)] = [*range(size), *(size + k for k in there)]
        found = np.asarray(layer_of(layer, lanes, places))
        stream = found[:size]
        states = {k: found[size + i] for i, k in enumerate(there)}
    last = np.array([stream[-1], *(states[k] for k in range(num))])
    last = last / np.sqrt((last**2).mean(-1, keepdims=True) + 1e-6)
    last = last * np.asarray(TARGET["norm"]["weight"])
    return [logs(np.asarray(TARGET["head"]) @ state) for state in last]


@pytest.mark.parametrize("below", [BELOW, (2, 1)])
def test_the_loss_of_pseudo_states_is_the_papers_by_hand(below):
    """Also above the last layer, where a map is a linear head of Medusa's."""
    config = dataclasses.replace(TRANSFER, options={"layers": below, "num_places": 3})
    loss = jax.jit(hidden_transfer.loss(config))
    value, aux = loss({"maps": MAPS}, FROZEN, BATCH, None, 0)
    total, nats = 0.0, np.zeros((2, 6, 2))
    for row, text in enumerate(TOKENS.tolist()):
        for place in PLACES[row]:
            for nth, mine in enumerate(laws_of_states(text[: place + 1], 2, below)[1:]):
                stands = place + 2 + nth
                if stands >= len(text):
                    continue
                its = laws_behind(text[:stands], 0)[0]
                total += (np.exp(its) * (its - mine))[:6].sum() / 2
                nats[row, place, nth] = -mine[text[stands]]
    np.testing.assert_allclose(value, total / 6, rtol=1e-4)
    np.testing.assert_allclose(aux["nats"] * aux["scored"], nats, rtol=1e-3, atol=1e-4)


def test_maps_learn_and_nothing_else():
    def of(own, frozen):
        return hidden_transfer.loss(TRANSFER)(own, frozen, BATCH, None, 0)[0]

    mine, its = jax.jit(jax.grad(of, (0, 1)))({"maps": MAPS}, FROZEN)
    assert (np.abs(mine["maps"]).max((1, 2)) > 0).all()
    for path, leaf in jax.tree_util.tree_leaves_with_path(its):
        assert np.abs(leaf).max() == 0, path


def test_layers_are_computed_again_where_asked():
    """Remat, a layer at a time, changes no slope."""

    def of(config):
        loss = hidden_transfer.loss(config)
        return lambda own: loss(own, FROZEN, BATCH, None, 0)[0]

    again, own = of(dataclasses.replace(TRANSFER, remat=True)), {"maps": MAPS}
    remat = jax.make_jaxpr(jax.checkpoint(jnp.sin))(1.0).eqns[0].primitive
    for made, count in ((of(TRANSFER), 0), (again, SMALL.num_layers)):
        steps = jax.make_jaxpr(made)(own).eqns
        assert sum(each.primitive is remat for each in steps) == count
    mine = [jax.jit(jax.grad(made))(own)["maps"] for made in (of(TRANSFER), again)]
    np.testing.assert_allclose(*mine, rtol=1e-4, atol=1e-6)


# What is drafted, against lists of tokens.

PROMPT = prompts.from_rows([[1, 4, 0], [3], [2, 2, 5, 1, 0]], max_new_tokens=9)
RATES = ((0.5, 0.2, 0.1), (0.4, 0.2, 0.1), (0.3, 0.1, 0.1))
SPARSE = probes.sparse(RATES, 14)
FULL = probes.full(trees.expand((2, 1, 1)))
CHAIN = probes.full(trees.chain(3))


def drafter_of(forest):
    return probes.probed(MODEL, forest, 2, lambda all: all["prompt_tokens"]["change"])


def rounds(drafter, model=MODEL, params=PARAMS, num_rounds=5):
    """(draft, committed tokens of each row) of the first rounds, as numpy."""
    decoder = speculative.draft_verify(
        model, drafter, max_new_tokens=9, sampling=Sampling(1.0)
    )
    keys = rng.row_keys(jax.random.key(3), PROMPT.row_ids)
    state, _ = jax.jit(decoder.init)(params, keys, PROMPT)

    @jax.jit
    def turn(state):
        draft, _ = drafter.propose(params, keys, state.drafter, state.prefix)
        return draft, decoder.step(params, keys, state)[0]

    for _ in range(num_rounds):
        lengths, tokens = state.prefix.length.tolist(), np.asarray(state.prefix.tokens)
        draft, state = turn(state)
        rows = [row[:length].tolist() for row, length in zip(tokens, lengths)]
        yield jax.tree.map(np.asarray, draft), rows


def paths_of(draft, row, num_nodes):
    """Tokens from the root's child to each node that is there."""
    found = []
    for token, parent in zip(draft.tokens[row, :num_nodes], draft.parents[row]):
        above = found[parent] if parent >= 0 else ()
        found.append((*above, int(token)))
    return [path for path in found if min(path) >= 0]


def differences(forest, drafter, laws=laws_behind, **how):
    """Rounds in which the draft is not what the prompt tokens say, and nodes seen."""
    wrong, nodes, drafted = 0, 0, None
    num_nodes = drafter.num_nodes - drafter.num_probes
    known = None  # of each row: how many prompt tokens stood behind its root's parent
    before = None
    for draft, rows in rounds(drafter, **how):
        if known is None:
            known = [0] * len(rows)
        else:
            for row, committed in enumerate(rows):
                added = committed[
                    len(before[row]) : -1
                ]  # accepted, less the next token
                paths = paths_of(drafted, row, num_nodes)
                lane = 1 + paths.index(tuple(added)) if added else 0
                known[row] = forest.counts[known[row]][lane]
        for row, committed in enumerate(rows):
            said = laws(committed[:-1], known[row])[1:] if known[row] else []
            best = [np.argsort(-each, kind="stable") for each in said]
            topology = forest.topologies[known[row]]
            expected: list[tuple] = []
            for node, parent in enumerate(topology.parents):
                nth = topology.parents[:node].count(parent)
                above = expected[parent] if parent >= 0 else ()
                expected.append((*above, int(best[len(above)][nth])))
            found = paths_of(draft, row, num_nodes)
            wrong += expected != found
            nodes += len(found)
        drafted, before = draft, rows
    return wrong, nodes


@pytest.mark.parametrize(
    "forest", [SPARSE, FULL, CHAIN], ids=["sparse", "full", "chain"]
)
def test_drafts_are_what_prompt_tokens_behind_the_root_said(forest):
    wrong, nodes = differences(forest, drafter_of(forest))
    assert wrong == 0 and nodes > 20


def test_the_prompt_tokens_of_another_node_are_caught():
    """Negative control: those behind the old root, whatever was accepted."""
    right = drafter_of(FULL)

    def observe(params, keys, state, round):
        return right.observe(params, keys, state, round._replace(path=0 * round.path))

    wrong, nodes = differences(FULL, right._replace(observe=observe))
    assert wrong > 0 and nodes > 20, (wrong, nodes)


def laws_of_masks(text, num):
    return laws_behind(text, num, is_mask=True)


def test_drafts_of_masks_are_what_masks_behind_the_root_said():
    drafter = probes.probed(MODEL, CHAIN, SMALL.mask_id)
    wrong, nodes = differences(CHAIN, drafter, laws_of_masks)
    assert wrong == 0 and nodes > 20
    assert differences(CHAIN, drafter)[0] > 0  # control: other probes say others


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_masks_change_no_token(temperature):
    sizes = {"max_new_tokens": 9, "knobs": {"temperature": temperature}}
    key = jax.random.key(1)
    plain, _ = run(methods.autoregressive, MODEL, TARGET, PROMPT, key, **sizes)
    ahead, stats = run(methods.space, MODEL, TARGET, PROMPT, key, num_draft=3, **sizes)
    np.testing.assert_array_equal(plain.tokens, ahead.tokens)
    assert stats.num_calls.sum() < 27 and stats.num_draft_calls.sum() == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_is_another(temperature):
    """And the control: nodes that see what stands behind the root are caught."""
    sizes = {"max_new_tokens": 9, "knobs": {"temperature": temperature}}
    key = jax.random.key(1)
    plain, _ = run(methods.autoregressive, MODEL, TARGET, PROMPT, key, **sizes)
    how = {"num_lanes": 14, "rates": (50, 20, 10)}
    ahead, stats = run(
        methods.ppd, (MODEL, RECORD), PARAMS, PROMPT, key, **how, **sizes
    )
    np.testing.assert_array_equal(plain.tokens, ahead.tokens)
    assert stats.num_calls.sum() < 27 and stats.num_draft_calls.sum() == 0

    def apply(params, query, cache):
        among = query.visible.among
        if among is not None:
            visible = query.visible._replace(among=jnp.ones_like(among))
            query = query._replace(visible=visible)
        return MODEL.apply(params, query, cache)

    seen = MODEL._replace(apply=apply)
    other, _ = run(methods.ppd, (seen, RECORD), PARAMS, PROMPT, key, **how, **sizes)
    assert (np.asarray(plain.tokens) != np.asarray(other.tokens)).any()


WITH_MAPS = {"model": TARGET, "transfer": {"maps": MAPS}}
OF_MAPS = transfers.make_transfer(SMALL, BELOW)


def test_drafts_of_pseudo_states_are_what_they_said():
    plan = methods.hidden_transfer(
        MODEL, OF_MAPS, max_new_tokens=9, branching=(2, 2)
    ).init.args[0]
    how = {"model": plan.model, "params": {**WITH_MAPS, "model": WITH_MAPS}}
    forest = probes.full(trees.expand((2, 2)))
    wrong, nodes = differences(forest, plan.drafter, laws_of_states, **how)
    assert wrong == 0 and nodes > 20
    # Control: joined in another layer they say something else.
    assert differences(
        forest, plan.drafter, lambda text, num: laws_of_states(text, num, (1, 1)), **how
    )[0] > 0  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_pseudo_states_change_no_token(temperature):
    sizes = {"max_new_tokens": 9, "knobs": {"temperature": temperature}}
    key = jax.random.key(1)
    plain, _ = run(methods.autoregressive, MODEL, TARGET, PROMPT, key, **sizes)
    ahead, stats = run(
        methods.hidden_transfer, (MODEL, OF_MAPS), WITH_MAPS, PROMPT, key,
        branching=(3, 2), **sizes,
    )  # fmt: skip
    np.testing.assert_array_equal(plain.tokens, ahead.tokens)
    assert stats.num_calls.sum() < 27 and stats.num_draft_calls.sum() == 0


def test_what_a_forest_is_worth_is_what_it_accepts():
    """Against rounds played out one by one."""
    draw, state, accepted, rounds = np.random.default_rng(0), 0, 0, 20_000
    for _ in range(rounds):
        topology, node, depth = SPARSE.topologies[state], -1, 0
        while depth < 3:
            nth = int((draw.random() > np.cumsum(RATES[depth])).sum())
            below = [n for n, p in enumerate(topology.parents) if p == node]
            if nth >= len(below):
                break
            node, depth = below[nth], depth + 1
        accepted += depth
        state = SPARSE.counts[state][node + 1]
    assert abs(probes.worth(SPARSE, RATES) - accepted / rounds) < 0.02


def test_a_sparse_forest_keeps_to_its_room_and_is_worth_more_than_a_full_one():
    lanes = [
        each.num_nodes + sum(counts)
        for each, counts in zip(SPARSE.topologies, SPARSE.counts)
    ]
    assert max(lanes) <= 14
    # Chains of three with all their prompt tokens: 3 nodes and 12 of these.
    assert probes.worth(SPARSE, RATES) > probes.worth(CHAIN, RATES)
    assert SPARSE.topologies[0].num_nodes == 0 and SPARSE.num_probes == 3


def test_what_cannot_be_is_refused():
    with pytest.raises(
        ValueError, match=r"layers=\(3,\) must each lie in \[0, num_layers=2"
    ):
        transfers.make_transfer(SMALL, (3,))
    with pytest.raises(ValueError, match=r"branching=\(1, 1, 1\), but transfer of"):
        methods.hidden_transfer(MODEL, OF_MAPS, max_new_tokens=4, branching=(1, 1, 1))
    with pytest.raises(ValueError, match="has no mask id"):
        methods.space(MODEL._replace(mask_id=None), max_new_tokens=4)
    for kwargs, message in (
        ({"num_lanes": 3}, "num_lanes=3 must be above 3"),
        ({"branching": (1, 1, 1, 1)}, "more levels than 3 prompt tokens"),
        ({"branching": (8,)}, "8 children"),
    ):
        with pytest.raises(ValueError, match=message):
            methods.ppd(MODEL, RECORD, max_new_tokens=4, **kwargs)
    with pytest.raises(ValueError, match="token=9"):
        methods.ppd(MODEL, RECORD._replace(token=9), max_new_tokens=4)
    with pytest.raises(ValueError, match=r"token=9 must be an id of model"):
        ppd.start(dataclasses.replace(CONFIG, options={"token": 9}), None, None)


def test_a_call_of_more_lanes_than_slots_stores_those_that_may_be():
    leaf = jnp.zeros((2, 1, 5, 1))
    stored = jnp.asarray([[True, True] + [False] * 6] * 2)
    run = SlotRun(jnp.asarray([1, 4], jnp.int32), stored)
    values = jnp.arange(1.0, 17.0).reshape(2, 1, 8, 1)
    found = np.asarray(caches.write(leaf, run, values))[:, 0, :, 0]
    assert found.tolist() == [[0, 1, 2, 0, 0], [0, 0, 0, 0, 9]]
    np.testing.assert_array_equal(
        caches.write_slices(leaf, run, values)[:, 0, :, 0], found
    )
