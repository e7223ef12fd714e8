"""A smaller causal model as the drafter, with its own cache, over any static tree."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import cache as caches
from pdecode import prompts, rng, trees
from pdecode.contracts import (
    Cache,
    DraftCost,
    Drafter,
    Lens,
    Model,
    Prediction,
    Prefix,
    Query,
    Sampling,
    SlotRun,
    View,
    Visibility,
)
from pdecode.drafters import ignore, static
from pdecode.kernels.head import api as vocab_head
from pdecode.rules import accept
from pdecode.sampling import choose, without_mask

__all__ = [
    "CausalState",
    "chain_query",
    "check_lenses",
    "draft_model",
    "draft_noise",
    "draw",
    "store",
    "views_behind",
]

DRAWS = ("with_replacement", "without_replacement", "greedy", "coupled")


class CausalState(NamedTuple):
    """The first `written` slots hold committed tokens, or drafts that may become so."""

    cache: Cache
    written: Array  # int32 [B]


class Plan(NamedTuple):
    """What a draft model's drafter is made of, checked once."""

    model: Model
    topology: trees.Topology
    sampling: Sampling
    draws: str
    lenses: tuple[Lens, ...]
    min_confidence: Any
    levels: list[static.Level]
    keeps_drafts: bool

    @property
    def is_chain(self) -> bool:
        return self.topology.max_depth == self.topology.num_nodes

    @property
    def num_pending(self) -> int:
        """Committed tokens that a round's first call may have to store."""
        keeps = self.is_chain and self.keeps_drafts
        return 2 if keeps else self.topology.max_depth + 1


def draft_model(
    model: Model,
    topology: trees.Topology,
    sampling: Sampling,
    *,
    draws: str = "with_replacement",
    lenses: Sequence[Lens] = (),
    min_confidence: Any = None,
    keeps_drafts: bool = True,
) -> Drafter:
    """Drafts `topology` with `model`, whose params are those of the role "drafter".

    `draws` says how the children of a node are chosen, each with its truthful q:
    "with_replacement" i.i.d. from the drafter's law, "without_replacement" in turn from
    what its elder siblings leave, "greedy" the eldest from what the drafter's best
    leave and then these as given (Hu et al., 2025, arXiv:2502.18779), "coupled" under
    the target's own noise and without q, for chains and `accept.match`.

    `lenses` change the drafter's law as they do the target's, each node in its own
    context. With `min_confidence` a node is drafted only where the drafter's largest
    probability reaches it, looked at before anything is drawn.

    A chain's nodes are stored as they are drafted: those accepted stand where they
    belong, so a round costs one lane a draft and one or two for what was committed. A
    node of a tree sees its ancestors only as lanes of its own call, so each level's
    call repeats the nodes above it, unstored. Without `keeps_drafts` a chain's nodes
    that were accepted are stored once more, by the model's `encode`: for models whose
    `apply` only approximates it.
    """
    _check(topology, draws)
    check_lenses(lenses)
    plan = Plan(
        model, topology, without_mask(model, sampling), draws, tuple(lenses),
        min_confidence, static.levels(topology), keeps_drafts,
    )  # fmt: skip
    return Drafter(
        topology.num_nodes,
        topology.max_depth,
        functools.partial(init, plan),
        functools.partial(propose, plan),
        ignore,
        num_prefill_calls=1,
        is_iid=draws == "with_replacement",
    )


def init(plan: Plan, params, keys, prompt, prefix: Prefix, output) -> CausalState:
    """The prompt but its last token in the drafter's cache."""
    del keys, output
    room = prefix.tokens.shape[1] + plan.num_pending + plan.topology.max_depth
    cache = plan.model.init_cache(prompt, caches.num_slots(room))
    _, cache = prompts.prefill(plan.model, params["drafter"], prompt, cache, drop=1)
    return CausalState(cache, prompt.lengths - 1)


