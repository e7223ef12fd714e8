"""The frontier family: any order, a group at a time, undecided positions absent.

For models with position queries (ARPG, LPD, any-order autoregressive). Keys and values
lie in the cache in commit order, so what a query may see is one interval. Each step is
one call: the tokens committed by the last step are stored, and the next group's
position queries, which nobody stores, read the prefix and those tokens.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import prompts, rng
from pdecode.contracts import (
    Cache,
    Decoder,
    Generation,
    Model,
    Prompt,
    Query,
    Sampling,
    SlotRun,
    StepInfo,
    Visibility,
)
from pdecode.families import rows as eos
from pdecode.kernels.head import api as vocab_head


class FrontierState(NamedTuple):
    """Carry of the loop."""

    tokens: Array  # int32 [B, L]
    log_probs: Array  # float32 [B, L]
    decided: Array  # bool [B, L]  prompt and committed positions
    prompt_end: Array  # int32 [B]
    end: Array  # int32 [B]
    group: Array  # int32 [B]  next group of the order
    num_cached: Array  # int32 [B]  keys in the cache, in commit order
    pending: Array  # int32 [B, G]  positions committed but not cached; -1 pads
    cache: Cache


def frontier(
    model: Model,
    rank: np.ndarray,
    *,
    max_new_tokens: int,
    sampling: Sampling,
) -> Decoder:
    """A Decoder that fills `rank` (int [N], N >= max_new_tokens) group by group.

    Positions of equal rank are drawn in one call, independently given what is decided.
    Ranks count from the end of each row's prompt; positions past a row's end are
    skipped. The law sampled is the model's own over these groups; with groups of one it
    is exactly the model's any-order law. Raises ValueError for a causal model or a rank
    that is too short.
    """
    if model.predicts != "masked" or model.mask_id is None:
        raise ValueError(
            f"the frontier family asks positions by a mask token, but {model.name} has "
            f"predicts={model.predicts!r}: use draft-and-verify for a causal model"
        )
    rank = np.asarray(rank)
    if rank.ndim != 1 or len(rank) < max_new_tokens:
        raise ValueError(
            f"rank has shape {rank.shape}, but max_new_tokens={max_new_tokens}: "
            "give a rank to every position"
        )
    groups = _groups(rank[:max_new_tokens])
    num_groups, width = groups.shape
    table = jnp.asarray(groups)
    sampling = sampling._replace(
        banned=tuple(dict.fromkeys((model.mask_id, *sampling.banned)))
    )

    def init(params, keys, prompt: Prompt):
        del keys
        batch, prompt_width = prompt.tokens.shape
        if prompt.masked is not None:
            raise ValueError("the prompt has holes: fill them with the masked family")
        length = prompts.buffer_length(prompt, max_new_tokens, model)
        place = jnp.arange(length)[None]
        is_text = place < prompt.lengths[:, None]
        tokens = jnp.zeros((batch, length), jnp.int32)
        tokens = tokens.at[:, :prompt_width].set(prompt.tokens)
        tokens = jnp.where(is_text, tokens, 0)
        cache = model.init_cache(prompt, length + 1)
        zero = jnp.zeros(batch, jnp.int32)
        lanes = jnp.broadcast_to(
            jnp.arange(prompt_width, dtype=jnp.int32), (batch, prompt_width)
        )
        query = Query(
            tokens=jnp.where(lanes < prompt.lengths[:, None], prompt.tokens, 0),
            positions=lanes,
            # What padding leaves behind the text is written over before it is seen.
            slots=SlotRun(zero),
            visible=Visibility(
                start=jnp.zeros_like(lanes),
                stop=jnp.broadcast_to(prompt.lengths[:, None], lanes.shape),
            ),
        )
        _, cache = model.encode(params, query, cache)
        state = FrontierState(
            tokens=tokens,
            log_probs=jnp.zeros((batch, length), jnp.float32),
            decided=is_text,
            prompt_end=prompt.lengths,
            end=prompt.lengths + jnp.minimum(prompt.max_new, max_new_tokens),
            group=zero,
            num_cached=prompt.lengths,
            pending=jnp.full((batch, width), -1, jnp.int32),
            cache=cache,
        )
        has_text = (prompt.lengths > 0).astype(jnp.int32) * model.num_calls
        info = StepInfo(*[zero] * 6, num_dispatches=jnp.zeros((), jnp.int32))
        return state, info._replace(
            num_calls=has_text,
            num_query_tokens=has_text * prompt.lengths,
            num_query_tokens_computed=has_text * prompt_width,
        )

    def step(params, keys, state: FrontierState):
        active = ~done(state)
        batch, length = state.tokens.shape
        rows = jnp.arange(batch)[:, None]
        offset = table[jnp.minimum(state.group, num_groups - 1)]  # [B, G], -1 pads
        asked = state.prompt_end[:, None] + offset
        is_asked = (offset >= 0) & (asked < state.end[:, None]) & active[:, None]
        is_real = state.pending >= 0

        # Lanes: [pending tokens, stored in commit order | position queries, not stored]
        real = jnp.maximum(state.pending, 0)
        queried = jnp.where(is_asked, asked, 0)
        is_lane = jnp.concatenate([is_real, is_asked], 1)
        is_key = jnp.concatenate([is_real, jnp.zeros_like(is_asked)], 1)
        # Everyone sees the fresh tokens; a position query also stands for itself.
        among = jnp.broadcast_to(is_key[:, None], (batch, 2 * width, 2 * width))
        among |= jnp.eye(2 * width, dtype=bool)[None] & is_lane[:, None]
        stop = jnp.broadcast_to(state.num_cached[:, None], is_lane.shape)
        query = Query(
            tokens=jnp.concatenate(
                [
                    jnp.take_along_axis(state.tokens, real, 1),
                    jnp.full_like(queried, model.mask_id),
                ],
                1,
            ),
            positions=jnp.concatenate([real, queried], 1),
            # A group's positions rise, so those inside the row are its first lanes.
            slots=SlotRun(state.num_cached, is_key),
            visible=Visibility(jnp.zeros_like(stop), stop, among=among),
        )
        output, cache = model.apply(params, query, state.cache)
        prediction = vocab_head.statistics(
            model.head(params),
            output.hidden[:, width:],
            ("token", "log_prob"),
            sampling,
            functools.partial(rng.noise, keys, rng.TARGET, queried),
        )

        where = jnp.where(is_asked, asked, length)
        tokens = state.tokens.at[rows, where].set(prediction.token, mode="drop")
        log_probs = state.log_probs.at[rows, where].set(
            prediction.log_prob.astype(jnp.float32), mode="drop"
        )
        decided = state.decided.at[rows, where].set(True, mode="drop")
        new_state = FrontierState(
            tokens=tokens,
            log_probs=log_probs,
            decided=decided,
            prompt_end=state.prompt_end,
            end=state.end,
            group=state.group + active,
            num_cached=state.num_cached + is_real.sum(1, dtype=jnp.int32),
            pending=jnp.where(is_asked, asked, -1),
            cache=cache,
        )
        # A group that lies past the row's end asks nothing: no call for that row.
        per_call = jnp.where(is_asked.any(1), model.num_calls, 0)
        zero = jnp.zeros(batch, jnp.int32)
        return new_state, StepInfo(
            num_calls=per_call,
            num_committed=num_counted(new_state) - num_counted(state),
            num_proposed=is_asked.sum(1, dtype=jnp.int32),
            num_revoked=zero,
            num_query_tokens=per_call * is_lane.sum(1, dtype=jnp.int32),
            num_query_tokens_computed=per_call * (2 * width),
            num_dispatches=jnp.ones((), jnp.int32),
        )

    def first_eos(state):
        committed = state.decided
        return eos.first(
            state.tokens, committed, state.prompt_end, state.end, model.eos_ids
        )

    def num_counted(state: FrontierState) -> Array:
        last, _ = first_eos(state)
        place = jnp.arange(state.tokens.shape[1])[None]
        counted = state.decided & (place >= state.prompt_end[:, None])
        return (counted & (place <= last[:, None])).sum(1, dtype=jnp.int32)

    def done(state: FrontierState) -> Array:
        last, _ = first_eos(state)
        place = jnp.arange(state.tokens.shape[1])[None]
        is_missing = ~state.decided & (place >= state.prompt_end[:, None])
        return ~(is_missing & (place < last[:, None])).any(1)

    def output(state: FrontierState) -> Generation:
        last, saw_eos = first_eos(state)
        return Generation(
            tokens=state.tokens,
            start=state.prompt_end,
            lengths=last - state.prompt_end,
            log_probs=state.log_probs,
            stopped_by=saw_eos.astype(jnp.int32),
        )

    return Decoder(init, step, done, output, num_groups)


def _groups(rank: np.ndarray) -> np.ndarray:
    """int32 [K, G] positions of each group in turn; -1 pads."""
    members = [np.flatnonzero(rank == value) for value in np.unique(rank)]
    table = np.full((len(members), max(map(len, members))), -1, np.int32)
    for row, group in zip(table, members):
        row[: len(group)] = group
    return table
