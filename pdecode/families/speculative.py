"""The draft-and-verify family: a drafter proposes a tree, one target call judges it.

State is the committed prefix. The cache holds all of it but the last token, the root;
a round's call has the root in lane 0 and the draft's nodes after it, all written to
scratch slots behind the prefix, and the accepted path is then moved next to it. With no
nodes this is plain autoregressive decoding, so the baseline runs through the same code.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode import prompts, rng, trees
from pdecode.contracts import (
    BlockRule,
    Cache,
    Decoder,
    Draft,
    Drafter,
    Generation,
    Lens,
    Model,
    Prediction,
    Prefix,
    Prompt,
    Round,
    Sampling,
    SlotRun,
)
from pdecode.families import rows
from pdecode.families import speculative_calls as calls
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import without_mask

__all__ = ["draft_verify"]


class PrefixState(NamedTuple):
    """Carry of the loop."""

    prefix: Prefix  # the cache holds all of it but the last token
    log_probs: Array  # float32 [B, L]
    saw_eos: Array  # bool [B]
    failed: Array  # bool [B]  a statistic was no number: the row stands still
    cache: Cache
    drafter: Any


class Plan(NamedTuple):
    """What a draft-and-verify decode is made of, checked once."""

    model: Model
    drafter: Drafter
    acceptance: BlockRule | None  # None: match
    lenses: tuple[Lens, ...]
    sampling: Sampling
    wants: tuple[str, ...]
    max_new_tokens: int
    call_sizes: tuple[int, ...]  # nodes that a call may have, rising; the last: all

    @property
    def num_stored(self) -> int:
        """Nodes that may be accepted; probes are not."""
        return self.drafter.num_nodes - self.drafter.num_probes

    @property
    def is_chain(self) -> bool:
        """A tree as deep as it has nodes: its accepted path needs no move."""
        return self.drafter.max_depth == self.num_stored


class Verdict(NamedTuple):
    """Which lanes are accepted, and what follows."""

    path: Array  # int32 [B, D]  lanes in order, repeating the last
    num_accepted: Array  # int32 [B]
    next_token: Array  # int32 [B]
    is_sound: Array  # bool [B]  every probability was a number


class Emitted(NamedTuple):
    """What a round adds."""

    tokens: Array  # int32 [B, D + 1]
    log_probs: Array  # float32 [B, D + 1]  raw
    count: Array  # int32 [B]  up to EOS, the row's end and what is no number
    saw_eos: Array  # bool [B]
    failed: Array  # bool [B]


def draft_verify(
    model: Model,
    drafter: Drafter,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    acceptance: BlockRule | str = "match",
    lenses: Sequence[Lens] = (),
    call_sizes: Sequence[int] = (),
) -> Decoder:
    """A Decoder that repeats: propose, verify in one target call, accept, observe.

    `model` must predict the next token. `acceptance` is `accept.match` or a BlockRule
    (wrap a NodeRule with `accept.by_node`). Target samples are keyed by position, so
    `match` returns exactly the tokens of plain sampling with the same key, whatever the
    drafter proposes. `lenses` change the target's law, each lane in its own context.
    With `call_sizes` a call has the fewest nodes of these that hold what all rows
    drafted; each size is a program of the model's call inside the one that decodes.
    Raises ValueError for another model, for unknown wants and for a drafter whose
    numbers of nodes cannot be.
    """
    plan = checked(
        model, drafter, max_new_tokens, sampling, acceptance, lenses, call_sizes
    )
    is_lossless = plan.acceptance is None or plan.acceptance.is_lossless
    return Decoder(
        init=functools.partial(init, plan),
        step=functools.partial(step, plan),
        done=functools.partial(done, plan),
        output=functools.partial(output, plan),
        max_steps=max_new_tokens,
        guarantee="lossless" if is_lossless else "lossy",
    )


def init(plan: Plan, params, keys, prompt: Prompt):
    """The prompt's text but its last token in the cache."""
    rows.no_holes(prompt, "draft-and-verify")
    model, drafter = plan.model, plan.drafter
    laid = rows.layout(prompt, plan.max_new_tokens, model)
    batch, length = laid.tokens.shape
    cache = model.init_cache(prompt, caches.num_slots(length + 1 + plan.num_stored))
    output, cache = prompts.prefill(model, params["model"], prompt, cache, drop=1)
    prefix = Prefix(laid.tokens, prompt.lengths, laid.end, prompt.lengths)
    state = PrefixState(
        prefix=prefix,
        log_probs=jnp.zeros((batch, length), jnp.float32),
        saw_eos=jnp.zeros(batch, bool),
        failed=jnp.zeros(batch, bool),
        cache=cache,
        drafter=drafter.init(params, keys, prompt, prefix, output),
    )
    # As of the target's: a row of which nothing is left asks for no call.
    num_calls, left_out = drafter.num_prefill_calls, 1 + drafter.num_prefill_left_out
    asked = jnp.maximum(prompt.lengths - left_out, 0)
    width = max(prompt.tokens.shape[1] - left_out, 0)
    return state, rows.prefill_info(
        model, prompt, drop=1,
        num_draft_calls=jnp.where(asked > 0, num_calls, 0),
        num_draft_tokens=num_calls * asked,
        num_draft_tokens_computed=jnp.full_like(asked, num_calls * width),
    )  # fmt: skip