def propose(plan: Plan, params, keys, state: CausalState, prefix: Prefix):
    """Stores what was committed, then drafts level by level."""
    model, topology = plan.model, plan.topology
    own, root = params["drafter"], prefix.length - 1
    hidden, cache, num_missing = store(model, own, state, prefix, plan.num_pending)
    noise = None
    if plan.draws != "coupled":
        noise = draft_noise(keys, root, topology, model.vocab_size)
    tokens, laws, num_lanes = [jnp.zeros((root.shape[0], 0), jnp.int32)], [], 0
    for level in plan.levels:
        above = jnp.concatenate(tokens, 1)
        if level.depth > 1:
            query = (
                chain_query(above[:, -1:], root + level.depth - 1)
                if plan.is_chain
                else static.tree_query(above, root, level, topology)
            )
            output, cache = model.apply(own, query, cache)
            hidden = output.hidden[:, -tokens[-1].shape[1] :]
            num_lanes += query.tokens.shape[1]
        found = predict(plan, params, keys, prefix, level, above, hidden)
        drawn, law = draw(plan.draws, noise, level, found)
        if plan.min_confidence is not None:
            is_sure = jnp.exp(found.max_log_prob) >= plan.min_confidence
            drawn = jnp.where(is_sure[:, level.parent], drawn, -1)
        tokens.append(drawn)
        laws.append(law)
    cost = DraftCost(
        num_calls=jnp.full_like(root, len(plan.levels)),
        num_tokens=num_missing + num_lanes,
        num_tokens_computed=jnp.full_like(root, plan.num_pending + num_lanes),
    )
    draft = static.in_order(topology, plan.levels, tokens, laws, cost)
    # The last node of a chain is drafted, but not evaluated.
    keeps = plan.is_chain and plan.keeps_drafts
    num_kept = topology.max_depth - 1 if keeps else 0
    return draft, CausalState(cache, prefix.length + num_kept)


def store(model: Model, params, state: CausalState, prefix: Prefix, width: int):
    """Stores the committed tokens that the drafter's cache lacks, at most `width`.

    Returns (hidden [B, 1, E] at the root, cache, tokens stored int32 [B]). The root is
    the last of them; drafts that were not accepted are written over.
    """
    cached = jnp.minimum(state.written, prefix.length - 1)
    place = cached[:, None] + jnp.arange(width, dtype=jnp.int32)[None]
    last = jnp.minimum(place, prefix.tokens.shape[1] - 1)
    query = Query(
        tokens=jnp.take_along_axis(prefix.tokens, last, 1),
        positions=place,
        # What stands behind the root is written over before it is seen.
        slots=SlotRun(cached),
        visible=Visibility(start=jnp.zeros_like(place), stop=place + 1),
    )
    output, cache = model.encode(params, query, state.cache)
    lane = jnp.clip(prefix.length - 1 - cached, 0, width - 1)
    hidden = jnp.take_along_axis(output.hidden, lane[:, None, None], 1)
    return hidden, cache, prefix.length - cached


def chain_query(token: Array, position: Array) -> Query:
    """One drafted token [B, 1] at `position` [B], stored where it will belong."""
    place = position[:, None]
    return Query(
        tokens=jnp.maximum(token, 0),
        positions=place,
        slots=SlotRun(position),
        visible=Visibility(start=jnp.zeros_like(place), stop=place + 1),
    )


def predict(plan: Plan, params, keys, prefix, level: static.Level, above, hidden):
    """The laws of the level above, or its tokens under the target's noise."""
    position = (prefix.length - 1 + level.depth)[:, None]
    places = functools.partial(rng.noise, keys, rng.TARGET, position)
    wants = ("token",) if plan.draws == "coupled" else ("probs",)
    if plan.min_confidence is not None:
        wants = (*wants, "max_log_prob")
    head = plan.model.head(params["drafter"])
    if not plan.lenses:
        return vocab_head.statistics(head, hidden, wants, plan.sampling, places)
    views = views_behind(prefix, above[:, level.paths])
    return vocab_head.seen_through(
        plan.lenses, params, views, head, hidden, wants, plan.sampling, places
    )


def views_behind(prefix: Prefix, paths: Array, count: Array | None = None) -> View:
    """What a lens sees behind the prefix and K tokens more, paths [B, Q, K].

    With `count` (int32 []) the first so many of the K are there.
    """
    # length 3, path x y: tokens a b c x y, and position 5 is predicted
    size = paths.shape[-1]
    nth = jnp.arange(prefix.tokens.shape[1])[None] - prefix.length[:, None]
    is_nth = nth[..., None] == jnp.arange(size)[None, None]  # [B, L, K]
    behind = jnp.where(is_nth[:, None], jnp.maximum(paths, 0)[:, :, None], 0).sum(-1)
    inside = (nth < 0)[:, None]
    size = size if count is None else count
    known = (nth < size)[:, None]
    tokens = jnp.where(inside, prefix.tokens[:, None], jnp.where(known, behind, 0))
    shape = paths.shape[:2]
    return View(
        tokens=tokens.astype(jnp.int32),
        known=jnp.broadcast_to(known, tokens.shape),
        position=jnp.broadcast_to((prefix.length + size)[:, None], shape),
        prompt_end=jnp.broadcast_to(prefix.prompt_end[:, None], shape),
    )


