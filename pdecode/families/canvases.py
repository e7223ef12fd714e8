"""The canvas family: canvas after canvas of uniform noise, each revised until settled.

A canvas starts as random tokens. A step denoises all of it at a falling temperature,
keeps the sampled tokens of the surest positions and draws all others anew, so nothing
is final until the canvas is; then it is encoded and becomes context for the next.
"""

import functools
from typing import Any, NamedTuple, Protocol

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
    Visibility,
)
from pdecode.families import rows
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import entropy as entropy_of


class Sample(Protocol):
    def __call__(
        self,
        keys: Array,
        canvas: Array,
        step: Array,
        positions: Array,
        log_probs: Array,
    ) -> Array: ...


class Noise(Protocol):
    def __call__(
        self, keys: Array, canvas: Array, step: Array, positions: Array, vocab_size: int
    ) -> Array: ...


class Draws(NamedTuple):
    """Where a canvas gets its randomness from; tests put recorded draws here.

    Both take keys [B], canvas and step [B], positions [B, L], and log_probs [B, L, V]
    or the vocabulary's size, and return int32 [B, L]. Step -1 of `noise` is the start
    canvas.
    """

    sample: Sample
    noise: Noise


class State(NamedTuple):
    """Carry of the loop; every row is at its own canvas and step."""

    tokens: Array  # int32 [B, P + C * L]
    length: Array  # int32 [B]  prompt and canvases that are final
    prompt_end: Array  # int32 [B]
    end: Array  # int32 [B]
    finished: Array  # bool [B]
    failed: Array  # bool [B]  a statistic was no number: the row stands still
    canvas: Array  # int32 [B, L]  input of the next denoising step
    soft: Array  # [B, L, E]  mean embedding under the last step's law
    history: Array  # int32 [B, S, L]  last argmax canvases, newest first; -1: none
    index: Array  # int32 [B]  canvases that are final
    step: Array  # int32 [B]  denoising steps taken on this canvas
    log_probs: Array  # float32 [B, P + C * L]
    cache: Cache  # of all final tokens before `length`


