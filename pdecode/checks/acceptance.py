"""Acceptance rules by exact enumeration: what one round emits, over all drafts.

Random laws of a target and a drafter given the tokens so far; every draft that the
drafter can make, with its probability; the rule's own probabilities for each. What it
emits, continued by the target, must have the target's own law.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdecode import trees
from pdecode.checks.report import CLOSE, Finding, Report, string
from pdecode.contracts import BlockRule, Draft, NodeRule, Params, Prediction
from pdecode.rules import accept

Laws = dict[tuple[int, ...], np.ndarray]  # tokens so far -> [V]
MOST_CHILDREN = 3  # of a node that has grandchildren too: what is quickly enumerated
DRAWS = ("iid", "in_turn", "greedy", "given")


def tables(seed: int, depth: int, vocab: int = 3) -> tuple[Laws, Laws]:
    """Random laws of target and drafter for every prefix of up to `depth` + 1."""
    rng = np.random.default_rng(seed)
    target, drafter = {}, {}
    for size in range(depth + 2):
        for prefix in itertools.product(range(vocab), repeat=size):
            target[prefix] = rng.dirichlet(np.ones(vocab) * 0.7)
            drafter[prefix] = rng.dirichlet(np.ones(vocab) * 0.7)
    return target, drafter


def context(topology: Any, tokens: Any, node: int) -> tuple[int, ...]:
    """Tokens from the root's child to `node`; () for the root."""
    path = []
    while node >= 0:
        path.append(int(tokens[node]))
        node = topology.parents[node]
    return tuple(reversed(path))


def all_drafts(topology: Any, drafter: Laws, draws: str) -> Iterator[tuple]:
    """Every (tokens, probability, q [N, V]) that drafting the tree can give.

    Draws are "iid", "in_turn" (without replacement), "greedy" (the eldest from what the
    best leave, then those) and "given" (the best, without a law).
    """
    vocab = len(drafter[()])

    def law_of(node, tokens):
        parent = topology.parents[node]
        law = drafter[context(topology, tokens, parent)].copy()
        elders = [n for n in range(node) if topology.parents[n] == parent]
        best = np.argsort(-law, kind="stable")[: topology.parents.count(parent) - 1]
        if draws == "given":
            order = np.argsort(-law, kind="stable")
            return np.eye(vocab)[order[len(elders)]]
        if draws == "greedy" and elders:
            return np.eye(vocab)[best[len(elders) - 1]]
        if draws == "greedy":
            law[best] = 0
        if draws == "in_turn":
            law[[tokens[elder] for elder in elders]] = 0
        return law / law.sum() if law.sum() > 0 else law

    def extend(node, tokens, weight, q):
        if node == topology.num_nodes:
            yield tokens, weight, np.array(q)
            return
        above = topology.parents[node]
        is_dead = above >= 0 and tokens[above] < 0
        law = np.zeros(vocab) if is_dead else law_of(node, tokens)
        for token in [-1] if law.sum() == 0 else np.flatnonzero(law):
            chance = 1.0 if token < 0 else law[token]
            yield from extend(node + 1, [*tokens, token], weight * chance, [*q, law])

    yield from extend(0, [], 1.0, [])


def judged(
    rule: Any, topology: Any, target: Laws, drafter: Laws, draws: str = "iid", given=()
):
    """(drafts, stop [K, 1 + N], residual [K, 1 + N, V]) of every draft.

    Drafts of probability 0 fill the list to one size, so that a rule has one program.
    """
    vocab = len(target[()])
    drafts = list(all_drafts(topology, drafter, draws))
    nodes = range(topology.num_nodes)
    size = vocab**topology.num_nodes
    drafts += [([-1] * len(nodes), 0.0, np.zeros((len(nodes), vocab)))] * (
        size - len(drafts)
    )
    batch = Draft(
        tokens=jnp.array([d[0] for d in drafts], jnp.int32),
        parents=jnp.array([topology.parents] * len(drafts), jnp.int32),
        q=None if draws == "given" else jnp.array([d[2] for d in drafts]),
    )
    dead = np.full(vocab, 1 / vocab)  # context of an absent node: never reached
    p = np.array(
        [
            [target.get(context(topology, d[0], lane), dead) for lane in [-1, *nodes]]
            for d in drafts
        ]
    )
    stop, residual = jitted(rule)(batch, Prediction(probs=jnp.asarray(p)), *given)
    return drafts, np.asarray(stop), np.asarray(residual)


