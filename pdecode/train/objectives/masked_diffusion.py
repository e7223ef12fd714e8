"""Weighted cross entropy of masked tokens: the bound of LLaDA and of MDLM.

LLaDA: Nie et al., 2025, arXiv:2502.09992. MDLM: Sahoo et al., 2024, arXiv:2406.07524.
MDLM's law leaves the mask out. LLaDA's does not, and its decoder reads that law, so the
model has to learn that the mask is no answer. Every token of a row may be masked, BOS
too: a canvas model has to know where text begins.

A block-causal model predicts a block from itself and from finished ones (BD3-LM:
Arriola et al., 2025, arXiv:2503.09573). The paper runs noisy and clean copies of all
blocks in one call of twice the length. Here each row has one noisy block, drawn from
those that may be masked and weighed by their number: the same loss in expectation, in
a call of the row's own length.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.data import packing
from pdecode.models import transformer
from pdecode.train import evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective

WEIGHTINGS = ("llada", "mdlm", "cart", "even")
SCHEDULES = ("linear", "quadratic", "cosine")
_EPS = 1e-3  # the papers': no mask rate below it
_NUM_SAMPLES = 4  # of the bound, for every row


@dataclasses.dataclass(frozen=True)
class Options:
    # "llada": 1 / p; "mdlm": -alpha' / (1 - alpha); "cart": Dream's, by how much is
    # known near a mask (arXiv:2508.15487); "even": 1. The last two are no bounds.
    weighting: str = "llada"
    kernel: float = 0.3  # of "cart": q of its geometric law
    # Of "mdlm": what is masked at time t is 1 - alpha(t) = t, t^2 or cos(pi/2 (1 - t)).
    noise_schedule: str = "linear"
    # Each row twice, masked and the other way round, so that every token is predicted
    # once (LaViDa, arXiv:2505.16839; Fast-dLLM v2, arXiv:2509.26328, weighs them even).
    complement: bool = False
    eos_fill: float = 0.5  # rows whose text after a document's end becomes EOS
    # Tokens; a row up to the first of them is a prompt, never masked and not scored (as
    # in LLaDA's fine-tuning). None, or a row without one: there is no prompt.
    prompt_end: int | tuple[int, ...] | None = None
    # Rows whose prompt is all masks, for classifier-free guidance (arXiv:2207.12598).
    prompt_drop: float = 0.0

    def __post_init__(self):
        if self.weighting not in WEIGHTINGS:
            raise ValueError(
                f"unknown weighting {self.weighting!r}; known: {WEIGHTINGS}"
            )
        if self.noise_schedule not in SCHEDULES:
            raise ValueError(
                f"unknown noise_schedule {self.noise_schedule!r}; known: {SCHEDULES}"
            )
        if self.noise_schedule != "linear" and self.weighting != "mdlm":
            raise ValueError(
                f"noise_schedule={self.noise_schedule!r} needs weighting='mdlm': that "
                f"of {self.weighting!r} is of the linear one"
            )
        check_ranges(
            self, {"eos_fill": (0, 1), "prompt_drop": (0, 1), "kernel": (1e-6, 1)}
        )
        if isinstance(self.prompt_end, list):  # as a record holds it
            object.__setattr__(self, "prompt_end", tuple(self.prompt_end))
        ends = self.prompt_end if isinstance(self.prompt_end, tuple) else ()
        ends = (self.prompt_end,) if isinstance(self.prompt_end, int) else ends
        if not all(isinstance(end, int) and 0 <= end < 2**31 for end in ends):
            raise ValueError(
                f"prompt_end={self.prompt_end} must be token ids, 0 or above"
            )
        if not ends and self.prompt_drop:
            raise ValueError(
                f"prompt_drop={self.prompt_drop} drops nothing without prompt_end"
            )


NEEDS = Needs(
    attention=("bidirectional", "block_causal"),
    predicts=("masked",),
    why="decoders of masked diffusion read a canvas both ways and fill its masks",
    shift=True,
    mask=True,
)


def start(config, key, given):
    return transformer.init(config.model, key) if given is None else given


def prepare(config, tokens, step):
    """Text after a document's end becomes EOS; a model without one EOS keeps it."""
    if len(config.model.eos_ids) != 1 or not config.options.eos_fill:
        return tokens
    eos = config.model.eos_ids[0]
    fraction = config.options.eos_fill
    return packing.fill_after_eos(tokens, fraction, config.seed, step, eos)