class Plan(NamedTuple):
    """What a decode of canvases is made of, checked once."""

    model: Model
    draws: Draws
    max_new_tokens: int
    max_denoising_steps: int
    entropy_bound: Any
    t_max: Any
    t_min: Any
    stability_threshold: int
    confidence_threshold: Any

    @property
    def size(self) -> int:
        """Positions of a canvas."""
        return self.model.block_len or 1

    @property
    def num_canvases(self) -> int:
        return -(-self.max_new_tokens // self.size)


class Revised(NamedTuple):
    """A canvas after one denoising step."""

    canvas: Array  # int32 [B, L]
    best: Array  # int32 [B, L]  the argmax, which is what becomes final
    soft: Array  # [B, L, E]
    log_prob: Array  # float32 [B, L]  raw, of `best`
    entropy: Array  # [B, L]  of the tempered law


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
    """A Decoder of canvases of `model.block_len` positions over any source of draws.

    Raises ValueError for a model that was not trained with uniform noise on canvases.
    """
    if model.predicts != "uniform" or model.block_len is None:
        raise ValueError(
            f"diffusion_gemma needs a model trained with uniform noise on canvases, "
            f"but {model.name} has predicts={model.predicts!r}: use llada or dream for "
            "one with a mask token, autoregressive or jacobi for a causal one"
        )
    plan = Plan(
        model, draws, max_new_tokens, max_denoising_steps, entropy_bound, t_max, t_min,
        stability_threshold, confidence_threshold,
    )  # fmt: skip
    return Decoder(
        init=functools.partial(init, plan),
        step=functools.partial(step, plan),
        done=functools.partial(done, plan),
        output=functools.partial(output, plan),
        max_steps=plan.num_canvases * max_denoising_steps,
    )


def init(plan: Plan, params, keys, prompt: Prompt):
    """The prompt in the cache and the first random canvas."""
    rows.no_holes(prompt, "a decode of canvases")
    model = plan.model
    room = plan.num_canvases * plan.size - plan.max_new_tokens
    laid = rows.layout(prompt, plan.max_new_tokens, model, room)
    batch, length = laid.tokens.shape
    cache = model.init_cache(prompt, caches.num_slots(length + 1))
    output, cache = prompts.prefill(model, params["model"], prompt, cache)
    assert output is not None  # a prompt has a token at least
    zero = jnp.zeros(batch, jnp.int32)
    shape = (batch, plan.size, output.hidden.shape[-1])
    state = State(
        tokens=laid.tokens,
        length=prompt.lengths,
        prompt_end=prompt.lengths,
        end=laid.end,
        finished=zero == 1,
        failed=zero == 1,
        canvas=fresh_canvas(plan, keys, zero, prompt.lengths),
        soft=jnp.zeros(shape, output.hidden.dtype),
        history=jnp.full((batch, plan.stability_threshold, plan.size), -1, jnp.int32),
        index=zero,
        step=zero,
        log_probs=jnp.zeros((batch, length), jnp.float32),
        cache=cache,
    )
    return state, rows.prefill_info(model, prompt)


def step(plan: Plan, params, keys, state: State):
    """Denoise the canvas; if it is settled, make it final and begin the next."""
    active = ~done(plan, state)
    positions = _positions(plan, state.length)
    query = denoising_query(state, positions)
    output, cache = plan.model.apply(params["model"], query, state.cache)
    revised = revise(plan, params["model"], keys, state, positions, output.hidden)
    is_number = jnp.isfinite(revised.log_prob).all(1)
    active_ok = active & is_number
    complete = active_ok & is_settled(plan, state, revised)
    tokens, log_probs = finalised(state, positions, complete, revised)
    length = jnp.where(complete, state.length + plan.size, state.length)
    has_eos = rows.is_eos(revised.best, plan.model.eos_ids).any(1)
    ended = has_eos | (length >= state.end)
    goes_on = complete & ~ended
    cache, num_encodes = encode(
        plan, params["model"], cache, revised, positions, goes_on
    )
    index = state.index + complete
    renewed = complete[:, None]
    history = jnp.concatenate([revised.best[:, None], state.history], 1)
    history = history[:, : plan.stability_threshold]
    again = fresh_canvas(plan, keys, index, length)
    new = state._replace(
        tokens=tokens,
        length=length,
        finished=state.finished | (complete & ended),
        failed=state.failed | (active & ~is_number),
        canvas=jnp.where(renewed, again, revised.canvas),
        soft=revised.soft,
        history=jnp.where(renewed[:, None], -1, history),
        index=index,
        step=jnp.where(complete, 0, state.step + active),
        log_probs=log_probs,
        cache=cache,
    )
    calls = active.astype(jnp.int32) + goes_on
    return new, rows.info(
        calls,
        num_calls=calls,
        num_committed=_counted(plan, new) - _counted(plan, state),
        num_proposed=jnp.where(active, plan.size, 0),
        num_query_tokens=calls * plan.size,
        num_query_tokens_computed=jnp.full_like(calls, plan.size) * (1 + num_encodes),
        num_dispatches=1 + num_encodes,
    )


def denoising_query(state: State, positions: Array) -> Query:
    """The canvas, seeing itself and all final tokens; nothing of it is stored."""
    batch, size = positions.shape
    return Query(
        tokens=state.canvas,
        positions=positions,
        slots=None,
        visible=Visibility(
            start=jnp.zeros_like(positions),
            stop=jnp.broadcast_to(state.length[:, None], positions.shape),
            among=jnp.ones((batch, size, size), bool),
        ),
        extra=state.soft,
        has_extra=jnp.broadcast_to(state.step[:, None] > 0, positions.shape),
    )


def revise(plan: Plan, params, keys, state: State, positions, hidden) -> Revised:
    """The canvas with the surest positions sampled and all others drawn anew."""
    head = plan.model.head(params)
    raw = vocab_head.statistics(head, hidden, ("logits",), Sampling()).logits
    # Hottest first: t_max at step 0, never quite t_min at the last.
    left = (plan.max_denoising_steps - state.step) / plan.max_denoising_steps
    temperature = (plan.t_min + (plan.t_max - plan.t_min) * left).astype(raw.dtype)
    log_probs = jax.nn.log_softmax(raw / temperature[:, None, None])
    entropy = entropy_of(log_probs)
    best = jnp.argmax(raw, -1).astype(jnp.int32)
    place = (keys, state.index, state.step, positions)
    sampled = plan.draws.sample(*place, log_probs)
    fresh = plan.draws.noise(*place, plan.model.vocab_size)
    soft = jnp.einsum(
        "blv,ve->ble", jnp.exp(log_probs).astype(head.weight.dtype), head.weight
    )
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(raw), best[..., None], -1)
    return Revised(
        canvas=jnp.where(accepted(entropy, plan.entropy_bound), sampled, fresh),
        best=best,
        soft=soft.astype(state.soft.dtype),
        log_prob=log_prob[..., 0].astype(jnp.float32),
        entropy=entropy,
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


def is_settled(plan: Plan, state: State, revised: Revised) -> Array:
    """bool [B]: the argmax stands still and is sure, or the steps are used up."""
    stable = (state.history == revised.best[:, None]).all((1, 2))
    confident = revised.entropy.mean(-1) < plan.confidence_threshold
    is_last = state.step + 1 == plan.max_denoising_steps
    return (stable & confident) | is_last


def finalised(state: State, positions, complete, revised: Revised):
    """Tokens and log-probabilities with the canvases that are `complete` written."""
    nth = jnp.arange(positions.shape[0])[:, None]
    where = jnp.where(complete[:, None], positions, state.tokens.shape[1])
    tokens = state.tokens.at[nth, where].set(revised.best, mode="drop")
    log_probs = state.log_probs.at[nth, where].set(revised.log_prob, mode="drop")
    return tokens, log_probs


def encode(plan: Plan, params, cache, revised: Revised, positions, goes_on):
    """The cache with canvases that become context, causal; and calls made, int32 []."""
    stored = jnp.broadcast_to(goes_on[:, None], positions.shape)
    query = Query(
        tokens=revised.best,
        positions=positions,
        slots=SlotRun(positions[:, 0], stored),
        visible=Visibility(jnp.zeros_like(positions), positions + 1),
    )
    none = jnp.zeros((), jnp.int32)
    num_calls, cache = caches.when(
        goes_on.any(),
        lambda cache: (none + 1, plan.model.encode(params, query, cache)[1]),
        lambda cache: (none, cache),
        cache,
    )
    return cache, num_calls


def fresh_canvas(plan: Plan, keys, index: Array, length: Array) -> Array:
    """A random canvas int32 [B, L] behind `length`, the start of canvas `index`."""
    step = jnp.full(index.shape, -1, jnp.int32)
    positions = _positions(plan, length)
    return plan.draws.noise(keys, index, step, positions, plan.model.vocab_size)


def done(plan: Plan, state: State) -> Array:
    """bool [B]."""
    del plan
    return state.finished | state.failed


def output(plan: Plan, state: State) -> Generation:
    """The result so far: canvases that are final."""
    return rows.generation(
        _progress(state), state.log_probs, state.failed, plan.model.eos_ids
    )


def _positions(plan: Plan, length: Array) -> Array:
    return length[:, None] + jnp.arange(plan.size, dtype=jnp.int32)[None]


def _progress(state: State) -> rows.Canvas:
    place = jnp.arange(state.tokens.shape[1])[None]
    is_final = place < state.length[:, None]
    is_new = place >= state.prompt_end[:, None]
    return rows.Canvas(
        state.tokens,
        is_final & is_new,
        ~is_final & (place < state.end[:, None]),
        state.prompt_end,
        state.end,
    )


def _counted(plan: Plan, state: State) -> Array:
    return rows.num_counted(_progress(state), plan.model.eos_ids)


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
