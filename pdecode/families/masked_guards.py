"""A decoder of the masked family under a guard: a veto after every step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import STOPPED_BY, Decoder, Generation, Guard
from pdecode.families import masked_calls as calls
from pdecode.families import rows


class Guarded(NamedTuple):
    """Carry of the loop."""

    inner: NamedTuple  # the family's `CanvasState`
    vetoed: Array  # bool [B]


def guarded(
    decoder: Decoder, guard: Guard, refusal: tuple[int, ...], eos_ids: tuple[int, ...]
) -> Decoder:
    """`decoder` (of `masked_diffusion`), with rows ended where `guard` says so.

    The guard sees every row after each step, with the params of the role "guard". A row
    that it ends says `refusal` (cut to what was asked for), its holes hold the last id
    of it, and what was committed is taken back. ValueError for an empty refusal, or one
    with an EOS in it.
    """
    if not refusal or set(refusal) & set(eos_ids):
        raise ValueError(f"{refusal=} must be tokens, none of them an EOS: {eos_ids}")

    def init(params, keys, prompt):
        inner, info = decoder.init(params, keys, prompt)
        return Guarded(inner, jnp.zeros(prompt.lengths.shape, bool)), info

    def step(params, keys, state: Guarded):
        was_done = decoder.done(state.inner)
        inner, info = decoder.step(params, keys, state.inner)
        row = calls.bare_rows(inner)
        fires = jax.vmap(guard.apply, (None, 0))(params["guard"], row) & ~was_done
        after = _overwritten(inner, fires, refusal)
        taken, given = (_counted(each, eos_ids) for each in (inner, after))
        info = info._replace(
            num_committed=info.num_committed + given - taken,
            num_revoked=info.num_revoked + jnp.where(fires, taken, 0),
        )
        return Guarded(after, state.vetoed | fires), info

    def output(state: Guarded) -> Generation:
        made = decoder.output(state.inner)
        vetoed = STOPPED_BY.index("vetoed")
        stopped_by = jnp.where(state.vetoed, vetoed, made.stopped_by)
        return made._replace(stopped_by=stopped_by)

    def done(state: Guarded) -> Array:
        return state.vetoed | decoder.done(state.inner)

    return decoder._replace(
        init=init, step=step, done=done, output=output, guarantee="lossy"
    )


def _overwritten(state, fires: Array, refusal: tuple[int, ...]):
    """The canvas with the rows that `fires` (bool [B]) names saying `refusal`."""
    said = jnp.asarray(refusal, jnp.int32)
    nth = jnp.arange(state.tokens.shape[1])[None] - state.prompt_end[:, None]
    words = said[
        jnp.where(nth < 0, len(refusal) - 1, jnp.clip(nth, 0, len(refusal) - 1))
    ]
    lost = state.generated & fires[:, None]
    end = jnp.minimum(state.end, state.prompt_end + len(refusal))
    return state._replace(
        tokens=jnp.where(lost, words, state.tokens),
        masked=state.masked & ~lost,
        log_probs=jnp.where(lost, 0.0, state.log_probs),
        end=jnp.where(fires, end, state.end),
        reach=jnp.where(fires, end, state.reach),
    )


def _counted(state, eos_ids: tuple[int, ...]) -> Array:
    committed = state.generated & ~state.masked
    return rows.num_counted(
        rows.Canvas(state.tokens, committed, state.masked, state.prompt_end, state.end),
        eos_ids,
    )