def step(plan: Plan, params, keys, state: PrefixState):
    """Propose, verify in one target call, accept, append, compact, observe."""
    active = ~done(plan, state)
    prefix = state.prefix
    draft, drafter = plan.drafter.propose(params, keys, state.drafter, prefix)
    draft = calls.sanitized(draft, plan)
    query, reach = calls.verify_query(draft, prefix, plan)

    def call(query, reach, cache):
        output, cache = plan.model.apply(params["model"], query, cache)
        found = predict(plan, params, keys, prefix, query, reach, output)
        return (output, found), cache

    (output, prediction), cache, num_computed = calls.as_wide_as_needed(
        plan.call_sizes, call, (query, reach), draft, active, state.cache
    )
    verdict = judge(plan, params, keys, draft, prediction, output.hidden, reach, prefix)
    emitted = emit(plan, state, draft, verdict, prediction, active)
    round = Round(
        draft, output, prediction, verdict.path, verdict.num_accepted,
        verdict.next_token, prefix,
    )  # fmt: skip
    tokens, log_probs = append(prefix, state.log_probs, emitted)
    new = PrefixState(
        prefix=prefix._replace(tokens=tokens, length=prefix.length + emitted.count),
        log_probs=log_probs,
        saw_eos=state.saw_eos | emitted.saw_eos,
        failed=state.failed | emitted.failed,
        cache=compact(plan, cache, prefix.length - 1, verdict, active),
        drafter=plan.drafter.observe(params, keys, drafter, round),
    )
    return new, account(plan, draft, emitted, active, num_computed)


def predict(plan: Plan, params, keys, prefix, query, reach, output):
    """Statistics of every lane; noise is named by the position predicted."""
    places = functools.partial(rng.noise, keys, rng.TARGET, query.positions + 1)
    head = plan.model.head(params["model"])
    if not plan.lenses:
        return vocab_head.statistics(
            head, output.hidden, plan.wants, plan.sampling, places
        )
    views = calls.views_of(prefix, query, reach)
    return vocab_head.seen_through(
        plan.lenses, params, views, head, output.hidden, plan.wants, plan.sampling,
        places,
    )  # fmt: skip


