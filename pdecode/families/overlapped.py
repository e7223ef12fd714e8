"""Draft-and-verify in which neither model waits for the other.

A phase drafts `window` tokens and judges those of the phase before, at once: the
drafter reads on from what is still pending, the target reads what is pending, and what
they found meets in `judge`. A first draft is judged by the lane before it, so it is
decided in its own phase; if it stays, the drafts behind it are pending, else they are
dropped and the next phase has nothing to judge but its own first draft.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode import prompts, rng, trees
from pdecode.contracts import (
    Cache,
    Decoder,
    Draft,
    DraftCost,
    Drafter,
    Model,
    NodeRule,
    Prediction,
    Prefix,
    Query,
    Sampling,
    SlotRun,
    Visibility,
)
from pdecode.families import speculative
from pdecode.families import speculative_calls as calls
from pdecode.kernels.head import api as vocab_head
from pdecode.rules import accept
from pdecode.sampling import categorical, without_mask


class Ahead(NamedTuple):
    """What the drafter holds between phases."""

    cache: Cache  # its own: all before the last token that is committed or pending
    tokens: Array  # int32 [B, W - 1]  pending; -1: none are
    hidden: Array  # [B, W - 1, E]  its states that predicted them


class Drafted(NamedTuple):
    """What a phase drafted behind what was pending."""

    tokens: Array  # int32 [B, W]
    hidden: Array  # [B, W, E]
    cache: Cache


class Plan(NamedTuple):
    """What a decode is made of, checked once."""

    verify: speculative.Plan  # its nodes are what is pending
    drafter: Model
    window: int
    sampling: Sampling  # the drafter's
    run: Callable  # `together`, or what `apart` gives


def overlapped(
    model: Model,
    drafter: Model,
    window: int,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    acceptance: NodeRule | str = "match",
    run: Callable | None = None,
) -> Decoder:
    """A Decoder of phases: draft, judge what is pending, join.

    `acceptance` is `accept.match`, with drafts under the target's own noise, or a
    NodeRule for one child. A run of phases goes on until a draft is refused, so the
    drafted length adapts. `run` says where the models work: `together`, or `apart` on
    two devices. Raises ValueError for models that do not predict what is next.
    """
    if drafter.predicts != "next":
        raise ValueError(
            f"the drafter {drafter.name} has predicts={drafter.predicts!r}, and must "
            "predict what is next"
        )
    own = without_mask(drafter, sampling)
    record = Drafter(
        window - 1,
        window - 1,
        functools.partial(_begin, drafter, window),
        propose=lambda params, keys, state, prefix: (pending(state), state),
        observe=lambda params, keys, state, round: state,
        num_prefill_calls=1,
    )
    rule = acceptance if isinstance(acceptance, str) else accept.by_node(acceptance)
    verify = speculative.checked(model, record, max_new_tokens, sampling, rule)
    plan = Plan(verify, drafter, window, own, together if run is None else run)
    is_lossless = verify.acceptance is None or verify.acceptance.is_lossless
    return Decoder(
        init=functools.partial(speculative.init, verify),
        step=functools.partial(step, plan),
        done=functools.partial(speculative.done, verify),
        output=functools.partial(speculative.output, verify),
        max_steps=max_new_tokens,
        guarantee="lossless" if is_lossless else "lossy",
    )


def step(plan: Plan, params, keys, state: speculative.PrefixState):
    """Draft and verify side by side, then join: neither reads what the other made."""
    drafted, verified = plan.run(plan, params, keys, state)
    return join(plan, params, keys, state, drafted, *verified)


def together(plan: Plan, params, keys, state: speculative.PrefixState):
    """Both models in one program on the same devices; the compiler may overlap them."""
    return draft(plan, params, keys, state), verify(plan, params, keys, state)


def apart(axis: str) -> Callable:
    """A `run` with the drafter on the first of two devices of mesh axis `axis`.

    For a decode inside `jax.shard_map` over that axis, with everything replicated and
    `check_vma=False`. Each device calls its own model only and keeps its cache; what
    they found is exchanged, and both go on from the same state.
    """

    def run(plan: Plan, params, keys, state: speculative.PrefixState):
        def blank(phase):
            shapes = jax.eval_shape(functools.partial(phase, plan), params, keys, state)
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def drafts(state):
            judged, found, _ = blank(verify)
            drafted = draft(plan, params, keys, state)
            own = drafted.cache, state.cache
            return (drafted._replace(cache=()), judged, found), own

        def verifies(state):
            judged, found, cache = verify(plan, params, keys, state)
            drafted = blank(draft)._replace(cache=())
            return (drafted, judged, found), (state.drafter.cache, cache)

        is_drafter = jax.lax.axis_index(axis) == 0
        made, (drafter_cache, cache) = jax.lax.cond(is_drafter, drafts, verifies, state)
        drafted, judged, found = jax.lax.all_gather(made, axis)
        drafted = _of_device(0, drafted)._replace(cache=drafter_cache)
        return drafted, (_of_device(1, judged), _of_device(1, found), cache)

    return run


def draft(plan: Plan, params, keys, state: speculative.PrefixState) -> Drafted:
    """`window` tokens behind what is pending, drawn one after another."""
    ahead, prefix, own = state.drafter, state.prefix, params["drafter"]
    root = prefix.length - 1
    waiting = _num_pending(ahead)
    last = jnp.take_along_axis(prefix.tokens, root[:, None], 1)
    if plan.window > 1:
        last = jnp.where(waiting[:, None] > 0, ahead.tokens[:, -1:], last)

    def turn(carry, nth):
        token, cache = carry
        place = (root + waiting + nth)[:, None]
        query = Query(
            tokens=token,
            positions=place,
            slots=SlotRun(place[:, 0]),
            visible=Visibility(jnp.zeros_like(place), place + 1),
        )
        output, cache = plan.drafter.apply(own, query, cache)
        drawn = draw(plan, own, keys, root, place + 1, output.hidden)
        return (drawn, cache), (drawn[:, 0], output.hidden[:, 0])

    steps = jnp.arange(plan.window, dtype=jnp.int32)
    (_, cache), (tokens, hidden) = jax.lax.scan(turn, (last, ahead.cache), steps)
    hidden = hidden.swapaxes(0, 1).astype(ahead.hidden.dtype)
    return Drafted(tokens.T, hidden, cache)


def draw(plan: Plan, own, keys, root, position, hidden) -> Array:
    """A token int32 [B, 1] at `position` [B, 1]; in "match" the target's noise."""
    head = plan.drafter.head(own)
    if plan.verify.acceptance is None:
        places = functools.partial(rng.noise, keys, rng.TARGET, position)
        return vocab_head.statistics(
            head, hidden, ("token",), plan.sampling, places
        ).token
    law = vocab_head.statistics(head, hidden, ("probs",), plan.sampling).probs
    # A position may be drafted again in a later phase: never with the same noise.
    return categorical(law, rng.noise(keys, rng.DRAFT, position, round=root))


