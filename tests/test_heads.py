"""Medusa's and Hydra's heads: losses, what learns, what a tree of them is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import methods, prompts, rng, trees
from pdecode.contracts import ChainedHeads, DraftHeads, Sampling
from pdecode.decode import run
from pdecode.drafters import heads as drafters
from pdecode.families import speculative
from pdecode.models import hydra_heads, medusa_heads, transformer
from pdecode.models.config import Config
from pdecode.train import TrainConfig, passes
from pdecode.train.objectives import hydra, medusa

SMALL = Config(
    vocab_size=7, width=8, num_layers=1, num_heads=2, num_kv_heads=1, mlp_width=12,
    mask_id=6,
)  # fmt: skip
MODEL = transformer.make_model(SMALL)
TARGET = transformer.init(SMALL, jax.random.key(0))
TOKENS = np.array([[1, 0, 3, 2, 5, 4], [2, 2, 0, 1, 0, 5]], np.int32)
FROZEN = {"target": TARGET}


def moved(params, seed=1):
    """`params` away from where they begin."""
    keys = iter(jax.random.split(jax.random.key(seed), 99))
    return jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), params
    )


MEDUSA = moved(medusa_heads.init(3, 2, 8, 7))
HYDRA = moved(hydra_heads.init(SMALL, 3))
OF_MEDUSA, OF_HYDRA = medusa_heads.make_heads(3, 2), hydra_heads.make_heads(SMALL, 3)


def hidden_of(tokens):
    return np.asarray(passes.hidden(passes.Pass(SMALL), TARGET, jnp.asarray([tokens])))


def silu(x):
    return x / (1 + np.exp(-x))


def logs(raw):
    raw = np.array(raw, np.float64)
    raw[SMALL.mask_id] = -1e9
    raw -= raw.max()
    return raw - np.log(np.exp(raw).sum())


def medusa_by_hand(state, head):
    """Logs of head `head`'s law at one state."""
    own = jax.tree.map(np.asarray, MEDUSA[f"head_{head}"])
    for block in ("block_0", "block_1"):
        state = state + silu(state @ own[block]["kernel"] + own[block]["bias"])
    return logs((np.asarray(TARGET["head"]) + own["change"]["head"]) @ state)


def hydra_by_hand(state, tokens):
    """Logs of the law of the head that has read `tokens`."""
    own = jax.tree.map(np.asarray, HYDRA[f"head_{len(tokens) - 1}"])
    table = np.asarray(TARGET["embed"])
    joined = np.concatenate([state, *(table[token] for token in tokens)])
    inner = joined @ own["inner"]["kernel"] + own["inner"]["bias"]
    value = joined @ own["residual"]["kernel"] + silu(inner)
    return logs((np.asarray(TARGET["head"]) + own["change"]["head"]) @ value)


def config(objective, **options):
    return TrainConfig(
        name="x", model=SMALL, objective=objective, steps=1, warmup_steps=0, row_len=6,
        frozen={"target": "target"}, options=options,
    )  # fmt: skip


CONFIGS = {
    "medusa": config("medusa", num_heads=3, num_blocks=2, head_decay=0.5),
    "hydra": config("hydra", num_heads=3),
    "hydra_target": config("hydra", num_heads=3, labels="target"),
}
PARAMS = {"medusa": MEDUSA, "hydra": HYDRA, "hydra_target": HYDRA}
LOSSES = {"medusa": medusa, "hydra": hydra, "hydra_target": hydra}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_is_the_papers_by_hand(name):
    loss = jax.jit(LOSSES[name].loss(CONFIGS[name]))
    value, aux = loss(PARAMS[name], FROZEN, {"tokens": jnp.asarray(TOKENS)}, None, 0)
    total, rows = 0.0, 0
    for row, tokens in enumerate(TOKENS):
        states = hidden_of(tokens)[0]
        for place in range(5):
            rows += place + 2 < 6
            for head in range(3):
                wanted = place + 2 + head
                assert bool(aux["scored"][row, place, head]) == (wanted < 6)
                if wanted >= 6:
                    continue
                if name == "medusa":
                    found = medusa_by_hand(states[place], head)
                    total += -(0.5 ** (head + 1)) * found[tokens[wanted]]
                else:
                    found = hydra_by_hand(states[place], tokens[place + 1 : wanted])
                    its = logs(np.asarray(TARGET["head"]) @ states[wanted - 1])
                    of_text = found[tokens[wanted]]
                    of_law = (np.exp(its) * found).sum()
                    total += -(of_text if name == "hydra" else of_law)
                np.testing.assert_allclose(
                    aux["nats"][row, place, head], -found[tokens[wanted]], rtol=1e-3
                )
    assert rows == aux["weight"] == 8
    np.testing.assert_allclose(value, total / rows, rtol=1e-4)


