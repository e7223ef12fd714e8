"""The exact law of a decoder of the masked family, by enumeration of every draw.

The family's own phases run with tokens that are given instead of drawn: every vector of
draws is tried with its probability, states that are equal are merged, and the weights
of finished canvases are the law. Noise of the rules' own (a random order) is that of a
few keys, each of which is a rule of its own: a rule that is blind to the draws is exact
for every one of them.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdecode import prompts, rng
from pdecode.checks import toys
from pdecode.contracts import Decoder, Rule
from pdecode.families import masked
from pdecode.families import masked_calls as calls
from pdecode.families import masked_decisions as decisions
from pdecode.families import masked_progress as progress
from pdecode.models import toy

CHUNK = 512  # rows of one call of the program
NUM_KEYS = 4
SMALL = 1e-6  # weight that is not followed further
PROMPT = [0]


class Walk(NamedTuple):
    """What was enumerated of a canvas of `new` positions behind the prompt [0]."""

    vocab: int
    new: int
    law: dict[tuple[int, ...], float]
    exact: dict[tuple[int, ...], float]
    per_step: float  # mean of positions filled by a step that fills any
    # Two vectors of draws in one situation, and the positions that each filled.
    reads_draws: tuple | None
    unfinished: float  # weight that was not done after the last turn

    @property
    def variation(self) -> float:
        """Total variation of the law from the exact one."""
        gaps = (abs(self.law[s] - self.exact[s]) for s in self.exact)
        return 0.5 * float(sum(gaps))

    @property
    def worst(self) -> tuple[int, ...]:
        """The string that is furthest off."""
        return max(self.exact, key=lambda s: abs(self.law[s] - self.exact[s]))


def plan_of(decoder: Decoder) -> masked.Plan | None:
    """The plan of a decoder of the masked family, else None."""
    step: Any = decoder.step
    is_ours = isinstance(step, functools.partial) and step.func is masked.step
    return step.args[0] if is_ours else None


def leftmost(plan: masked.Plan) -> masked.Plan:
    """`plan` that fills only the leftmost of the positions that its rule chooses."""
    rule = plan.rules[decisions.COMMIT]
    assert rule is not None

    def apply(params, key, row, prediction, memory):
        chosen, memory = rule.apply(params, key, row, prediction, memory)
        chosen = chosen & row.open
        return chosen & (jnp.cumsum(chosen) == 1), memory

    one: Rule = rule._replace(apply=apply)
    return plan._replace(
        rules=(one, *plan.rules[1:]), stop=None, fill=None, last_turn=None
    )


def model_of(vocab: int, new: int, like: Any):
    """A toy of that size with the attention of `like`."""
    return toy.make_model(
        vocab, len(PROMPT) + new, predicts="masked", attention=like.attention,
        block_len=like.block_len,
    )  # fmt: skip


def walk(
    plan: masked.Plan, params: dict, *, vocab: int, new: int, max_turns: int
) -> Walk:
    """Enumerates `plan`, whose model is `model_of(vocab, new)`, over a random joint."""
    law = toy.joint(3, vocab, len(PROMPT) + new, sharpness=2.0)
    params = {**params, "model": law}
    plan = plan._replace(wants=tuple(dict.fromkeys((*plan.wants, "logits", "probs"))))
    combos = np.array(list(itertools.product(range(vocab), repeat=new)), np.int32)
    turn = _program(plan, new)
    keys = rng.row_keys(jax.random.key(0), jnp.arange(NUM_KEYS))
    prompt = prompts.from_rows([PROMPT] * NUM_KEYS, max_new_tokens=new)
    state, _ = toys.quick(functools.partial(masked.init, plan))(params, keys, prompt)
    leaves, tree = jax.tree.flatten(state)
    nodes = [np.asarray(leaf) for leaf in leaves]
    which, weight = np.arange(NUM_KEYS), np.full(NUM_KEYS, 1 / NUM_KEYS)
    found = {string: 0.0 for string in itertools.product(range(vocab), repeat=new)}
    reads, filled, number = None, [], 0
    while weight.sum() > SMALL and number < max_turns:
        number += 1
        pairs = _pairs(tree, nodes, combos, plan)
        after = [leaf[pairs[0]] for leaf in nodes]
        made, chance, is_done = _run(
            turn, tree, after, params, keys[which[pairs[0]]], combos[pairs[1]]
        )
        reads = reads or _reads(tree, nodes, made, pairs, combos, chance)
        count = _open(tree, after).sum(1) - _open(tree, made).sum(1)
        mass = weight[pairs[0]] * chance
        filled.append((count[count > 0] * mass[count > 0], mass[count > 0]))
        ended = is_done & (mass > 0)
        for row, share in zip(_tokens(tree, made)[ended], mass[ended]):
            key = tuple(int(token) for token in row[len(PROMPT) : len(PROMPT) + new])
            if key in found:  # else a hole was left: its weight is missing
                found[key] += float(share)
        keep = ~is_done & (mass > 0)
        nodes, which, weight = _merged(
            [leaf[keep] for leaf in made], which[pairs[0]][keep], mass[keep]
        )
    totals = [np.concatenate(each).sum() for each in zip(*filled)]
    return Walk(
        vocab, new, found, exact_law(law, vocab, new), float(totals[0] / totals[1]),
        reads, float(weight.sum()),
    )  # fmt: skip


def exact_law(law: toy.Table, vocab: int, new: int) -> dict[tuple[int, ...], float]:
    """Probability of each continuation of the prompt under the joint."""
    strings, probs = np.asarray(law.strings), np.exp(np.asarray(law.log_probs, float))
    found = {string: 0.0 for string in itertools.product(range(vocab), repeat=new)}
    for row, prob in zip(strings, probs):
        if row[: len(PROMPT)].tolist() == PROMPT:
            found[tuple(row[len(PROMPT) :].tolist())] += float(prob)
    total = sum(found.values())
    return {string: prob / total for string, prob in found.items()}


def _program(plan: masked.Plan, new: int):
    """One turn for CHUNK rows: (state, chance of the draws, done)."""
    draws_all = plan.rules[decisions.EDIT] is not None

    @toys.quick
    def turn(params, keys, state, draws):
        active = ~progress.done(plan, state)
        lanes = calls.look(plan, state, active)
        output, cache, _ = calls.evaluate(plan, params, state, lanes)
        seen, lens_memory = masked.predict(plan, params, keys, state, lanes, output)
        # The token of every lane that is drawn is the one given for its position.
        place = lanes.positions - len(PROMPT)
        drawn = (lanes.asked if draws_all else lanes.open) & (place >= 0)
        inside = jnp.clip(place, 0, new - 1)
        given = jnp.take_along_axis(draws, inside, 1)
        token = jnp.where(drawn, given, seen.token)
        raw = jax.nn.log_softmax(seen.logits)

        def of(values):
            return jnp.take_along_axis(values, token[..., None], -1)[..., 0]

        forced = {"token": token, "log_prob": of(raw)}
        if "sampled_log_prob" in plan.wants:
            forced["sampled_log_prob"] = jnp.log(jnp.maximum(of(seen.probs), 1e-30))
        prediction = seen._replace(**forced)
        chance = jnp.where(drawn, of(seen.probs), 1).prod(1)
        # A position that no lane draws has one draw: the first.
        hit = jnp.zeros(draws.shape, bool)
        hit = hit.at[jnp.arange(len(draws))[:, None], inside].max(drawn)
        chance *= jnp.where(hit | (draws == 0), 1, 0).prod(1)
        now = decisions.Moment(params, keys, state, lanes, prediction, active)
        canvas = decisions.commit_some(plan, now)
        canvas = decisions.reopen(plan, now, canvas)
        canvas = decisions.overwrite(plan, now, canvas)
        after = state._replace(
            tokens=canvas.tokens, masked=canvas.masked, log_probs=canvas.log_probs,
            fresh=canvas.tokens != state.tokens, cache=cache,
            memory=(*canvas.memory[:3], lens_memory), turn=state.turn + active,
        )  # fmt: skip
        after = progress.advance(plan, masked.cut(plan, now, after), state, active)
        return after, chance, progress.done(plan, after)

    return turn


def _pairs(tree, nodes, combos, plan) -> tuple[np.ndarray, np.ndarray]:
    """(node, draws) indices of all that may be drawn: closed positions draw token 0."""
    opened = _open(tree, nodes)[:, : combos.shape[1]]
    if plan.rules[decisions.EDIT] is not None:
        opened = np.ones_like(opened)
    fits = (opened[:, None] | (combos[None] == 0)).all(-1)
    nodes_, draws = np.nonzero(fits)
    return nodes_, draws


def _run(turn, tree, leaves, params, keys, draws):
    """`turn` over any number of rows, CHUNK at a time."""
    parts, count = [], len(draws)
    for begin in range(0, count, CHUNK):
        index = np.minimum(np.arange(begin, begin + CHUNK), count - 1)
        state = jax.tree.unflatten(tree, [leaf[index] for leaf in leaves])
        made = turn(params, keys[index], state, draws[index])
        size = min(CHUNK, count - begin)
        parts.append([np.asarray(leaf)[:size] for leaf in jax.tree.leaves(made)])
    whole = [np.concatenate(each) for each in zip(*parts)]
    return whole[:-2], whole[-2].astype(float), whole[-1]


def _merged(leaves, which, weight):
    """Equal rows once, with their weights added up."""
    if not len(weight):
        return leaves, which, weight
    flat = [np.ascontiguousarray(leaf).reshape(len(weight), -1) for leaf in leaves]
    seen: dict[bytes, int] = {}
    place = np.empty(len(weight), int)
    for row in range(len(weight)):
        name = b"|".join(leaf[row].tobytes() for leaf in flat) + bytes([which[row]])
        place[row] = seen.setdefault(name, len(seen))
    total = np.zeros(len(seen))
    np.add.at(total, place, weight)
    first = np.unique(place, return_index=True)[1]
    return [leaf[first] for leaf in leaves], which[first], total


def _reads(tree, before, after, pairs, combos, chance):
    """Two draws of one situation that fill different positions, if there are such."""
    nodes, draws = pairs
    filled = (_open(tree, before)[nodes] & ~_open(tree, after))[:, : combos.shape[1]]
    likely = chance > 1e-3
    for node in np.unique(nodes):
        rows = np.flatnonzero((nodes == node) & likely)
        odd = rows[(filled[rows] != filled[rows[:1]]).any(1)] if len(rows) else rows
        if len(odd):
            # The fewest draws that differ say most.
            gaps = (combos[draws[odd]] != combos[draws[rows[0]]]).sum(1)
            other = odd[np.argmin(gaps)]
            return tuple(
                (combos[draws[row]].tolist(), np.flatnonzero(filled[row]).tolist())
                for row in (rows[0], other)
            )
    return None


def _open(tree, leaves) -> np.ndarray:
    """bool [N, new] of states as lists of leaves."""
    return np.asarray(jax.tree.unflatten(tree, leaves).masked)[:, len(PROMPT) :]


def _tokens(tree, leaves) -> np.ndarray:
    return np.asarray(jax.tree.unflatten(tree, leaves).tokens)
