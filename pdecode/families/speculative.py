"""The draft-and-verify family: a drafter proposes a tree, one target call judges it.

State is the committed prefix. The cache holds all of it but the last token, the root;
a round's call has the root in lane 0 and the draft's nodes after it, all written to
scratch slots behind the prefix, and the accepted path is then moved next to it. With no
nodes this is plain autoregressive decoding, so the baseline runs through the same code.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import prompts, rng, trees
from pdecode.contracts import (
    BlockRule,
    Cache,
    Decoder,
    Draft,
    Drafter,
    Generation,
    Model,
    Prediction,
    Prefix,
    Prompt,
    Query,
    Round,
    Sampling,
    SlotRun,
    StepInfo,
    Visibility,
)
from pdecode.families import rows as eos
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import categorical


class PrefixState(NamedTuple):
    """Carry of the loop."""

    tokens: Array  # int32 [B, L]  prompt and what is committed
    log_probs: Array  # float32 [B, L]
    length: Array  # int32 [B]  committed tokens; the cache holds all but the last
    end: Array  # int32 [B]
    prompt_end: Array  # int32 [B]
    saw_eos: Array  # bool [B]
    cache: Cache
    drafter: Any


def draft_verify(
    model: Model,
    drafter: Drafter,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    acceptance: BlockRule | str = "match",
) -> Decoder:
    """A Decoder that repeats: propose, verify in one target call, accept, observe.

    `model` must be causal. `acceptance` is `accept.match` or a BlockRule (wrap a
    NodeRule with `accept.by_node`). Target samples are keyed by position, so `match`
    returns exactly the tokens of plain sampling with the same key. Raises ValueError
    for a model that is not causal and for unknown wants.
    """
    if model.predicts != "next":
        raise ValueError(
            f"draft-and-verify needs a causal model, but {model.name} has "
            f"predicts={model.predicts!r}: use a method of the masked or frontier "
            "family"
        )
    num_nodes, num_probes = drafter.num_nodes, drafter.num_probes
    num_stored = num_nodes - num_probes
    # A tree as deep as it has nodes is a chain: its accepted path needs no move.
    is_chain = drafter.max_depth == num_stored
    is_match = isinstance(acceptance, str)
    wants = ("token", "log_prob") if is_match else ("logits", *acceptance.wants)
    wants = tuple(dict.fromkeys((*wants, *drafter.wants)))
    vocab_head.check_wants(wants)

    def target_params(params):
        return params[0] if drafter.is_paired else params

    def init(params, keys, prompt: Prompt):
        batch, width = prompt.tokens.shape
        if prompt.masked is not None:
            raise ValueError(
                "the prompt has holes to fill: draft-and-verify only continues a "
                "prefix; use a method of the masked family"
            )
        length = prompts.buffer_length(prompt, max_new_tokens, model)
        num_slots = length + 1 + num_stored
        cache = model.init_cache(prompt, num_slots)
        is_text = jnp.arange(width)[None] < prompt.lengths[:, None]
        tokens = jnp.zeros((batch, length), jnp.int32)
        tokens = tokens.at[:, :width].set(jnp.where(is_text, prompt.tokens, 0))
        output, cache = prefill(model, target_params(params), prompt, cache)
        end = prompt.lengths + jnp.minimum(prompt.max_new, max_new_tokens)
        prefix = Prefix(tokens, prompt.lengths, end, prompt.lengths)
        state = PrefixState(
            tokens=tokens,
            log_probs=jnp.zeros((batch, length), jnp.float32),
            length=prefix.length,
            end=prefix.end,
            prompt_end=prefix.prompt_end,
            saw_eos=jnp.zeros(batch, bool),
            cache=cache,
            drafter=drafter.init(params, keys, prompt, prefix, output),
        )
        return state, _info(
            num_calls=jnp.where(prompt.lengths > 1, model.num_calls, 0),
            num_query_tokens=(prompt.lengths - 1) * model.num_calls,
            num_query_tokens_computed=jnp.full_like(
                prompt.lengths, (width - 1) * model.num_calls
            ),
        )

    def step(params, keys, state: PrefixState):
        active = ~done(state)
        prefix = Prefix(state.tokens, state.length, state.end, state.prompt_end)
        root = state.length - 1
        draft, drafter_state = drafter.propose(params, keys, state.drafter, prefix)

        query, reach = verify_query(draft, prefix, num_stored, is_chain)
        target = target_params(params)
        output, cache = model.apply(target, query, state.cache)
        places = functools.partial(rng.noise, keys, rng.TARGET, query.positions + 1)
        prediction = vocab_head.statistics(
            model.head(target), output.hidden, wants, sampling, places
        )

        nodes = _without_probes(draft, num_stored)
        depth = trees.depths(reach)
        if is_match:
            leaf, next_token = _match(nodes, prediction.token, reach, depth)
        else:
            judged = jax.tree.map(lambda leaf: leaf[:, : 1 + num_stored], prediction)
            leaf, next_token = _draw(acceptance, nodes, judged, keys, root)
        if is_chain:
            lanes = jnp.arange(1, drafter.max_depth + 1, dtype=jnp.int32)[None]
            path = jnp.minimum(lanes, leaf[:, None])
        else:
            path = trees.path_to(reach, depth, leaf, drafter.max_depth)
        num_accepted = jnp.take_along_axis(depth, leaf[:, None], 1)[:, 0]

        new_tokens, judged_at = _emitted(draft, path, num_accepted, next_token)
        place = jnp.arange(drafter.max_depth + 1, dtype=jnp.int32)[None]
        room = jnp.minimum(num_accepted + 1, state.end - state.length)
        is_eos = eos.is_eos(new_tokens, model.eos_ids) & (place < room[:, None])
        first_eos = jnp.where(is_eos, place, drafter.max_depth + 1).min(1)
        saw_eos = state.saw_eos | (active & is_eos.any(1))
        num_committed = jnp.where(active, jnp.minimum(room, first_eos + 1), 0)

        # A select of the whole buffer, which is small, fuses where a scatter does not.
        nth = jnp.arange(state.tokens.shape[1])[None] - state.length[:, None]
        is_here = (nth >= 0) & (nth < num_committed[:, None])
        is_nth = nth[..., None] == place[None]
        log_prob = _log_prob_of(prediction, new_tokens, judged_at, is_match)
        tokens, log_probs = (
            jnp.where(
                is_here,
                jnp.where(is_nth, new[:, None], 0).sum(-1, dtype=old.dtype),
                old,
            )
            for new, old in (
                (new_tokens, state.tokens),
                (log_prob, state.log_probs),
            )
        )
        length = state.length + num_committed

        if not is_chain and drafter.max_depth > 0:
            # The root already stands in its slot; only accepted nodes move.
            kept = (place[:, 1:] <= num_accepted[:, None]) & active[:, None]
            cache = model.move(cache, root[:, None] + path, SlotRun(root + 1, kept))
        drafter_state = drafter.observe(
            params,
            keys,
            drafter_state,
            Round(draft, output, prediction, path, num_accepted, next_token, prefix),
        )
        asked = 1 + (draft.tokens >= 0).sum(1, dtype=jnp.int32)
        per_call = jnp.where(active, model.num_calls, 0)
        new_state = PrefixState(
            tokens=tokens,
            log_probs=log_probs,
            length=length,
            end=state.end,
            prompt_end=state.prompt_end,
            saw_eos=saw_eos,
            cache=cache,
            drafter=drafter_state,
        )
        return new_state, _info(
            num_calls=per_call,
            num_committed=num_committed,
            num_proposed=jnp.where(active, asked - 1, 0),
            num_query_tokens=per_call * asked,
            num_query_tokens_computed=per_call * (1 + num_nodes),
            num_dispatches=jnp.ones((), jnp.int32),
        )

    def done(state: PrefixState) -> Array:
        return state.saw_eos | (state.length >= state.end)

    def output(state: PrefixState) -> Generation:
        num_generated = state.length - state.prompt_end
        return Generation(
            tokens=state.tokens,
            start=state.prompt_end,
            lengths=num_generated - state.saw_eos,
            log_probs=state.log_probs,
            stopped_by=state.saw_eos.astype(jnp.int32),
        )

    return Decoder(init, step, done, output, max_new_tokens)


def banned(model: Model) -> tuple[int, ...]:
    """Ids that a continuation may not hold: the mask, if there is one."""
    return () if model.mask_id is None else (model.mask_id,)


def prefill(model: Model, params, prompt: Prompt, cache: Cache):
    """Stores all but the last prompt token in slots 0, 1, ...; (Output, cache).

    The output covers those tokens, hidden [B, P - 1, E] (P = 1: no call, None).
    """
    width = prompt.tokens.shape[1]
    if width == 1:
        return None, cache
    place = jnp.broadcast_to(
        jnp.arange(width - 1, dtype=jnp.int32), (prompt.tokens.shape[0], width - 1)
    )
    is_text = place < prompt.lengths[:, None] - 1
    query = Query(
        tokens=jnp.where(is_text, prompt.tokens[:, :-1], 0),
        positions=place,
        # What padding leaves behind the text is written over before it is seen.
        slots=SlotRun(jnp.zeros_like(prompt.lengths)),
        visible=Visibility(start=jnp.zeros_like(place), stop=place + 1),
    )
    return model.encode(params, query, cache)


def verify_query(draft: Draft, prefix: Prefix, num_stored: int, is_chain: bool):
    """The verifying Query of 1 + N lanes, and reach bool [B, 1 + N, 1 + N]."""
    batch, num_nodes = draft.tokens.shape
    root = prefix.length - 1
    root_token = jnp.take_along_axis(prefix.tokens, root[:, None], 1)
    reach = trees.ancestors(draft.parents)
    depth = trees.depths(reach)
    if draft.offsets is not None:
        depth = jnp.concatenate([jnp.zeros((batch, 1), jnp.int32), draft.offsets], 1)
    lane = jnp.arange(1 + num_nodes, dtype=jnp.int32)[None]
    stored = None
    if num_stored < num_nodes:
        stored = jnp.broadcast_to(lane <= num_stored, (batch, 1 + num_nodes))
    start = jnp.zeros((batch, 1 + num_nodes), jnp.int32)
    if is_chain and num_stored == num_nodes and draft.among is None:
        # Each lane sees the prefix and the lanes before it: one interval.
        visible = Visibility(start, root[:, None] + 1 + lane)
    else:
        among = reach
        if draft.among is not None:
            among = among.at[:, 1:, 1:].set(draft.among).at[:, :, 0].set(True)
        visible = Visibility(
            start, jnp.broadcast_to(root[:, None], start.shape), among=among
        )
    query = Query(
        tokens=jnp.concatenate([root_token, jnp.maximum(draft.tokens, 0)], 1),
        positions=root[:, None] + depth,
        slots=SlotRun(root, stored),
        visible=visible,
    )
    return query, reach


def _match(draft: Draft, wanted: Array, reach: Array, depth: Array):
    """Leaf and next token [B]: follow nodes that are what the target wants there."""
    parent = jnp.maximum(draft.parents + 1, 0)
    hit = draft.tokens == jnp.take_along_axis(wanted, parent, 1)
    num_lanes = 1 + hit.shape[1]
    leaf = trees.deepest(hit, reach[:, :num_lanes, :num_lanes], depth[:, :num_lanes])
    return leaf, jnp.take_along_axis(wanted, leaf[:, None], 1)[:, 0]


def _without_probes(draft: Draft, num_stored: int) -> Draft:
    return Draft(
        tokens=draft.tokens[:, :num_stored],
        parents=draft.parents[:, :num_stored],
        q=None if draft.q is None else draft.q[:, :num_stored],
    )


def _draw(rule: BlockRule, draft: Draft, prediction: Prediction, keys, root: Array):
    """Leaf and next token [B], drawn from the rule's probabilities."""
    stop, residual = jax.vmap(rule.apply)(draft, prediction)
    position = root[:, None]
    leaf_place = rng.noise(keys, rng.ACCEPT, position, round=root)
    leaf = categorical(stop, leaf_place[:, 0])
    law = jnp.take_along_axis(residual, leaf[:, None, None], 1)[:, 0]
    token_place = rng.noise(
        keys, rng.RESIDUAL, position, round=root, index=leaf[:, None]
    )
    return leaf, categorical(law, token_place[:, 0])