def judge(
    plan: Plan, params, keys, draft: Draft, prediction: Prediction, hidden, reach,
    prefix: Prefix,
) -> Verdict:  # fmt: skip
    """Accepts a path: by equality, or drawn from the rule's own law."""
    root = prefix.length - 1
    num_lanes = 1 + plan.num_stored
    nodes = calls.without_probes(draft, plan.num_stored)
    depth, is_sound = trees.depths(reach), jnp.ones(root.shape, bool)
    if plan.acceptance is None:
        match = calls.in_turn if plan.is_chain else calls.matched
        leaf, next_token = match(nodes, prediction.token, reach, depth)
    else:
        judged = jax.tree.map(lambda leaf: leaf[:, :num_lanes], prediction)
        given = calls.given_to(plan.acceptance, params, hidden[:, :num_lanes])
        leaf, next_token, is_sound = calls.drawn(
            plan.acceptance, nodes, judged, given, keys, root
        )
    max_depth = plan.drafter.max_depth
    if plan.is_chain:  # a node's depth is its lane
        lanes = jnp.arange(1, max_depth + 1, dtype=jnp.int32)[None]
        path, num_accepted = jnp.minimum(lanes, leaf[:, None]), leaf
    else:
        path = trees.path_to(reach, depth, leaf, max_depth)
        num_accepted = jnp.take_along_axis(depth, leaf[:, None], 1)[:, 0]
    return Verdict(path, num_accepted, next_token, is_sound)


def emit(
    plan: Plan, state: PrefixState, draft, verdict: Verdict, prediction, active
) -> Emitted:
    """The verdict's tokens, cut at the row's end and behind the first EOS.

    Accepted lanes 1 3 and next token y, D = 3: tokens t1 t3 y y, judged at 0 1 3 3.
    """
    path, num_accepted = verdict.path, verdict.num_accepted
    size = path.shape[1] + 1
    place = jnp.arange(size, dtype=jnp.int32)[None]
    last = verdict.next_token[:, None]
    accepted = calls.along(plan, path, draft.tokens)
    tokens = jnp.concatenate([accepted, last], 1)
    tokens = jnp.where(place < num_accepted[:, None], tokens, last)
    judged_at = jnp.concatenate([jnp.zeros_like(last), path], 1)
    log_probs = calls.log_prob_of(plan, prediction, tokens, judged_at)

    room = jnp.minimum(num_accepted + 1, state.prefix.end - state.prefix.length)
    is_number = jnp.isfinite(log_probs) & verdict.is_sound[:, None]
    return cut(plan.model.eos_ids, tokens, log_probs, is_number, room, active)


def cut(
    eos_ids: tuple[int, ...],
    tokens: Array,  # int32 [B, N]
    log_probs: Array,  # float32 [B, N]
    is_number: Array,  # bool [B, N]
    room: Array,  # int32 [B]  tokens at most
    active: Array,  # bool [B]
) -> Emitted:
    """The tokens up to the first EOS, or to the first law that is no number."""
    size = tokens.shape[1]
    place = jnp.arange(size, dtype=jnp.int32)[None]
    sound = jnp.where(is_number, size, place).min(1)
    is_end = rows.is_eos(tokens, eos_ids) & (place < room[:, None])
    first_eos = jnp.where(is_end, place, size).min(1)
    count = jnp.minimum(jnp.minimum(room, first_eos + 1), sound)
    return Emitted(
        tokens=tokens,
        log_probs=log_probs,
        count=jnp.where(active, count, 0),
        saw_eos=active & (first_eos < count),
        failed=active & (sound < jnp.minimum(room, first_eos + 1)),
    )


def append(prefix: Prefix, log_probs: Array, emitted: Emitted) -> tuple[Array, Array]:
    """Tokens and log-probabilities [B, L] with what was emitted behind the prefix."""
    # A select of the whole buffer, which is small, fuses where a scatter does not.
    nth = jnp.arange(prefix.tokens.shape[1])[None] - prefix.length[:, None]
    is_here = (nth >= 0) & (nth < emitted.count[:, None])
    is_nth = nth[..., None] == jnp.arange(emitted.tokens.shape[1])[None, None]

    def put(new, old):
        spread = jnp.where(is_nth, new[:, None], 0).sum(-1, dtype=old.dtype)
        return jnp.where(is_here, spread, old)

    return put(emitted.tokens, prefix.tokens), put(emitted.log_probs, log_probs)


def compact(plan: Plan, cache, root: Array, verdict: Verdict, active: Array) -> Cache:
    """The cache with the accepted nodes next to the root, which stands in its slot."""
    if plan.is_chain:
        return cache
    nth = jnp.arange(1, plan.drafter.max_depth + 1, dtype=jnp.int32)[None]
    kept = (nth <= verdict.num_accepted[:, None]) & active[:, None]
    source = root[:, None] + verdict.path
    return plan.model.move(cache, source, SlotRun(root + 1, kept))


