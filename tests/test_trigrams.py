"""ADED's table and tree: against dictionaries and all paths there are."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_model_free import DOCUMENTS, LAW, TINY, TINY_CONFIG, copies_in_loops, turns_of

from pdecode import decode as decode_module
from pdecode import methods, prompts
from pdecode.data import trigrams
from pdecode.drafters import adaptive
from pdecode.models import transformer

TABLE, FOLLOWERS = trigrams.build(DOCUMENTS, 3)
PARAMS = {"model": LAW, "table": jax.tree.map(jnp.asarray, FOLLOWERS)}


def counted(documents):
    counts = collections.defaultdict(collections.Counter)
    for each in documents:
        for a, b, c in zip(each, each[1:], each[2:]):
            counts[a, b][c] += 1
    return counts


def test_the_table_holds_the_shares_of_what_followed():
    counts = counted(DOCUMENTS)
    assert (np.diff(FOLLOWERS.keys.astype(np.int64)) > 0).all()
    assert len(FOLLOWERS.keys) == len(counts)
    for key, ids, weights in zip(*FOLLOWERS):
        follow = counts[int(key) >> 16, int(key) & 0xFFFF]
        total = sum(follow.values())
        best = sorted(follow, key=lambda c: (-follow[c], c))[:3]
        assert ids.tolist() == best + [-1] * (3 - len(best))
        expected = [follow[c] / total for c in best] + [0.0] * (3 - len(best))
        np.testing.assert_allclose(weights, expected, rtol=1e-6)


def best_paths(weights, text, num_nodes, max_depth):
    """Chances of the likeliest paths behind a text, of all there are."""
    found = {}
    for depth in range(1, max_depth + 1):
        for path in itertools.product(range(4), repeat=depth):
            whole, chance = [*text[-2:], *path], 1.0
            for a, b, c in zip(whole, whole[1:], whole[2:]):
                row = weights.get((a, b), {})
                chance *= row.get(c, 0.0) / max(sum(row.values()), 1e-9)
            if len(text) > 1 and chance > 0:
                found[path] = chance
    return found, sorted(found.values(), reverse=True)[:num_nodes]


@pytest.mark.parametrize("bump, believed", [(0.0, 0.0), (0.4, 0.4), (0.4, 0.0)])
def test_the_tree_is_the_likeliest_of_all(bump, believed):
    """With what the row has gained so far; forgetting that shows."""
    drafter = adaptive.adaptive(TABLE, 6, max_depth=3, window=5, bump=bump)
    num_drafted = num_accepted = wrong = 0
    for row in turns_of(drafter, params=PARAMS):
        weights = {}
        for key, ids, shares in zip(*FOLLOWERS):
            pair = int(key) >> 16, int(key) & 0xFFFF
            weights[pair] = {int(c): float(w) for c, w in zip(ids, shares) if c >= 0}
        for turn in row:
            last = turn.text[-5:]
            for a, b, c in zip(last, last[1:], last[2:]):
                if c in weights.get((a, b), {}):
                    weights[a, b][c] = min(3.0, weights[a, b][c] + believed)
            chances, best = best_paths(weights, turn.text, 6, 3)
            paths = []
            for token, parent in zip(turn.tokens, turn.parents):
                paths.append((*(paths[parent] if parent >= 0 else ()), token))
            paths = [path for path in paths if path[-1] >= 0]
            assert len(set(paths)) == len(paths) == len(best)
            mine = sorted((chances[path] for path in paths), reverse=True)
            wrong += not np.allclose(mine, best, rtol=1e-4)
            num_drafted += len(paths)
            num_accepted += turn.num_accepted
    assert (wrong > 0) == (bump != believed), wrong
    assert num_drafted > 100 and num_accepted > 3


def test_what_the_text_repeats_is_drafted_first():
    """A text of one period, which the corpus thinks unlikely: raised, it is drafted."""
    corpus = [[0, 1, 2, 0, 1, 3, 0, 1, 3, 0, 1, 3]]
    table, followers = trigrams.build(corpus, 3)
    params = {"table": jax.tree.map(jnp.asarray, followers)}
    text = jnp.asarray([[0, 1, 2] * 6 + [0, 1]])
    prefix = adaptive.Prefix(text, jnp.array([20]), None, None)
    firsts = []
    for bump in (0.0, 0.5):
        drafter = adaptive.adaptive(table, 1, max_depth=1, window=16, bump=bump)
        more = drafter.init(params, None, None, prefix, None)
        firsts.append(int(drafter.propose(params, None, more, prefix)[0].tokens[0, 0]))
    assert firsts == [3, 2]


def test_no_copy_of_the_weights_in_the_loop():
    params = {
        "model": transformer.init(TINY_CONFIG, jax.random.key(0)),
        "table": PARAMS["table"],
    }
    prompt = prompts.from_rows([[0, 1, 2], [1, 2], [2, 0], [1]], max_new_tokens=9)
    traced, _ = decode_module.traced(
        methods.aded, (TINY, TABLE), params, prompt, jax.random.key(0),
        max_new_tokens=9, num_nodes=4, max_depth=2,
    )  # fmt: skip
    shape = f"4,{len(FOLLOWERS.keys)},3"
    text = traced.lower().compile().as_text()
    assert f"f32[{shape}]" in text
    found = copies_in_loops(text, shape)
    assert not found, found


def test_bad_tables_are_named():
    with pytest.raises(ValueError, match="hold no three tokens"):
        trigrams.build([[1, 2], []])
    with pytest.raises(ValueError, match="ids must lie in"):
        trigrams.build([[1, 2, 70000]])
    with pytest.raises(ValueError, match="num_kept=0"):
        trigrams.build([[1, 2, 3]], 0)
    with pytest.raises(ValueError, match="max_depth=4 must lie in"):
        adaptive.adaptive(TABLE, 3, max_depth=4, window=5, bump=0.1)
