"""Exact toy models: a known joint law served as a `Model`, for studying a rule exactly.

A toy answers each query from exactly the keys that the query sees, with the true
conditional law given the (position, token) pairs of those keys. A stale slot, a wrong
mask, a wrong position or a bad compaction therefore changes the numbers. Its hidden
state is the vector of log-probabilities and its head is the identity.

The same joint serves causal queries (predict the next position) and masked ones
(predict their own); trees, probes, blocks and any order are only `Visibility`.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import Head, Model, Output, Prompt, Query

IMPOSSIBLE = -1e9  # finite: log-probabilities are multiplied by guidance scales


class Table(NamedTuple):
    """An explicit law: K strings and their log-probabilities. The toy's params."""

    strings: Array  # int32 [K, L]
    log_probs: Array  # [K]


class Chain(NamedTuple):
    """A Markov law whose transitions differ by position. The toy's params."""

    first: Array  # [V]  log-probabilities of position 0
    steps: Array  # [L - 1, V, V]  of position l + 1 given position l


def table(strings, probs) -> Table:
    """A Table from strings (int [K, L]) and their probs [K]; ValueError if no law."""
    strings, probs = np.asarray(strings, np.int32), np.asarray(probs, np.float64)
    if strings.ndim != 2 or probs.shape != strings.shape[:1]:
        raise ValueError(f"need [K, L] and [K], got {strings.shape} and {probs.shape}")
    if abs(probs.sum() - 1) > 1e-6 or (probs < 0).any():
        raise ValueError(f"probs must be a law, but they sum to {probs.sum():g}")
    with np.errstate(divide="ignore"):
        log_probs = np.maximum(np.log(probs), IMPOSSIBLE)
    return Table(jnp.asarray(strings), jnp.asarray(log_probs))


def joint(seed: int, vocab: int = 3, length: int = 5, sharpness: float = 1.5) -> Table:
    """A random full-support law over all `vocab ** length` strings."""
    strings = np.array(list(itertools.product(range(vocab), repeat=length)), np.int32)
    rng = np.random.default_rng(seed)
    # Random potentials on all pairs of positions: dependence at every distance.
    energy = sharpness * 0.5 * rng.normal(size=(length, length, vocab, vocab))
    score = rng.normal(size=len(strings)) * 0.3
    for i, j in itertools.combinations_with_replacement(range(length), 2):
        score += energy[i, j, strings[:, i], strings[:, j]]
    probs = np.exp(score - score.max())
    return table(strings, probs / probs.sum())