def verify(plan: Plan, params, keys, state: speculative.PrefixState):
    """(what is pending, the target's law behind the root and each of it, cache)."""
    base = plan.verify
    judged = calls.sanitized(pending(state.drafter), base)
    query, reach = calls.verify_query(judged, state.prefix, base)
    output, cache = base.model.apply(params["model"], query, state.cache)
    found = speculative.predict(base, params, keys, state.prefix, query, reach, output)
    return judged, found, cache


def join(plan: Plan, params, keys, state, drafted, judged, prediction, cache):
    """Accepts and appends; what was drafted behind an accepted end is pending then."""
    base, active = plan.verify, ~speculative.done(plan.verify, state)
    verdict, goes_on = judge(plan, params, keys, state, drafted, judged, prediction)
    emitted = speculative.emit(base, state, judged, verdict, prediction, active)
    tokens, log_probs = speculative.append(state.prefix, state.log_probs, emitted)
    new = speculative.PrefixState(
        prefix=state.prefix._replace(
            tokens=tokens, length=state.prefix.length + emitted.count
        ),
        log_probs=log_probs,
        saw_eos=state.saw_eos | emitted.saw_eos,
        failed=state.failed | emitted.failed,
        cache=cache,
        drafter=Ahead(
            drafted.cache,
            jnp.where(goes_on[:, None], drafted.tokens[:, 1:], -1),
            drafted.hidden[:, 1:],
        ),
    )
    each = jnp.full_like(emitted.count, plan.window)
    judged = judged._replace(cost=DraftCost(each, each, each))
    info = speculative.account(base, judged, emitted, active)
    return new, info._replace(num_proposed=info.num_proposed + active)


