"""Token trees: the best ones against a search of all, growth against plain lists."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import methods, prompts, trees
from pdecode.contracts import Draft, Prediction, Sampling
from pdecode.decode import decode
from pdecode.drafters import causal, grown
from pdecode.families import speculative
from pdecode.models import toy
from pdecode.rules import accept


def test_choices_are_sorted_and_closed():
    topology = trees.choices([(1,), (0,), (0, 0), (1, 0), (0, 1)])
    assert topology == trees.Topology((-1, -1, 0, 0, 1), (1, 1, 2, 2, 2))
    assert trees.choices([(0,), (0, 0)]) == trees.chain(2)
    for wrong in ([(0,), (2,)], [(1,)], [(0, 0)], [()], [(-1,)]):
        with pytest.raises(ValueError, match="needs its parent"):
            trees.choices(wrong)
    with pytest.raises(ValueError, match="different"):
        trees.choices([(0,), (0,)])


@functools.cache
def all_trees(num_nodes, max_depth, max_children):
    """Every set of paths of that size that holds parents and elder siblings."""
    if num_nodes == 0:
        return {frozenset()}
    found = set()
    for smaller in all_trees(num_nodes - 1, max_depth, max_children):
        for above in [(), *smaller]:
            nth = sum(len(p) == len(above) + 1 and p[:-1] == above for p in smaller)
            if nth < max_children and len(above) < max_depth:
                found.add(smaller | {(*above, nth)})
    return found


def value(paths, accuracies):
    rates = [np.prod([accuracies[d][i] for d, i in enumerate(p)]) for p in paths]
    return float(sum(rates))


@pytest.mark.parametrize("seed", range(4))
def test_the_best_tree_is_the_best_of_all(seed):
    rates = np.random.default_rng(seed).uniform(size=3)  # in any order
    for num_nodes, max_depth in itertools.product((1, 3, 5), (1, 2, 4)):
        every = all_trees(num_nodes, max_depth, 3)
        if not every:
            with pytest.raises(ValueError, match="no tree"):
                trees.best(rates, num_nodes, max_depth)
            continue
        most = max(value(paths, [rates] * 4) for paths in every)
        topology = trees.best(rates, num_nodes, max_depth)
        assert topology.num_nodes == num_nodes and topology.max_depth <= max_depth
        assert abs(trees.expected(topology, rates) - most) < 1e-12


def test_greedy_is_the_best_where_accuracies_fall_and_only_there():
    rng = np.random.default_rng(0)
    falling = -np.sort(-rng.uniform(size=(4, 3)))
    most = max(value(paths, falling) for paths in all_trees(6, 4, 3))
    topology = trees.greedy(falling, 6)
    chance = [1.0]
    for node, parent in enumerate(topology.parents):
        nth = topology.parents[:node].count(parent)
        chance.append(chance[parent + 1] * falling[topology.depths[node] - 1][nth])
    assert abs(sum(chance[1:]) - most) < 1e-12
    # A poor second hides a good third: only the search of all sees it.
    rates = [0.5, 0.1, 0.9]
    by_greed = trees.expected(trees.greedy([rates] * 4, 3), rates)
    assert trees.expected(trees.best(rates, 3, 4), rates) > by_greed + 0.1
    with pytest.raises(ValueError, match="allow 2"):
        trees.greedy([[0.5, 0.4]], 3)


def test_the_size_follows_the_cost_of_calls():
    rates = [0.6, 0.2, 0.1]
    flat = {n: 1.0 for n in range(1, 9)}
    topology, speed = trees.sized(rates, flat, 0.0, max_depth=4)
    assert topology.num_nodes == 7  # lanes are free
    assert abs(speed - 1 - trees.expected(topology, rates)) < 1e-12
    steep = {1: 1.0, 8: 8.0}  # a lane costs a call: nothing pays
    assert trees.sized(rates, steep, 0.0, max_depth=4) == (trees.Topology((), ()), 1.0)
    some, _ = trees.sized(rates, {1: 1.0, 8: 1.7}, 0.05, max_depth=4)
    assert 0 < some.num_nodes < 7
    with pytest.raises(ValueError, match="1 lane"):
        trees.sized(rates, {2: 1.0}, 0.0, max_depth=2)


def num_lines(method, **settings):
    """Of the program that decodes, before the compiler sees it."""
    model = toy.make_model(9, 24)
    params = {"model": toy.chain(1, 9, 24), "drafter": toy.chain(2, 9, 24)}
    prompt = prompts.from_rows([[0, 1], [2]], max_new_tokens=8)
    decoder = method(model, model, max_new_tokens=8, **settings)
    program = jax.jit(lambda key: decode(decoder, params, prompt, key)[0].tokens)
    return len(program.lower(jax.random.key(0)).as_text().splitlines())


@pytest.mark.parametrize(
    "method, small, large",
    [
        (
            methods.dynamic_tree,
            {"num_nodes": 6, "width": 2},
            {"num_nodes": 60, "width": 8},
        ),
        (methods.sequoia, {"num_nodes": 8}, {"num_nodes": 60}),
    ],
)
def test_a_tree_of_sixty_nodes_makes_no_longer_program(method, small, large):
    """Nodes are an axis of arrays: levels are what a program grows with."""
    if method is methods.sequoia:
        small, large = ({**each, "rates": (60, 30, 15, 8)} for each in (small, large))
    sizes = [num_lines(method, **each, max_depth=4) for each in (small, large)]
    assert sizes[1] < 1.4 * sizes[0], sizes


# Growth on laws that depend on the last token: log q [V, V], row V - 1 is the root.
VOCAB, WIDTH, DEPTH = 5, 3, 3


def grow_on(table, width=WIDTH, depth=DEPTH, scored=True):
    """The Growth of one row, by the real functions, without a model."""
    growth = trees.seed(1, depth, width)
    last = jnp.full((1, width), table.shape[0] - 1)
    for level in range(depth):
        log_probs, ids = jax.lax.top_k(table[last], width)
        growth = trees.grow(growth, level, ids, log_probs, jnp.ones(1, bool))
        if not scored:  # a wrong one: nodes by their own probability alone
            growth = growth._replace(scores=growth.scores.at[:, level].set(log_probs))
        tokens, _ = trees.beam(growth)
        last = tokens.reshape(1, depth, width)[:, level]
    return growth


def grow_slowly(table, num_nodes, width=WIDTH, depth=DEPTH):
    """The same with lists of (log-probability, path)."""
    every, beam = [], [(0.0, ())]
    for _ in range(depth):
        level = []
        for score, path in beam:
            row = table[path[-1] if path else table.shape[0] - 1]
            for token in np.argsort(-row, kind="stable")[:width]:
                level.append((score + row[token], (*path, int(token))))
        every += level
        beam = sorted(level, key=lambda each: -each[0])[:width]
    chosen = sorted(every, key=lambda each: -each[0])[:num_nodes]
    return {path for _, path in chosen}


def paths_of(tokens, parents):
    found = []
    for token, parent in zip(tokens.tolist(), parents.tolist()):
        if token >= 0:
            assert parent < len(found), "a parent comes before its children"
            found.append((found[parent] if parent >= 0 else ()) + (token,))
    assert len(found) == len(set(found))
    return set(found)


def random_table(seed, ties=False):
    rng = np.random.default_rng(seed)
    table = np.log(rng.dirichlet(np.ones(VOCAB), VOCAB)).astype(np.float32)
    if ties:  # every row one-hot: a child is as likely as its parent
        table = np.full((VOCAB, VOCAB), -1e30, np.float32)
        table[np.arange(VOCAB), rng.integers(0, VOCAB, VOCAB)] = 0
    return table


@pytest.mark.parametrize("seed", range(5))
def test_growth_is_what_lists_give(seed):
    table = random_table(seed)
    for num_nodes in (4, 9, 21):
        tokens, parents = trees.rerank(grow_on(jnp.asarray(table)), num_nodes)
        assert paths_of(tokens[0], parents[0]) == grow_slowly(table, num_nodes)


def test_growth_by_a_nodes_own_probability_is_caught():
    def same(seed):
        table = random_table(seed)
        wrong = trees.rerank(grow_on(jnp.asarray(table), scored=False), 9)
        try:
            return paths_of(wrong[0][0], wrong[1][0]) == grow_slowly(table, 9)
        except AssertionError:
            return False

    assert not all(same(seed) for seed in range(3))


def test_a_certain_drafter_grows_a_chain():
    growth = grow_on(jnp.asarray(random_table(0, ties=True)))
    tokens, parents = (each[0] for each in trees.rerank(growth, 9))
    assert (tokens >= 0).tolist() == [True] * 3 + [False] * 6
    assert parents[:3].tolist() == [-1, 0, 1]


def test_the_grown_tree_accepts_most_and_as_much_as_it_says():
    """Expected length: maximal among all trees, and exact where drafter = target."""
    table = random_table(7)[:, :2]
    table = np.log(np.exp(table) / np.exp(table).sum(1, keepdims=True))[:3]
    growth = grow_on(jnp.asarray(table), width=2, depth=3)
    tokens, parents = trees.rerank(growth, 5)
    mass = np.exp(np.sort(np.asarray(growth.scores).ravel())[-5:]).sum()

    def likelihood(path):
        lasts = (table.shape[0] - 1, *path[:-1])
        return np.exp(sum(table[a, b] for a, b in zip(lasts, path)))

    # Nodes named by their tokens: every set of paths that is closed under parents.
    every = [p for n in (1, 2, 3) for p in itertools.product(range(2), repeat=n)]
    closed = [
        chosen
        for chosen in itertools.combinations(every, 5)
        if all(len(p) == 1 or p[:-1] in chosen for p in chosen)
    ]
    assert abs(max(sum(map(likelihood, c)) for c in closed) - mass) < 1e-6
    lasts = jnp.concatenate([jnp.array([table.shape[0] - 1]), tokens[0]])
    stop, _ = accept.by_node(accept.rejection(2)).apply(
        Draft(tokens[0], parents[0]),
        Prediction(probs=jnp.exp(jnp.asarray(table))[lasts]),
    )
    depth = trees.depths(trees.ancestors(parents))[0]
    assert abs(float((stop * depth).sum()) - mass) < 1e-6


LAW = toy.chain(5, 4, 20)
MODEL = toy.make_model(4, 20)
PROMPT = prompts.from_rows([[0, 1], [2], [3, 3, 1]], max_new_tokens=[12, 10, 12])


@functools.partial(jax.jit, static_argnames=("decoder",))
def run(decoder, params, key):
    return decode(decoder, params, PROMPT, key)


def test_a_row_stops_growing_by_itself():
    """With min_gain beyond reach each row makes one level; calls are counted so."""
    params = {"model": LAW, "drafter": LAW}

    def decoder(min_gain):
        drafter = grown.grown_tree(MODEL, 6, width=3, max_depth=4, min_gain=min_gain)
        return speculative.draft_verify(
            MODEL, drafter, max_new_tokens=12, sampling=Sampling(1.0)
        )

    key = jax.random.key(0)
    plain, _ = run(methods.autoregressive(MODEL, max_new_tokens=12, temperature=1.0),
                   params, key)  # fmt: skip
    calls = {}
    for min_gain in (None, 0.3, 5.0):
        out, stats = run(decoder(min_gain), params, key)
        np.testing.assert_array_equal(out.tokens, plain.tokens)
        calls[min_gain] = np.asarray(stats.num_draft_calls / stats.num_calls)
    assert (calls[5.0] == 1).all() and (calls[None] == 4).all()
    assert (calls[0.3] > 1).any() and (calls[0.3] < 4).all()


def test_a_deeper_grown_tree_is_no_larger_program():
    def size(drafter):
        decoder = speculative.draft_verify(
            MODEL, drafter, max_new_tokens=8, sampling=Sampling(1.0)
        )
        params = {"model": LAW, "drafter": LAW}
        text = str(jax.make_jaxpr(lambda k: decode(decoder, params, PROMPT, k))(
            jax.random.key(0)))  # fmt: skip
        return text.count("\n")

    three, eight = (grown.grown_tree(MODEL, 9, width=3, max_depth=d) for d in (3, 8))
    assert size(eight) < 1.05 * size(three)
    # Negative control: a static tree has a call of its own for every level.
    three, eight = (
        causal.draft_model(MODEL, trees.expand((2,) + (1,) * d), Sampling(1.0))
        for d in (2, 7)
    )
    assert size(eight) > 1.2 * size(three)


def test_sizes_of_grown_trees_are_checked():
    for kw, message in (
        ({"num_nodes": 3, "width": 2, "max_depth": 3}, "more than max_depth"),
        ({"num_nodes": 99, "width": 2, "max_depth": 3}, "no more than"),
        ({"num_nodes": 3, "width": 9, "max_depth": 2}, "width=9"),
        ({"num_nodes": 3, "width": 2, "max_depth": 1}, "max_depth=1"),
    ):
        with pytest.raises(ValueError, match=message):
            grown.grown_tree(MODEL, kw.pop("num_nodes"), **kw)


def test_children_are_padded_beyond_the_tree():
    parents = jnp.array([-1, 0, -1])
    for lane, wanted in ((0, [0, 2, -1, -1, -1]), (1, [1, -1, -1, -1, -1])):
        assert trees.children(parents, jnp.int32(lane), 5).tolist() == wanted
    assert trees.children(parents, jnp.int32(0), 1).tolist() == [0]