def chain(seed: int, vocab: int = 4, length: int = 32, sharpness: float = 1.5) -> Chain:
    """A random Markov law with a different transition matrix at every position."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=vocab) * sharpness
    steps = rng.normal(size=(length - 1, vocab, vocab)) * sharpness
    return Chain(
        jax.nn.log_softmax(jnp.asarray(first)),
        jax.nn.log_softmax(jnp.asarray(steps)),
    )


def mixed(target: Table | Chain, other: Table | Chain, weight: float):
    """A law near `target`, for drafters: logs are mixed with `weight` on `other`."""
    if type(target) is not type(other):
        raise TypeError(f"{type(target).__name__} and {type(other).__name__} differ")
    if isinstance(target, Table):
        log_probs = (1 - weight) * target.log_probs + weight * other.log_probs
        return Table(target.strings, jax.nn.log_softmax(log_probs))
    return jax.tree.map(
        lambda a, b: jax.nn.log_softmax((1 - weight) * a + weight * b), target, other
    )


@functools.cache
def make_model(
    vocab: int,
    length: int,
    *,
    noise: str = "causal",
    attention: str | None = None,
    block_len: int | None = None,
    eos_ids: tuple[int, ...] = (),
) -> Model:
    """The Model of a toy over `vocab` tokens and `length` positions.

    Params are a Table or a Chain of those sizes. Token id `vocab` is the mask: it says
    nothing as a key, and has a high logit so that forgetting to ban it shows.
    """
    shift = 1 if noise == "causal" else 0
    apply = functools.partial(_apply, vocab=vocab, length=length, shift=shift)
    return Model(
        init_cache=_init_cache,
        apply=apply,
        encode=apply,
        head=functools.partial(_head, vocab=vocab),
        move=caches.move,
        vocab_size=vocab + 1,
        mask_id=vocab,
        eos_ids=eos_ids,
        noise=noise,
        attention=attention or ("causal" if noise == "causal" else "bidirectional"),
        block_len=block_len,
        max_positions=length,
        name="toy",
    )


def _init_cache(prompt: Prompt, num_slots: int):
    # A key is (token, position); -1 is an empty slot.
    return {"keys": jnp.full((prompt.tokens.shape[0], 1, num_slots, 2), -1, jnp.int32)}


def _head(params: Table | Chain, *, vocab: int) -> Head:
    return Head(weight=jnp.eye(vocab + 1, dtype=_dtype(params)))


def _apply(params, query: Query, cache, *, layers=None, vocab, length, shift):
    del layers
    own = jnp.stack([query.tokens, query.positions], -1)[:, None]
    keys = caches.write(cache["keys"], query.slots, own)
    seen, mask = _seen(query, keys, own)

    token, position = seen[..., 0], seen[..., 1]  # [B, K]
    hot = (
        jax.nn.one_hot(token, vocab)[:, :, None]
        * jax.nn.one_hot(position, length)[..., None]
    )
    counts = jnp.einsum("bqk,bklv->bqlv", mask.astype(jnp.float32), hot)
    total = counts.sum(-1, keepdims=True)
    forbidden = total > counts  # another token was observed there
    target = query.positions + shift
    log_probs = _marginal(params, forbidden, jnp.clip(target, 0, length - 1))
    outside = (target < 0) | (target >= length)
    log_probs = jnp.where(outside[..., None], -jnp.log(float(vocab)), log_probs)
    # A key seen twice must show: attention would weigh it twice.
    excess = jnp.maximum(total[..., 0] - 1, 0).sum(-1)
    log_probs = log_probs + excess[..., None] * jnp.arange(vocab)
    mask_logit = jnp.full((*log_probs.shape[:-1], 1), 2.0, log_probs.dtype)
    hidden = jnp.concatenate([log_probs, mask_logit], -1).astype(_dtype(params))
    return Output(hidden), {"keys": keys}


def _seen(query: Query, keys: Array, own: Array):
    """Keys [B, K, 2] and mask [B, Q, K]: the cache, then the call's own lanes."""
    visible = query.visible
    slot = jnp.arange(keys.shape[2])
    mask = (visible.start[..., None] <= slot) & (slot < visible.stop[..., None])
    if visible.written is not None:
        mask &= visible.written[:, None]
    keys = keys[:, 0]
    if visible.among is not None:
        keys = jnp.concatenate([keys, own[:, 0]], 1)
        mask = jnp.concatenate([mask, visible.among], -1)
    return keys, mask


def _marginal(params, forbidden: Array, target: Array) -> Array:
    """Log-law [B, Q, V] of position `target` given what is `forbidden` [B, Q, L, V].

    Evidence that no string satisfies gives the uniform law.
    """
    if isinstance(params, Table):
        hot = jax.nn.one_hot(params.strings, forbidden.shape[-1], dtype=jnp.float32)
        clash = jnp.einsum("bqlv,klv->bqk", forbidden.astype(jnp.float32), hot) > 0
        weight = jnp.where(clash, 0.0, jnp.exp(params.log_probs))
        every = jnp.einsum("bqk,klv->bqlv", weight, hot.astype(weight.dtype))
        picked = jnp.take_along_axis(every, target[..., None, None], 2)[:, :, 0]
    else:
        allowed = jnp.moveaxis(jnp.where(forbidden, 0.0, 1.0), 2, 0)  # [L, B, Q, V]
        steps = jnp.exp(params.steps)

        def scaled(x):
            return x / jnp.maximum(x.sum(-1, keepdims=True), 1e-30)

        def forward(alpha, xs):
            step, here = xs
            alpha = scaled(jnp.einsum("bqu,uv->bqv", alpha, step) * here)
            return alpha, alpha

        def backward(beta, xs):
            step, there = xs
            beta = scaled(jnp.einsum("uv,bqv->bqu", step, beta * there))
            return beta, beta

        first = scaled(jnp.exp(params.first) * allowed[0])
        last = jnp.ones_like(first)
        _, alphas = jax.lax.scan(forward, first, (steps, allowed[1:]))
        _, betas = jax.lax.scan(backward, last, (steps, allowed[1:]), reverse=True)
        alphas = jnp.concatenate([first[None], alphas])
        betas = jnp.concatenate([betas, last[None]])
        every = jnp.moveaxis(alphas * betas, 0, 2)
        picked = jnp.take_along_axis(every, target[..., None, None], 2)[:, :, 0]
    total = picked.sum(-1, keepdims=True)
    probs = jnp.where(total > 0, picked / jnp.where(total > 0, total, 1), 0)
    log_probs = jnp.where(
        probs > 0, jnp.log(jnp.where(probs > 0, probs, 1)), IMPOSSIBLE
    )
    return jnp.where(total > 0, log_probs, -jnp.log(float(probs.shape[-1])))


def _dtype(params: Table | Chain):
    return jax.tree.leaves(params)[-1].dtype