def judge(plan: Plan, params, keys, state, drafted: Drafted, judged, prediction):
    """(Verdict on what is pending, whether the first new draft stays bool [B]).

    A first draft that stays is the verdict's next token.
    """
    count, first = _num_pending(state.drafter), drafted.tokens[:, 0]
    if plan.verify.acceptance is None:
        reach = trees.ancestors(judged.parents)
        depth = trees.depths(reach)
        leaf, token = calls.matched(judged, prediction.token, reach, depth)
        goes_on = (leaf == count) & (token == first)
        is_sound = jnp.ones_like(goes_on)
    else:
        law = vocab_head.statistics(
            plan.drafter.head(params["drafter"]),
            chained(state.drafter.hidden, drafted.hidden, count),
            ("probs",),
            plan.sampling,
        ).probs
        line = chained(judged.tokens, drafted.tokens, count)
        nodes = jnp.arange(plan.window)[None]
        line = Draft(
            tokens=jnp.where(nodes <= count[:, None], line, -1),
            parents=jnp.broadcast_to(nodes - 1, line.shape),
            q=law,
        )
        # Behind the first draft nothing was judged, and nothing is drawn.
        p = jnp.concatenate([prediction.probs, prediction.probs[:, -1:]], 1)
        leaf, token, is_sound = calls.drawn(
            plan.verify.acceptance, line, Prediction(probs=p), (), keys,
            state.prefix.length - 1,
        )  # fmt: skip
        goes_on = leaf > count
        token = jnp.where(goes_on, first, token)
    accepted = jnp.minimum(leaf, count)
    lanes = jnp.arange(1, plan.window, dtype=jnp.int32)[None]
    path = jnp.minimum(lanes, accepted[:, None])
    return speculative.Verdict(path, accepted, token, is_sound), goes_on


def chained(waiting: Array, new: Array, count: Array) -> Array:
    """[B, W, ...]: the pending ones and the first new one behind them.

    count 2, W = 3: p p n;  count 0: n n n, of which only the first is judged
    """
    firsts = jnp.broadcast_to(new[:, :1], new.shape)
    before = jnp.concatenate([waiting, new[:, :1]], 1)
    is_waiting = jnp.arange(new.shape[1])[None] < count[:, None]
    is_waiting = is_waiting.reshape(is_waiting.shape + (1,) * (new.ndim - 2))
    return jnp.where(is_waiting, before, firsts)


def pending(ahead: Ahead) -> Draft:
    """What is pending, as a chain behind the root."""
    chain = jnp.arange(-1, ahead.tokens.shape[1] - 1, dtype=jnp.int32)
    return Draft(ahead.tokens, jnp.broadcast_to(chain, ahead.tokens.shape))


def _of_device(index: int, gathered: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], gathered)


def _num_pending(ahead: Ahead) -> Array:
    return (ahead.tokens >= 0).sum(1, dtype=jnp.int32)


def _begin(drafter: Model, window: int, params, keys, prompt, prefix: Prefix, output):
    """The prompt in the drafter's cache, and nothing pending."""
    del keys, output
    batch, length = prefix.tokens.shape
    own = params["drafter"]
    cache = drafter.init_cache(prompt, caches.num_slots(length + 2 * window))
    _, cache = prompts.prefill(drafter, own, prompt, cache, drop=1)
    head = drafter.head(own).weight
    hidden = jnp.zeros((batch, window - 1, head.shape[1]), head.dtype)
    return Ahead(cache, jnp.full((batch, window - 1), -1, jnp.int32), hidden)