def mask_rates(
    num_rows: int, key: Array, weighting: str, schedule: str = "linear"
) -> tuple[Array, Array]:
    """Each row's mask probability and loss weight, float32 [B]; `key` is consumed.

    Times are antithetic: one uniform draw, spread evenly over the rows. LLaDA:
    p = (1 - eps) t + eps, weight 1 / p. MDLM, log-linear: alpha = 1 - (1 - eps) t,
    p = 1 - alpha, weight -alpha' / (1 - alpha) = 1 / t; its bound is the same under
    every schedule. CART weighs tokens, and its rows by 1.
    """
    time = (jax.random.uniform(key) + jnp.arange(num_rows) / num_rows) % 1.0
    if weighting != "mdlm":
        rate = (1 - _EPS) * time + _EPS
        return rate, 1 / rate if weighting == "llada" else jnp.ones_like(rate)
    # The bound needs t > 0; a row this close to it has no mask to weigh anyway.
    time = jnp.maximum(time, 1e-4)
    if schedule == "cosine":
        angle = jnp.pi / 2 * (1 - time)
        return (1 - _EPS) * jnp.cos(angle), jnp.pi / 2 * jnp.tan(angle)
    power = 2 if schedule == "quadratic" else 1
    return (1 - _EPS) * time**power, power / time


def context_weights(masked: Array, kernel: float) -> Array:
    """float32 [B, L]: half a geometric law over the distances to what is known.

    A token at distance d adds q (1 - q)^(d - 1) / 2.
    """
    place = jnp.arange(masked.shape[1])
    apart = jnp.abs(place[:, None] - place[None])
    share = 0.5 * kernel * (1.0 - kernel) ** jnp.maximum(apart - 1, 0)
    share = jnp.where(apart > 0, share, 0.0)
    return jnp.einsum("bj,ij->bi", (~masked).astype(jnp.float32), share)


def is_answer(tokens: Array, prompt_end: int | tuple[int, ...] | None) -> Array:
    """bool [B, L]: what may be masked, all behind the first `prompt_end` of a row."""
    if prompt_end is None:
        return jnp.ones(tokens.shape, bool)
    is_end = jnp.isin(tokens, jnp.asarray(prompt_end))
    ended = jnp.cumsum(is_end, axis=1)
    return (ended > is_end) | ~is_end.any(axis=1, keepdims=True)