def _emitted(draft: Draft, path: Array, num_accepted: Array, next_token: Array):
    """Tokens [B, D + 1] in order, and the lane that judged each.

    Accepted lanes 1 3 and next token y, D = 3: tokens t1 t3 y y, judged at 0 1 3 3.
    """
    place = jnp.arange(path.shape[1] + 1)[None]
    last = next_token[:, None]
    accepted = jnp.take_along_axis(draft.tokens, jnp.maximum(path - 1, 0), 1)
    tokens = jnp.concatenate([accepted, last], 1)
    tokens = jnp.where(place < num_accepted[:, None], tokens, last)
    return tokens, jnp.concatenate([jnp.zeros_like(last), path], 1)


def _log_prob_of(prediction: Prediction, tokens, lanes, is_match: bool) -> Array:
    """Raw log-probability float32 [B, D + 1] of `tokens` judged at `lanes`."""
    if is_match:
        # Every emitted token is its lane's own sample.
        return jnp.take_along_axis(prediction.log_prob, lanes, 1).astype(jnp.float32)
    log_probs = jax.nn.log_softmax(prediction.logits)
    at_lane = jnp.take_along_axis(log_probs, lanes[..., None], 1)
    picked = jnp.take_along_axis(at_lane, tokens[..., None], 2)[..., 0]
    return picked.astype(jnp.float32)


def _info(**counts) -> StepInfo:
    zero = jnp.zeros_like(counts["num_calls"])
    blank = StepInfo(*([zero] * 6), num_dispatches=jnp.zeros((), jnp.int32))
    return blank._replace(**counts)