@pytest.mark.parametrize("name", ["medusa", "hydra"])
def test_the_heads_learn_and_nothing_else(name):
    batch = {"tokens": jnp.asarray(TOKENS)}

    def of(own, frozen):
        return LOSSES[name].loss(CONFIGS[name])(own, frozen, batch, None, 0)[0]

    mine, its = jax.jit(jax.grad(of, (0, 1)))(PARAMS[name], FROZEN)
    for path, leaf in jax.tree_util.tree_leaves_with_path(mine):
        assert np.abs(leaf).max() > 0, path
    for path, leaf in jax.tree_util.tree_leaves_with_path(its):
        assert np.abs(leaf).max() == 0, path


def test_every_head_begins_as_the_targets_own_prediction():
    state = jax.random.normal(jax.random.key(3), (2, 8))
    expected = state @ TARGET["head"].T
    own = medusa_heads.init(2, 1, 8, 7)
    made = medusa_heads.make_heads(2)
    ahead, each = made.apply(own, state), made.own_heads(own, MODEL.head(TARGET))
    for head in range(2):
        found = ahead[:, head] @ each[head].weight.T
        np.testing.assert_allclose(found, expected, atol=1e-5)
    own = hydra_heads.init(SMALL, 2)
    for index in range(2):
        seen = jnp.ones((2, 1, index + 1), jnp.int32)
        found, head = OF_HYDRA.apply(own, TARGET, index, state[:, None], seen)
        np.testing.assert_allclose(found[:, 0] @ head.weight.T, expected, atol=1e-5)


def test_hydra_that_reads_no_token_is_medusa_of_one_block():
    """Zero columns for what the embeddings would say."""
    own = hydra_heads.init(SMALL, 2)
    kernel = jax.random.normal(jax.random.key(4), (8, 8))
    twin = medusa_heads.init(2, 1, 8, 7)
    for index in range(2):
        zeros = jnp.zeros(((index + 1) * 8, 8))
        own[f"head_{index}"]["inner"]["kernel"] = jnp.concatenate([kernel, zeros])
        twin[f"head_{index}"]["block_0"]["kernel"] = kernel
    state = jax.random.normal(jax.random.key(5), (2, 8))
    ahead = medusa_heads.make_heads(2).apply(twin, state)
    for index in range(2):
        seen = jnp.full((2, 1, index + 1), 3)
        found, _ = OF_HYDRA.apply(own, TARGET, index, state[:, None], seen)
        np.testing.assert_allclose(found[:, 0], ahead[:, index], atol=1e-5)


# What is drafted.

PROMPT = prompts.from_rows([[1, 4, 0], [3, 3], [2, 2, 5, 1, 0]], max_new_tokens=9)
TREE = trees.choices([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 1, 0)])