def one_block(free: Array, key: Array, block_len: int | None) -> tuple[Array, Array]:
    """What of `free` [B, L] lies in one block, drawn for each row among those that have
    some, and their number, float32 [B]; without blocks all of it, and 1.
    """
    if block_len is None:
        return free, jnp.ones(free.shape[0])
    index = jnp.arange(free.shape[1])[None] // block_len
    blocks = jnp.arange(-(-free.shape[1] // block_len))
    is_free = (free[:, None] & (index == blocks[:, None])[None]).any(-1)
    draw = jnp.where(is_free, jax.random.uniform(key, is_free.shape), -1.0)
    chosen = jnp.argmax(draw, axis=1)
    return free & (index == chosen[:, None]), is_free.sum(1).astype(jnp.float32)


def _paired(one: Array, other: Array) -> Array:
    """Rows of two arrays in turn, [2 B, ...]."""
    return jnp.stack([one, other], axis=1).reshape(-1, *one.shape[1:])


def noise(config):
    options, block_len = config.options, config.model.block_len

    def apply(batch, key):
        tokens = batch["tokens"]
        key_rate, key_mask = jax.random.split(key)
        how = options.weighting, options.noise_schedule
        rate, weight = mask_rates(tokens.shape[0], key_rate, *how)
        masked = jax.random.uniform(key_mask, tokens.shape) < rate[:, None]
        answer = is_answer(tokens, options.prompt_end)
        free, num_blocks = one_block(answer, jax.random.fold_in(key, 1), block_len)
        masked, weight = masked & free, weight * num_blocks
        if options.prompt_drop:
            draw = jax.random.uniform(jax.random.fold_in(key, 2), tokens.shape[:1])
            dropped = (draw < options.prompt_drop)[:, None] & ~answer
            tokens = jnp.where(dropped, config.model.mask_id, tokens)
        if options.complement:
            tokens = jnp.repeat(tokens, 2, axis=0)
            masked = _paired(masked, free & ~masked)
            if options.weighting in ("llada", "mdlm"):
                # At rate q = 1 - p. The bound is over dp / p under every schedule, and
                # dq is dp: what was over p is over q.
                weight = _paired(weight, weight * rate / jnp.maximum(1 - rate, _EPS))
            else:
                weight = jnp.repeat(weight, 2)
        weight = jnp.broadcast_to(weight[:, None], tokens.shape)
        if options.weighting == "cart":
            weight *= context_weights(masked, options.kernel)
        return {**batch, "tokens": tokens, "masked": masked, "weight": weight}

    return apply


def loss(config):
    how, model = passes.of_run(config), config.model
    bans = config.options.weighting == "mdlm"

    def apply(params, frozen, batch, key, step):
        del frozen, key, step
        masked, weight = batch["masked"], batch["weight"]
        nats = losses.masked_loss(model, params, batch["tokens"], masked, how, bans)
        value = jnp.mean(jnp.where(masked, nats, 0.0) * weight)
        place = jnp.arange(masked.shape[1])
        count = jnp.float32(masked.size)
        return value, {"weight": count, "nats": nats, "scored": masked, "places": place}

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _bound_nats(model, given_ids, prompt_end, params, rows, scored, share, key):
    """One sample of the bound: n = ceil(share[b] * L) masks in row b, weighed L / n.

    L counts the places that may be masked, of a block-causal model those of one block,
    weighed by the number of blocks.
    """
    free = is_answer(rows, prompt_end)
    free, blocks = one_block(free, jax.random.fold_in(key, 1), model.block_len)
    length = free.sum(axis=1, keepdims=True)
    # A row may have no place at all.
    num = jnp.clip(jnp.ceil(share[:, None] * length), 1, jnp.maximum(length, 1))
    order = jnp.where(free, jax.random.uniform(key, rows.shape), 2.0)
    masked = jnp.argsort(jnp.argsort(order)) < num
    nats = losses.masked_loss(model, params, rows, masked)
    counted = masked & scored & losses.is_scored(rows, given_ids)
    return jnp.sum(jnp.where(counted, nats, 0.0) * length / num * blocks[:, None])


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """Bits of the evidence bound: an upper bound of the model's own figure.

    LLaDA's estimator (appendix B.5): the number of masks is uniform in 1 .. L, spread
    evenly over rows and samples. Rows do not see each other.
    """
    del frozen
    prompt_end = config.options.prompt_end

    def answers(tokens):
        return np.asarray(is_answer(tokens, prompt_end))

    rows = evaluate.rows(text, row_len, row_len - 1, max_rows, answers)
    batches = list(evaluate.parts(rows))
    draw, total = np.random.default_rng(0), 0.0
    for sample in range(_NUM_SAMPLES):
        for number, part in enumerate(batches):
            num_rows = len(part[0])
            share = (draw.random() + np.arange(num_rows) / num_rows) % 1.0
            key = jax.random.fold_in(jax.random.key(0), sample * 100_000 + number)
            arrays = (*map(put, part), put(share.astype(np.float32)))
            static = config.model, text.given_ids, prompt_end
            nats = _bound_nats(*static, params, *arrays, key)
            total += float(nats)
    bound = evaluate.bits(total) / _NUM_SAMPLES / rows.num_units
    return {f"bits_per_{text.unit}": bound, "is_upper_bound": True}


def holds(config):
    del config
    return {"kind": "transformer"}


OBJECTIVE = Objective(Options, NEEDS, start, loss, figures, holds, prepare, noise)
