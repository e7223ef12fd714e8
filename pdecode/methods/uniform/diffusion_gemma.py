"""DiffusionGemma's sampler: canvases of uniform noise, revised until they are settled.

After google/diffusiongemma (2026; no paper); the acceptance rule is the entropy bound
of Ben-Hamu et al., 2025, arXiv:2505.24857. Each canvas starts as random tokens. A step
denoises all of it at a falling temperature, keeps the sampled tokens of the surest
positions and redraws all others at random, so nothing is final until the canvas is.
Deviations from the published code: the result is cut at `max_new_tokens`, and a row
that is done stops instead of denoising along with its batch.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
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
from pdecode.knobs import Knob, Size
from pdecode.sampling import entropy as entropy_of


class Draws(NamedTuple):
    """Where a canvas gets its randomness from; tests put recorded draws here.

    All take (keys [B], canvas [B], step [B], positions [B, L]) and return int32 [B, L];
    `sample` also takes log_probs [B, L, V], `noise` the vocabulary size. Step -1 of
    `noise` is the start canvas.
    """

    sample: Callable[..., Array]
    noise: Callable[..., Array]


class State(NamedTuple):
    """Carry of the loop; every row is at its own canvas and step."""

    tokens: Array  # int32 [B, P + C * L]
    length: Array  # int32 [B]  prompt and canvases that are final
    prompt_end: Array  # int32 [B]
    end: Array  # int32 [B]
    finished: Array  # bool [B]
    canvas: Array  # int32 [B, L]  input of the next denoising step
    soft: Array  # [B, L, E]  mean embedding under the last step's law
    history: Array  # int32 [B, S, L]  last argmax canvases, newest first; -1: none
    index: Array  # int32 [B]  canvases that are final
    step: Array  # int32 [B]  denoising steps taken on this canvas
    log_probs: Array  # float32 [B, P + C * L]
    cache: Cache  # of all final tokens before `length`


def diffusion_gemma(
    model: Model,
    *,
    max_new_tokens: Annotated[int, Size()],
    max_denoising_steps: Annotated[int, Size()] = 48,
    entropy_bound: Annotated[float, Knob(0, 1e6)] = 0.1,
    t_max: Annotated[float, Knob(1e-3, 100)] = 0.8,
    t_min: Annotated[float, Knob(1e-3, 100)] = 0.4,
    stability_threshold: Annotated[int, Size(0)] = 1,
    confidence_threshold: Annotated[float, Knob(0, 1e6)] = 0.005,
) -> Decoder:
    """Entropy-bounded acceptance with renoising, canvas after canvas.

    A canvas ends when its argmax equals the last `stability_threshold` ones and its
    mean entropy is below `confidence_threshold` nats, or after `max_denoising_steps`.
    What it returns is the last argmax canvas, not the sampled one.
    Guarantee: lossy.
    Cost: a call of the canvas a step, and one more to encode each canvas but the last.
    """
    return canvases(
        model,
        UNIFORM,
        max_new_tokens=max_new_tokens,
        max_denoising_steps=max_denoising_steps,
        entropy_bound=entropy_bound,
        t_max=t_max,
        t_min=t_min,
        stability_threshold=stability_threshold,
        confidence_threshold=confidence_threshold,
    )


def accepted(entropy: Array, bound: Array | float) -> Array:
    """bool [..., L]: the surest positions, while the sum of those before is <= bound.

    entropy  .3 .0 .2 .9  bound .2   ->  in order .0 .2 .3 .9, before .0 .0 .2 .5
                                     ->  accepted  1  1  1  0  of the ordered
    """
    order = jnp.argsort(entropy, -1)
    ordered = jnp.take_along_axis(entropy, order, -1)
    chosen = jnp.cumsum(ordered, -1) - ordered <= bound
    return jnp.take_along_axis(chosen, jnp.argsort(order, -1), -1)


def canvases(
    model: Model,
    draws: Draws,
    *,
    max_new_tokens: int,
    max_denoising_steps: int,
    entropy_bound: Array | float,
    t_max: Array | float,
    t_min: Array | float,
    stability_threshold: int,
    confidence_threshold: Array | float,
) -> Decoder:
    """The Decoder of `diffusion_gemma` over any source of `draws`."""
    if model.predicts != "uniform" or model.block_len is None:
        raise ValueError(
            f"diffusion_gemma needs a model trained with uniform noise on canvases, "
            f"but {model.name} has predicts={model.predicts!r}: use llada or dream for "
            "one with a mask token, autoregressive or jacobi for a causal one"
        )
    size, vocab_size = model.block_len, model.vocab_size
    num_canvases = -(-max_new_tokens // size)
    lanes = jnp.arange(size, dtype=jnp.int32)[None]

    def start(keys, index, positions):
        step = jnp.full(index.shape, -1, jnp.int32)
        return draws.noise(keys, index, step, positions, vocab_size)

    def init(params, keys, prompt: Prompt):
        batch, width = prompt.tokens.shape
        length = prompts.buffer_length(prompt, num_canvases * size, model)
        tokens = jnp.zeros((batch, length), jnp.int32).at[:, :width].set(prompt.tokens)
        place = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (batch, width))
        is_text = place < prompt.lengths[:, None]
        query = Query(
            tokens=jnp.where(is_text, prompt.tokens, 0),
            positions=place,
            # What padding leaves behind the text is written over before it is seen.
            slots=SlotRun(jnp.zeros_like(prompt.lengths)),
            visible=Visibility(jnp.zeros_like(place), place + 1),
        )
        cache = model.init_cache(prompt, length + 1)
        output, cache = model.encode(params, query, cache)
        zero = jnp.zeros(batch, jnp.int32)
        ones = jnp.ones(batch, jnp.int32)
        state = State(
            tokens=tokens,
            length=prompt.lengths,
            prompt_end=prompt.lengths,
            end=prompt.lengths + jnp.minimum(prompt.max_new, max_new_tokens),
            finished=jnp.zeros(batch, bool),
            canvas=start(keys, zero, prompt.lengths[:, None] + lanes),
            soft=jnp.zeros((batch, size, output.hidden.shape[-1]), output.hidden.dtype),
            history=jnp.full((batch, stability_threshold, size), -1, jnp.int32),
            index=zero,
            step=zero,
            log_probs=jnp.zeros((batch, length), jnp.float32),
            cache=cache,
        )
        return state, StepInfo(
            num_calls=ones,
            num_committed=zero,
            num_proposed=zero,
            num_revoked=zero,
            num_query_tokens=prompt.lengths,
            num_query_tokens_computed=jnp.full(batch, width, jnp.int32),
            num_dispatches=jnp.ones((), jnp.int32),
        )

    def step(params, keys, state: State):
        active = ~state.finished
        batch = state.tokens.shape[0]
        rows = jnp.arange(batch)[:, None]
        positions = state.length[:, None] + lanes
        head = model.head(params)

        stop = jnp.broadcast_to(state.length[:, None], positions.shape)
        query = Query(
            tokens=state.canvas,
            positions=positions,
            slots=None,
            visible=Visibility(
                start=jnp.zeros_like(positions),
                stop=stop,
                among=jnp.ones((batch, size, size), bool),
            ),
            extra=state.soft,
            has_extra=jnp.broadcast_to(state.step[:, None] > 0, positions.shape),
        )
        output, cache = model.apply(params, query, state.cache)
        raw = vocab_head.statistics(head, output.hidden, ("logits",), Sampling()).logits

        # Hottest first: t_max at step 0, never quite t_min at the last.
        left = (max_denoising_steps - state.step) / max_denoising_steps
        temperature = (t_min + (t_max - t_min) * left).astype(raw.dtype)
        log_probs = jax.nn.log_softmax(raw / temperature[:, None, None])
        entropy = entropy_of(log_probs)
        best = jnp.argmax(raw, -1).astype(jnp.int32)
        sampled = draws.sample(keys, state.index, state.step, positions, log_probs)
        fresh = draws.noise(keys, state.index, state.step, positions, vocab_size)
        keep = accepted(entropy, entropy_bound)
        canvas = jnp.where(keep, sampled, fresh)
        soft = jnp.einsum(
            "blv,ve->ble", jnp.exp(log_probs).astype(head.weight.dtype), head.weight
        ).astype(state.soft.dtype)

        stable = (state.history == best[:, None]).all((1, 2))
        confident = entropy.mean(-1) < confidence_threshold
        is_last = state.step + 1 == max_denoising_steps
        complete = active & ((stable & confident) | is_last)
        history = jnp.concatenate([best[:, None], state.history], 1)

        where = jnp.where(complete[:, None], positions, state.tokens.shape[1])
        tokens = state.tokens.at[rows, where].set(best, mode="drop")
        raw_log_prob = jnp.take_along_axis(
            jax.nn.log_softmax(raw), best[..., None], -1
        )[..., 0]
        log_probs_out = state.log_probs.at[rows, where].set(
            raw_log_prob.astype(jnp.float32), mode="drop"
        )
        length = jnp.where(complete, state.length + size, state.length)
        ended = eos.is_eos(best, model.eos_ids).any(1) | (length >= state.end)
        goes_on = complete & ~ended

        # A canvas that is final becomes context for the next: causal, and stored.
        causal = Query(
            tokens=best,
            positions=positions,
            slots=SlotRun(
                state.length, jnp.broadcast_to(goes_on[:, None], positions.shape)
            ),
            visible=Visibility(jnp.zeros_like(positions), positions + 1),
        )
        none = jnp.zeros((), jnp.int32)
        encodes, cache = caches.when(
            goes_on.any(),
            lambda cache: (none + 1, model.encode(params, causal, cache)[1]),
            lambda cache: (none, cache),
            cache,
        )
        index = state.index + complete
        again = start(keys, index, length[:, None] + lanes)
        renewed = complete[:, None]
        new_state = State(
            tokens=tokens,
            length=length,
            prompt_end=state.prompt_end,
            end=state.end,
            finished=state.finished | (complete & ended),
            canvas=jnp.where(renewed, again, canvas),
            soft=soft,
            history=jnp.where(renewed[:, None], -1, history[:, :stability_threshold]),
            index=index,
            step=jnp.where(complete, 0, state.step + active),
            log_probs=log_probs_out,
            cache=cache,
        )
        calls = active.astype(jnp.int32) + goes_on
        return new_state, StepInfo(
            num_calls=calls,
            num_committed=counted(new_state) - counted(state),
            num_proposed=jnp.where(active, size, 0),
            num_revoked=jnp.zeros(batch, jnp.int32),
            num_query_tokens=calls * size,
            num_query_tokens_computed=jnp.full(batch, size, jnp.int32) * (1 + encodes),
            num_dispatches=1 + encodes,
        )

    def first_eos(state: State):
        place = jnp.arange(state.tokens.shape[1])[None]
        committed = place < state.length[:, None]
        return eos.first(
            state.tokens, committed, state.prompt_end, state.end, model.eos_ids
        )

    def counted(state: State) -> Array:
        """Final tokens [B] up to the first EOS or the row's end."""
        last, found = first_eos(state)
        return jnp.minimum(last + found, state.length) - state.prompt_end

    def output(state: State) -> Generation:
        last, found = first_eos(state)
        return Generation(
            tokens=state.tokens,
            start=state.prompt_end,
            lengths=jnp.minimum(last, state.length) - state.prompt_end,
            log_probs=state.log_probs,
            stopped_by=found.astype(jnp.int32),
        )

    limit = num_canvases * max_denoising_steps
    return Decoder(init, step, lambda state: state.finished, output, limit)


def _sample(keys, canvas, step, positions, log_probs):
    del canvas  # the position tells canvases apart
    places = rng.noise(keys, rng.TARGET, positions, round=step)
    gumbel = rng.gumbel(places, log_probs.shape[-1])
    return jnp.argmax(log_probs + gumbel, -1).astype(jnp.int32)


def _noise(keys, canvas, step, positions, vocab_size):
    del canvas
    places = rng.noise(keys, rng.REMASK, positions, round=step + 1)
    drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, vocab_size, jnp.int32))
    return drawn(places.reshape(-1)).reshape(places.shape)


UNIFORM = Draws(_sample, _noise)
