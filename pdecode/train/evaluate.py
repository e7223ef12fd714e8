"""Bits per byte of a model on a token stream, and what heads get right.

All bits of the predicted tokens (bytes and EOS; BOS is given) over the number of bytes,
the same count as the n-gram baseline's.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from pdecode.data import packing
from pdecode.models import transformer
from pdecode.models.bytes import BOS_ID
from pdecode.train import losses

_BATCH = 16


def _padded(rows: np.ndarray, scored: np.ndarray):
    """Batches of one shape; rows added at the end score nothing."""
    extra = -len(rows) % _BATCH
    rows = np.concatenate([rows, np.repeat(rows[:1], extra, axis=0)])
    scored = np.concatenate([scored, np.zeros((extra, rows.shape[1]), bool)])
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH], scored[start : start + _BATCH]


def _some(rows: np.ndarray, scored: np.ndarray, max_rows: int | None):
    if max_rows is None or max_rows >= len(rows):
        return rows, scored
    spread = np.linspace(0, len(rows) - 1, max_rows).astype(int)
    return rows[spread], scored[spread]


@functools.partial(jax.jit, static_argnums=0)
def _row_nats(config, params, rows, scored):
    nats, counted = losses.next_token_loss(config, params, rows)
    return jnp.sum(jnp.where(counted & scored[:, 1:], nats, 0.0))


def autoregressive(
    config: transformer.Config,
    params,
    tokens: np.ndarray,
    *,
    row_len: int = 512,
    max_rows: int | None = None,
) -> float:
    """Bits per byte of uint16 [N], in rows that overlap by half.

    So every token but the stream's first sees at least row_len / 2 before it.
    `max_rows` scores that many rows, spread evenly over the stream.
    """
    rows, scored = packing.windows(tokens, row_len, row_len // 2)
    rows, scored = _some(rows, scored, max_rows)
    nats = sum(float(_row_nats(config, params, r, s)) for r, s in _padded(rows, scored))
    return nats / math.log(2) / int(((rows < 256) & scored).sum())


@functools.partial(jax.jit, static_argnums=0)
def _bound_nats(config, params, rows, scored, share, key):
    """One sample of the bound: n = ceil(share[b] * L) masks in row b, weighed L / n."""
    length = rows.shape[1]
    num = jnp.clip(jnp.ceil(share * length), 1, length)[:, None]
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(key, rows.shape)))
    masked = rank < num
    nats = losses.masked_loss(config, params, rows, masked)
    counted = masked & scored & (rows != BOS_ID)
    return jnp.sum(jnp.where(counted, nats, 0.0) * length / num)


def masked_diffusion(
    config: transformer.Config,
    params,
    tokens: np.ndarray,
    *,
    row_len: int = 512,
    max_rows: int | None = None,
    num_samples: int = 4,
    seed: int = 0,
) -> float:
    """Bits per byte of the evidence bound: an upper bound of the model's own figure.

    LLaDA's estimator (arXiv:2502.09992, appendix B.5): the number of masks is uniform
    in 1 .. L, spread evenly over rows and samples. Rows do not see each other.
    """
    rows, scored = packing.windows(tokens, row_len, row_len - 1)
    rows, scored = _some(rows, scored, max_rows)
    total = 0.0
    batches = list(_padded(rows, scored))
    draw = np.random.default_rng(seed)
    for sample in range(num_samples):
        for number, (batch, counted) in enumerate(batches):
            share = (draw.random() + np.arange(_BATCH) / _BATCH) % 1.0
            key = jax.random.fold_in(jax.random.key(seed), sample * 100_000 + number)
            share = share.astype(np.float32)
            total += float(_bound_nats(config, params, batch, counted, share, key))
    return total / num_samples / math.log(2) / int(((rows < 256) & scored).sum())


@functools.partial(jax.jit, static_argnums=0)
def _heads_row(config, params, target, rows):
    loss, counted = losses.heads_loss(config, params, target, rows)
    return jnp.sum(jnp.where(counted, loss, 0.0), axis=(0, 1)), counted.sum((0, 1))


def blockwise_heads(
    config: transformer.Config,
    params,
    target,
    tokens: np.ndarray,
    *,
    row_len: int = 512,
    max_rows: int | None = None,
) -> list[float]:
    """Bits a token of each head on the text, the nearest head first."""
    rows, scored = packing.windows(tokens, row_len, row_len - 1)
    rows, _ = _some(rows, scored, max_rows)
    rows = rows[: max(len(rows) // _BATCH, 1) * _BATCH]
    nats, counts = np.zeros(()), np.zeros(())
    for start in range(0, len(rows), _BATCH):
        some = _heads_row(config, params, target, rows[start : start + _BATCH])
        nats, counts = nats + np.asarray(some[0]), counts + np.asarray(some[1])
    return (nats / counts / math.log(2)).tolist()
