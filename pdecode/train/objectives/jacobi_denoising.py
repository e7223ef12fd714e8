"""Cross entropy of the next clean token behind embeddings that are noise in part.

SJD2 (2025, arXiv:2510.08994). A row is cut into random segments, each with a level of
noise of its own: in place of a token's embedding stands level * clean + rest * noise,
in the normalised space of embeddings in which `methods.sjd2` denoises its guesses.
What is predicted is always the clean next token, from everything before it. Deviations:
no encoding of the level, which the decoder does not tell either; and a share of the
segments is clean by choice, since what is decoded behind is text without noise.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pdecode.contracts import Params
from pdecode.drafters import denoised
from pdecode.models import transformer
from pdecode.models.config import Config
from pdecode.train import evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.objectives import autoregressive
from pdecode.train.passes import Pass


@dataclasses.dataclass(frozen=True)
class Options:
    levels: int = 20  # of noise, as the decoder's
    segment_length: int = 16  # on average
    clean: float = 0.5  # of the segments; the others have any level as often

    def __post_init__(self):
        inf = float("inf")
        ranges = {"levels": (1, inf), "segment_length": (1, inf), "clean": (0, 1)}
        check_ranges(self, ranges)


NEEDS = Needs(
    attention=("causal",),
    predicts=("next",),
    why="a guess is denoised by what the position before it predicts",
)


def start(config, key, given):
    return transformer.init(config.model, key) if given is None else given


def noise(config):
    own, width = config.options, config.model.width

    def apply(batch, key):
        shape = batch["tokens"].shape
        keys = jax.random.split(key, 4)
        begins = jax.random.uniform(keys[0], shape) < 1 / own.segment_length
        segment = jnp.cumsum(begins, 1)
        level = jax.random.randint(keys[1], shape, 1, own.levels + 1)
        is_clean = jax.random.uniform(keys[2], shape) < own.clean
        level = jnp.take_along_axis(jnp.where(is_clean, 0, level), segment, 1, "clip")
        # A decoder always knows one token.
        level = level.at[:, 0].set(0)
        drawn = jax.random.normal(keys[3], (*shape, width))
        return {**batch, "level": level, "noise": drawn}

    return apply


def noisy(
    model: Config,
    params: Params,
    tokens: Array,
    level: Array,
    drawn: Array,
    levels: int,
) -> tuple[Array, Array]:
    """(tokens [B, L], extra [B, L, E]): rows as `drafters.denoised` feeds its own.

    A noisy position is id 0 and what is missing to what stands there.
    """
    network = transformer.make_model(model)
    assert network.embedding is not None, "a transformer says what they are"
    table = network.embedding.table(params).astype(jnp.float32)
    mean, scale = denoised.statistics(network, params)
    alpha, sigma = (jnp.asarray(each)[level][..., None] for each in
                    denoised.schedule(levels))  # fmt: skip
    mean, scale = mean[None, None], scale[None, None]
    stands = alpha * (table[tokens] - mean) / scale + sigma * drawn
    is_noisy, zeroth = level > 0, table[None, :1]
    extra = jnp.where(is_noisy[..., None], stands * scale + mean - zeroth, 0.0)
    return jnp.where(is_noisy, 0, tokens), extra


def next_nats(
    model: Config, params: Params, batch: dict, levels: int, how: Pass | None = None
) -> Array:
    """Nats [B, L - 1] of each next token of `batch`, as `noise` leaves it."""
    how = passes.of_decoding(model) if how is None else how
    tokens = batch["tokens"]
    shown, extra = noisy(model, params, tokens, batch["level"], batch["noise"], levels)
    hidden = passes.run(how, params, shown, extra=extra).hidden[:, :-1]
    logits = losses.logits_of(model, params, hidden)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])


def loss(config):
    how, given_ids, levels = (
        passes.of_run(config),
        config.given_ids,
        config.options.levels,
    )

    def apply(params, frozen, batch, key, step):
        del frozen, key, step
        nats = next_nats(config.model, params, batch, levels, how)
        tokens = batch["tokens"]
        scored = losses.is_scored(tokens[:, 1:], given_ids)
        return losses.mean(nats, scored, jnp.arange(1, tokens.shape[1]))

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _noisy_sums(model, levels, given_ids, params, batch, scored):
    """Nats of what comes next behind noise, and how many tokens that is."""
    nats = next_nats(model, params, batch, levels)
    counted = scored & losses.is_scored(batch["tokens"], given_ids)
    counted = counted[:, 1:] & (batch["level"][:, :-1] > 0)
    return jnp.stack([jnp.where(counted, nats, 0.0).sum(), counted.sum()])


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """Bits of the next token, as `autoregressive.figures`, and of one behind noise."""
    sizes = {"row_len": row_len, "max_rows": max_rows, "put": put}
    found = autoregressive.figures(config, params, frozen, text, **sizes)
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    drawn, total = noise(config), np.zeros(2)
    static = config.model, config.options.levels, text.given_ids
    for number, (tokens, scored) in enumerate(evaluate.parts(rows)):
        batch = drawn({"tokens": put(tokens)}, jax.random.key(number))
        total += np.asarray(_noisy_sums(*static, params, batch, put(scored)))
    bits = float(evaluate.bits(total[0]) / max(total[1], 1))
    return {**found, f"bits_per_{text.unit}_behind_noise": bits}


def holds(config):
    del config
    return {"kind": "transformer"}


OBJECTIVE = Objective(Options, NEEDS, start, loss, figures, holds, noise=noise)