def emitted_law(
    rule: Any, topology: Any, target: Laws, drafter: Laws, *, draws="iid", given=()
) -> dict[tuple[int, ...], float]:
    """Law over strings of depth + 1 tokens: what one round emits, then the target.

    `rule` is a BlockRule, or a function of one row's draft and prediction.
    """
    found = judged(rule, topology, target, drafter, draws, given)
    return law_of(topology, target, *found)


def law_of(
    topology: Any, target: Laws, drafts: Any, stop: np.ndarray, residual: np.ndarray
) -> dict[tuple[int, ...], float]:
    """`emitted_law` out of what `judged` gave."""
    depth, vocab = topology.max_depth, len(target[()])
    law = {s: 0.0 for s in itertools.product(range(vocab), repeat=depth + 1)}
    for (tokens, weight, _), stops, residuals in zip(drafts, stop, residual):
        for lane in [-1, *range(topology.num_nodes)]:
            if weight * stops[lane + 1] == 0:
                continue
            path = context(topology, tokens, lane)
            for token in range(vocab):
                mass = weight * stops[lane + 1] * residuals[lane + 1, token]
                spread(law, target, (*path, token), mass, depth + 1)
    return law


@functools.cache
def jitted(rule: Any):
    """`rule` over a batch of drafts; what it is given besides is shared."""
    if isinstance(rule, BlockRule):

        def apply(batch, prediction, *given):
            return jax.vmap(lambda d, p: rule.apply(d, p, *given))(batch, prediction)

        return jax.jit(apply)

    def one_by_one(batch, prediction):  # a plain function of one row
        size = batch.tokens.shape[0]
        rows = [jax.tree.map(lambda leaf, i=i: leaf[i], (batch, prediction))
                for i in range(size)]  # fmt: skip
        return tuple(np.array(each) for each in zip(*(rule(*row) for row in rows)))

    return one_by_one


def spread(law: dict, target: Laws, prefix: tuple, mass: float, length: int) -> None:
    """Adds `mass` to every completion of `prefix` by the target's own law."""
    if mass == 0:
        return
    if len(prefix) == length:
        law[prefix] += mass
        return
    for token, chance in enumerate(target[prefix]):
        spread(law, target, (*prefix, token), mass * chance, length)


def exact_law(target: Laws, length: int) -> dict[tuple[int, ...], float]:
    """The target's own law over strings of `length` tokens."""
    law = {s: 0.0 for s in itertools.product(range(len(target[()])), repeat=length)}
    spread(law, target, (), 1.0, length)
    return law


def total_variation(law: dict, exact: dict) -> float:
    """Half the sum of all differences."""
    return 0.5 * float(sum(abs(law[s] - exact[s]) for s in law))


def check_role(role: str | None, params: dict[str, Params], name: str) -> None:
    """ValueError for a part whose role has no params."""
    if role is not None and role not in params:
        raise ValueError(
            f"{name} reads the params of the role {role!r}: give "
            f"params={{{role!r}: ...}}"
        )