def rounds(drafter, params, num_rounds=3):
    """(draft, committed tokens of each row) of the first rounds, as numpy."""
    decoder = speculative.draft_verify(
        MODEL, drafter, max_new_tokens=9, sampling=Sampling(1.0)
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


def tree_by_hand(committed, law):
    """Tokens of TREE where `law(state, path)` says a node's children."""
    state, tokens, paths = hidden_of(committed)[0][-2], [], []
    for node, parent in enumerate(TREE.parents):
        nth = TREE.parents[:node].count(parent)
        path = paths[parent] if parent >= 0 else []
        order = np.argsort(-law(state, path), kind="stable")
        tokens.append(int(order[nth]))
        paths.append([*path, tokens[-1]])
    return tokens


@pytest.mark.parametrize("name", ["medusa", "hydra"])
def test_trees_are_those_of_the_state_before_the_root(name):
    if name == "medusa":
        drafter = drafters.tree(MODEL, OF_MEDUSA, TREE)
        params = {"model": TARGET, "heads": MEDUSA}
    else:
        drafter = drafters.chained_tree(MODEL, OF_HYDRA, TREE)
        params = {"model": TARGET, "chained_heads": HYDRA}
    for draft, rows in rounds(drafter, params):
        for row, committed in enumerate(rows):

            def law(state, path, root=committed[-1]):
                if name == "medusa":
                    return medusa_by_hand(state, len(path))
                return hydra_by_hand(state, [root, *path])

            assert draft.tokens[row].tolist() == tree_by_hand(committed, law)


def test_hydra_sees_its_path_and_medusa_does_not():
    """In the tree below, two nodes of one level have children of one rank."""
    here = {}
    for name, drafter, params in (
        ("medusa", drafters.tree(MODEL, OF_MEDUSA, TREE),
         {"model": TARGET, "heads": MEDUSA}),
        ("hydra", drafters.chained_tree(MODEL, OF_HYDRA, TREE),
         {"model": TARGET, "chained_heads": HYDRA}),
    ):  # fmt: skip
        tokens = np.concatenate([draft.tokens for draft, _ in rounds(drafter, params)])
        # Nodes 3 and 5 are the first children of nodes 0 and 1.
        here[name] = (tokens[:, 3] == tokens[:, 5]).all()
    assert here == {"medusa": True, "hydra": False}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", ["medusa", "hydra", "blockwise"])
def test_no_token_is_another(name, temperature):
    role, record, own, sizes = {
        "medusa": ("heads", OF_MEDUSA, MEDUSA, {"branching": (3, 2, 1)}),
        "hydra": ("chained_heads", OF_HYDRA, HYDRA, {"branching": (3, 2, 1)}),
        "blockwise": ("heads", OF_MEDUSA, MEDUSA, {"num_draft": 3}),
    }[name]
    common = {"max_new_tokens": 9, "knobs": {"temperature": temperature}}
    key = jax.random.key(1)
    plain, _ = run(methods.autoregressive, MODEL, TARGET, PROMPT, key, **common)
    ahead, _ = run(
        getattr(methods, name), (MODEL, record), {"model": TARGET, role: own}, PROMPT,
        key, **sizes, **common,
    )  # fmt: skip
    np.testing.assert_array_equal(plain.tokens, ahead.tokens)


def test_a_tree_is_cut_to_the_heads_there_are():
    few, many = (DraftHeads(count, OF_MEDUSA.apply) for count in (2, 9))
    assert drafters.cut(TREE, few).parents == (-1, -1, -1, 0, 0, 1)
    assert drafters.cut(TREE, many) == TREE
    decoder = methods.medusa(MODEL._replace(vocab_size=10), OF_MEDUSA, max_new_tokens=4)
    assert decoder.init.args[0].drafter.num_nodes == 61  # two are of the fourth level
    for make, heads, message in (
        (drafters.tree, DraftHeads(2, OF_MEDUSA.apply), "3 levels needs as many heads"),
        (drafters.chained_tree, ChainedHeads(2, OF_HYDRA.apply), "chained heads are 2"),
        (drafters.tree, OF_MEDUSA, "8 children"),
    ):
        topology = trees.expand((8,)) if "children" in message else TREE
        with pytest.raises(ValueError, match=message):
            make(MODEL, heads, topology)