def draft_noise(
    keys: Array, root: Array, topology: trees.Topology, vocab_size: int
) -> Array:
    """Gumbel noise [B, N, V] of every node, drawn at once: to compile it is dear."""
    shape = (root.shape[0], topology.num_nodes)
    depths = jnp.asarray(topology.depths, jnp.int32)[None]
    index = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    places = rng.noise(keys, rng.DRAFT, root[:, None] + depths, round=root, index=index)
    return rng.gumbel(places, vocab_size)


def draw(
    draws: str, noise: Array | None, level: static.Level, found: Prediction
) -> tuple[Array, Array | None]:
    """Tokens [B, n] of a level's nodes and the laws [B, n, V] they were drawn from.

    A token that its law makes impossible is -1: no proposal.
    """
    if noise is None:
        return found.token, None
    noise = noise[:, level.nodes]
    batch, size = noise.shape[:2]
    if draws == "with_replacement":
        law = found.probs[:, level.parent]
        return _possible(choose(law, noise), law), law
    if draws == "greedy":
        return _greedy(noise, level, found.probs)
    # Elder siblings first; what they took is out of the law of the younger.
    rest = found.probs
    tokens = jnp.full((batch, size), -1, jnp.int32)
    laws = jnp.zeros((batch, size, rest.shape[-1]), rest.dtype)
    for nth in range(int(level.nth.max()) + 1):
        here = np.flatnonzero(level.nth == nth)
        law = rest[:, level.parent[here]]
        token = choose(law, noise[:, here])
        tokens = tokens.at[:, here].set(_possible(token, law))
        laws = laws.at[:, here].set(law)
        taken = jnp.arange(law.shape[-1])[None, None] == token[..., None]
        left = jnp.where(taken, 0, law)
        left = accept.normalised(left, jnp.zeros_like(left))
        rest = rest.at[:, level.parent[here]].set(left)
    return tokens, laws


def _greedy(noise: Array, level: static.Level, probs: Array) -> tuple[Array, Array]:
    """The eldest drawn from what the n - 1 best leave, then these; and their laws."""
    counts = np.bincount(level.parent, minlength=probs.shape[1])
    _, best = jax.lax.top_k(probs, max(int(counts.max()) - 1, 1))  # [B, m, n - 1]
    # One more column, so that the eldest, which is none of them, has an entry too.
    best = jnp.pad(best, ((0, 0), (0, 0), (1, 0)))
    given = best[:, level.parent, level.nth].astype(jnp.int32)
    is_best = jnp.zeros(probs.shape, bool)
    for nth in range(1, best.shape[-1]):
        ids = jnp.arange(probs.shape[-1])[None, None] == best[..., nth : nth + 1]
        is_best |= ids & jnp.asarray(nth < counts)[None, :, None]
    left = jnp.where(is_best, 0, probs)
    left = accept.normalised(left, jnp.zeros_like(left))[:, level.parent]
    is_eldest = jnp.asarray(level.nth == 0)[None]
    hot = jax.nn.one_hot(given, probs.shape[-1], dtype=probs.dtype)
    law = jnp.where(is_eldest[..., None], left, hot)
    tokens = jnp.where(is_eldest, choose(left, noise), given)
    return _possible(tokens, law), law


def check_lenses(lenses: Sequence[Lens]) -> None:
    """ValueError for a lens with memory."""
    if any(lens.init() != () for lens in lenses):
        raise ValueError("a draft model keeps no memory of positions for a lens")


def _check(topology: trees.Topology, draws: str) -> None:
    if draws not in DRAWS:
        raise ValueError(f"{draws=} must be one of {DRAWS}")
    if draws == "coupled" and topology.max_children > 1:
        raise ValueError("coupled siblings would be equal: draft a chain instead")
    if topology.num_nodes < 1:
        raise ValueError("an empty tree drafts nothing: use drafters.nothing()")


def _possible(token: Array, law: Array) -> Array:
    chance = jnp.take_along_axis(law, token[..., None], -1)[..., 0]
    return jnp.where(chance > 0, token, -1)