def report(rule: NodeRule | BlockRule, name: str, params: dict[str, Params]) -> Report:
    """Whether what `rule` emits has the target's law, on chains and on trees."""
    most = rule.max_children if isinstance(rule, NodeRule) else 2
    if "chain" in rule.needs:
        most = 1
    if isinstance(rule, BlockRule) and rule.role is not None:
        raise ValueError(
            f"{name} reads hidden states, which an enumeration has none of: check the "
            "decoder that it makes"
        )
    check_role(rule.role, params, name)
    given = () if rule.role is None else (params[rule.role],)
    block = accept.by_node(rule) if isinstance(rule, NodeRule) else rule
    shapes = [trees.chain(1), trees.chain(2)]
    if most > 1:  # a tree has as many nodes at least as a node has children
        shapes = [trees.expand((most,)), trees.chain(most)]
        shapes += [trees.expand((most, 1))] if most <= MOST_CHILDREN else []
    tried = [(shapes[0], 2, "iid"), *((shape, 3, "iid") for shape in shapes)]
    if "iid" not in rule.needs:
        tried += [(shape, 3, draws) for shape in shapes for draws in DRAWS[1:]]
    faults, worst, smallest = [], 0.0, None
    for topology, vocab, draws in tried:
        target, drafter = tables(0, topology.max_depth, vocab)
        found = judged(block, topology, target, drafter, draws, given)
        laws = (
            law_of(topology, target, *found),
            exact_law(target, topology.max_depth + 1),
        )
        here = total_variation(*laws)
        if here > CLOSE and smallest is None:
            smallest = _example(topology, draws, target, drafter, *laws)
        worst = max(worst, here)
        faults += [each for each in [_no_law(topology, *found)] if each]
    law = f"lossless: on {len(tried)} kinds of drafts its tokens have the target's law "
    law += f"(total variation {worst:.1g})"
    if smallest is not None:
        why = "what it returns is no law"
        if not faults:
            why = _why(block, given) if most == 1 else "of what it does with siblings"
        law = (
            f"biased: total variation {worst:.2g} from the target's law, because "
            f"{why}. Smallest counterexample: {smallest}"
        )
    sums = "what it returns are laws: stops and residuals sum to 1"
    findings = (
        Finding("laws", not faults, faults[0] if faults else sums),
        Finding("law", smallest is None, law, worst),
    )
    return Report(
        name,
        "acceptance rule",
        findings,
        "lossless" if rule.is_lossless else "lossy",
        not (rule.is_lossless and smallest is not None),
    )


def _no_law(topology: Any, drafts, stop, residual) -> str | None:
    """What of stops and residuals is no law, at a draft that can be."""
    for (tokens, weight, _), stops, residuals in zip(drafts, stop, residual):
        if weight == 0:
            continue
        if abs(stops.sum() - 1) > CLOSE or (stops < -CLOSE).any():
            return (
                f"for the draft {string(tokens)} the probabilities of where the path "
                f"ends sum to {stops.sum():.3f}, not 1 ({np.round(stops, 3).tolist()})"
            )
        for lane, chance in enumerate(stops):
            total = residuals[lane].sum()
            if chance > CLOSE and abs(total - 1) > CLOSE:
                return (
                    f"the residual is not renormalised: for the draft {string(tokens)} "
                    f"the law of the next token at lane {lane} sums to {total:.3f}, "
                    "not to 1; accept.normalised makes it a law"
                )
            if (residuals[lane] < -CLOSE).any():
                return f"the residual at lane {lane} of {string(tokens)} is negative"
    return None


def _example(topology, draws, target, drafter, law, exact) -> str:
    """The string that is furthest off, in a sentence."""
    off = max(law, key=lambda s: abs(law[s] - exact[s]))
    shape = f"{topology.num_nodes} drafted token{'s' * (topology.num_nodes > 1)}"
    rounded = [np.round(each[()], 2).tolist() for each in (target, drafter)]
    return (
        f"{shape} ({draws}), target {rounded[0]}, drafter {rounded[1]}: "
        f'"{string(off)}" has probability {exact[off]:.3f} and comes with '
        f"{law[off]:.3f}"
    )


def _why(rule: BlockRule, given: tuple) -> str:
    """How one drafted token differs from speculative sampling, if it does there."""
    topology = trees.chain(1)
    target, drafter = tables(0, 1, 3)
    p, q = target[()], drafter[()]
    for tokens, _, _ in all_drafts(topology, drafter, "iid"):
        token = tokens[0]
        draft = Draft(jnp.array(tokens, jnp.int32), jnp.array([-1]), q=jnp.array([q]))
        probs = jnp.array([p, target[(token,)]])
        stop, residual = map(
            np.asarray, rule.apply(draft, Prediction(probs=probs), *given)
        )
        right = min(1.0, p[token] / q[token])
        if abs(stop[1] - right) > CLOSE:
            return (
                f"it accepts token {token} with {stop[1]:.3f} where min(1, p/q) is "
                f"{right:.3f}"
            )
        excess = np.maximum(p - q, 0)
        if right < 1 and np.abs(residual[0] - excess / excess.sum()).max() > CLOSE:
            what = "the target's law p" if np.abs(residual[0] - p).max() < CLOSE else (
                f"{np.round(residual[0], 3).tolist()}"
            )  # fmt: skip
            return (
                f"after a refusal it draws from {what} and not from norm((p - q)+), "
                f"{np.round(excess / excess.sum(), 3).tolist()}"
            )
    return "of what it does with longer drafts"