def account(
    plan: Plan, draft: Draft, emitted: Emitted, active: Array, num_computed=None
):
    """What the round did, as StepInfo; its call had `num_computed` nodes, or all."""
    if num_computed is None:
        num_computed = plan.drafter.num_nodes
    is_fed = draft.tokens >= 0
    if draft.extra is not None:  # what stands at a node, a token there or not
        is_fed |= (draft.extra != 0).any(-1)
    asked = 1 + is_fed.sum(1, dtype=jnp.int32)
    proposed = draft.tokens[:, : plan.num_stored] >= 0  # a probe is no proposal
    per_call = jnp.where(active, plan.model.num_calls, 0)
    drafted = {}
    if draft.cost is not None:
        drafted = {
            f"num_draft_{name[4:]}": jnp.where(active, count, 0)
            for name, count in draft.cost._asdict().items()
        }
    return rows.info(
        per_call,
        num_calls=per_call,
        num_committed=emitted.count,
        num_proposed=jnp.where(active, proposed.sum(1, dtype=jnp.int32), 0),
        num_query_tokens=per_call * asked,
        num_query_tokens_computed=per_call * (1 + num_computed),
        num_dispatches=jnp.ones((), jnp.int32),
        **drafted,
    )


def done(plan: Any, state: Any) -> Array:
    """bool [B]; of any state with a prefix."""
    del plan
    is_full = state.prefix.length >= state.prefix.end
    return state.saw_eos | state.failed | is_full


def output(plan: Any, state: Any) -> Generation:
    """The result so far, of any state with a prefix."""
    del plan
    prefix = state.prefix
    place = jnp.arange(prefix.tokens.shape[1])[None]
    committed = place >= prefix.prompt_end[:, None]
    return Generation(
        tokens=prefix.tokens,
        start=prefix.prompt_end,
        lengths=prefix.length - prefix.prompt_end - state.saw_eos,
        log_probs=state.log_probs,
        stopped_by=rows.stopped_by(state.saw_eos, state.failed),
        committed=committed & (place < prefix.length[:, None]),
    )


def checked(
    model, drafter, max_new_tokens, sampling, acceptance, lenses=(), call_sizes=()
) -> Plan:
    """The plan of a `draft_verify`; errors as there."""
    if model.predicts != "next":
        raise ValueError(
            f"draft-and-verify needs a causal model, but {model.name} has "
            f"predicts={model.predicts!r}: use a method of the masked or frontier "
            "family"
        )
    num_stored = drafter.num_nodes - drafter.num_probes
    if not 0 <= drafter.num_probes <= drafter.num_nodes:
        raise ValueError(
            f"a drafter of num_nodes={drafter.num_nodes} cannot have "
            f"num_probes={drafter.num_probes}"
        )
    if not min(num_stored, 1) <= drafter.max_depth <= num_stored:
        raise ValueError(
            f"max_depth={drafter.max_depth} of a drafter with {num_stored} nodes must "
            f"lie in [{min(num_stored, 1)}, {num_stored}]"
        )
    if isinstance(acceptance, str) and acceptance != "match":
        raise ValueError(f"{acceptance=} must be 'match' or a BlockRule")
    rule = None if isinstance(acceptance, str) else acceptance
    if rule is not None:
        calls.check_fit(rule, drafter)
    if any(lens.init() != () for lens in lenses):
        raise ValueError("draft-and-verify keeps no memory of positions for a lens")
    if lenses and drafter.is_of_target:
        raise ValueError(
            "this drafter tells its q from the target's states as they are: leave the "
            "lenses out, or take a transport without q (guesses.argmax)"
        )
    sizes = calls.checked_sizes(call_sizes, drafter)
    wants = ("token", "log_prob") if rule is None else ("logits", *rule.wants)
    wants = tuple(dict.fromkeys((*wants, *drafter.wants)))
    vocab_head.check_wants(wants)
    return Plan(
        model, drafter, rule, tuple(lenses), without_mask(model, sampling), wants,
        max_new_tokens, sizes,
    )  # fmt: skip
