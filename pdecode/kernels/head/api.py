"""Token statistics of hidden states under an output head: the one way to a prediction.

Every family asks `statistics` for the leaves of `Prediction` that its rules read.
Leaves that need the whole law at once (`logits`, `probs`, or any law with a top-k,
top-p or min-p filter) take the dense path, and so do few logits; else the vocabulary is
worked through in tiles (`kernels.head.tiles`) and the logits never exist together.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import rng
from pdecode.contracts import Head, Prediction, Sampling
from pdecode.kernels.head import maxima, tiles
from pdecode.kernels.head.tiles import BANNED, logits
from pdecode.sharding import context

# Up to so many logits (B * Q * V), 4 MiB of float32, the dense path is taken: there,
# measured on CPU, cutting the weights into tiles costs more than it saves.
DENSE_LOGITS = 1 << 20

_LEAVES = frozenset(Prediction._fields)


def check_wants(wants: tuple[str, ...]) -> None:
    """Raise ValueError for a name that is no leaf of Prediction."""
    for want in wants:
        name, _, size = want.partition(":")
        if name == "top" and size.isdigit() and int(size) > 0:
            continue
        if size or name not in _LEAVES - {"top_ids", "top_log_probs"}:
            raise ValueError(
                f"wants={want!r} is no leaf of Prediction; known: "
                f"{sorted(_LEAVES - {'top_ids', 'top_log_probs'})} and 'top:K'"
            )


def statistics(
    head: Head,
    hidden: Array,
    wants: tuple[str, ...],
    sampling: Sampling,
    keys: Array | Callable[[], Array] | None = None,
    *,
    of: Array | None = None,
) -> Prediction:
    """Prediction with the leaves named in `wants` for hidden [B, Q, E].

    `keys` [B, Q] name the noise of `token` (None: no noise, the argmax); a function
    that returns them spares a greedy call the work, which on CPU is more than its
    argmax. "top:K" fills `top_ids` and `top_log_probs`; `of_log_prob` needs `of` (int32
    [B, Q]). Decisions are float32 (float64 for float64 hidden states).

    Above DENSE_LOGITS the peak memory is a few tiles of the logits. On several devices
    put the mesh in context (`jax.set_mesh`): each then reads its own part of the
    vocabulary for its own rows, and a few numbers a row are exchanged. Both hold unless
    `logits`, `probs` or a filter needs the whole law.

    Raises:
      ValueError: an unknown name, more top ids than ids, or `of_log_prob` without `of`.
    """
    check_wants(wants)
    vocab_size = head.weight.shape[0]
    names = {want.partition(":")[0] for want in wants}
    num_top = max((int(want[4:]) for want in wants if want[:4] == "top:"), default=0)
    if num_top > vocab_size:
        raise ValueError(f"wants 'top:{num_top}' of a vocabulary of {vocab_size}")
    if "of_log_prob" in names and of is None:
        raise ValueError("wants 'of_log_prob' but of=None: pass the tokens")
    is_filtered = not (sampling.top_k is sampling.top_p is sampling.min_p is None)
    num_logits = hidden.shape[0] * hidden.shape[1] * vocab_size
    is_large = num_logits > DENSE_LOGITS or context.in_context() is not None
    if is_large and not is_filtered and not names & {"logits", "probs"}:
        known = keys() if callable(keys) else keys
        return tiles.statistics(head, hidden, wants, sampling, known, of)

    raw = ban(logits(head, hidden), sampling.banned)
    leaves: dict[str, Array] = {}
    log_probs = jax.nn.log_softmax(raw)
    filtered = filter_logits(raw, sampling)
    sampled_log_probs = jax.nn.log_softmax(_cool(filtered, sampling))

    if names & {"token", "log_prob", "sampled_log_prob"}:
        drawable = ban(filtered, sampling.undrawn)
        token = sample(drawable, sampling.temperature, keys)
        leaves["token"] = token
        leaves["log_prob"] = _take(log_probs, token)
        leaves["sampled_log_prob"] = _take(sampled_log_probs, token)
    if "max_log_prob" in names:
        leaves["max_log_prob"] = log_probs.max(-1)
    if "entropy" in names:
        leaves["entropy"] = entropy(log_probs)
    if "margin" in names:
        leaves["margin"] = _margin(log_probs)
    if "sampled_entropy" in names:
        leaves["sampled_entropy"] = entropy(sampled_log_probs)
    if "sampled_margin" in names:
        leaves["sampled_margin"] = _margin(sampled_log_probs)
    if num_top:
        values, ids = jax.lax.top_k(log_probs, num_top)
        leaves["top_ids"] = ids.astype(jnp.int32)
        leaves["top_log_probs"] = values
    if of is not None and "of_log_prob" in names:
        leaves["of_log_prob"] = _take(log_probs, of)
    if "logits" in names:
        leaves["logits"] = raw
    if "probs" in names:
        leaves["probs"] = law(raw, sampling)
    return Prediction(**leaves)


def law(raw: Array, sampling: Sampling) -> Array:
    """The sampled law [..., V] of raw logits; one-hot at temperature 0."""
    raw = ban(raw, sampling.undrawn)
    filtered = filter_logits(raw, sampling)
    hot = jax.nn.one_hot(jnp.argmax(raw, -1), raw.shape[-1], dtype=raw.dtype)
    soft = jax.nn.softmax(_cool(filtered, sampling))
    return jnp.where(jnp.asarray(sampling.temperature) > 0, soft, hot)


def sample(
    filtered: Array, temperature, keys: Array | Callable[[], Array] | None
) -> Array:
    """argmax(logits + T * gumbel) as int32 [...]; no keys: the argmax."""
    # Outside the branch, where its maximum serves the log-probabilities too.
    greedy = maxima.largest(filtered)[1]
    if keys is None:
        return greedy

    def drawn():
        places = keys() if callable(keys) else keys
        noise = rng.gumbel(places, filtered.shape[-1]).astype(filtered.dtype)
        return maxima.largest(filtered + temperature * noise)[1]

    # The noise is worth skipping at temperature 0: over a canvas it costs more than
    # the argmax. The predicate is one scalar, so this is no divergence between rows.
    return jax.lax.cond(jnp.asarray(temperature) > 0, drawn, lambda: greedy)


def categorical(probs: Array, keys: Array) -> Array:
    """One draw int32 [...] from probs [..., V] for keys [...]; zeros never win."""
    log_probs = jnp.where(probs > 0, jnp.log(jnp.where(probs > 0, probs, 1)), BANNED)
    drawn = log_probs + rng.gumbel(keys, probs.shape[-1]).astype(probs.dtype)
    return maxima.largest(drawn)[1]


def ban(raw: Array, banned: tuple[int, ...]) -> Array:
    """Logits with the ids `banned` made impossible."""
    # Compared, not scattered: this melts into whatever reads the logits.
    ids = jax.lax.broadcasted_iota(jnp.int32, raw.shape, raw.ndim - 1)
    return jnp.where(tiles.among(ids, banned), BANNED, raw)


def filter_logits(raw: Array, sampling: Sampling) -> Array:
    """Logits with what top-k, top-p and min-p exclude made impossible.

    The filters look at the tempered law; the logits returned are not divided by the
    temperature.
    """
    if sampling.top_k is None and sampling.top_p is None and sampling.min_p is None:
        return raw
    order = jnp.argsort(-raw, -1)  # stable: ties by lowest id
    rank = jnp.argsort(order, -1)
    keep = jnp.ones(raw.shape, bool)
    if sampling.top_k is not None:
        keep &= rank < sampling.top_k
    probs = jax.nn.softmax(jnp.where(keep, _cool(raw, sampling), BANNED))
    if sampling.top_p is not None:
        nucleus = probs
        if sampling.is_top_p_first:
            nucleus = jax.nn.softmax(_cool(raw, sampling))
        descending = jnp.take_along_axis(nucleus, order, -1)
        before = jnp.cumsum(descending, -1) - descending
        keep &= jnp.take_along_axis(before, rank, -1) < sampling.top_p
    if sampling.min_p is not None:
        keep &= probs >= sampling.min_p * probs.max(-1, keepdims=True)
    keep |= rank == 0
    return jnp.where(keep, raw, BANNED)


def entropy(log_probs: Array) -> Array:
    """Entropy in nats over the last axis; impossible tokens add nothing."""
    probs = jnp.exp(log_probs)
    return -jnp.where(probs > 0, probs * log_probs, 0.0).sum(-1)


def _cool(raw: Array, sampling: Sampling) -> Array:
    temperature = jnp.asarray(sampling.temperature, raw.dtype)
    safe = jnp.where(temperature > 0, temperature, 1.0)
    return raw / safe


def _take(values: Array, index: Array) -> Array:
    return jnp.take_along_axis(values, index[..., None], -1)[..., 0]


def _margin(log_probs: Array) -> Array:
    # Not top_k: where its ids are not read, the compiler sorts the whole vocabulary.
    second = maxima.second_largest(log_probs)
    return jnp.exp(log_probs.max(-1)) - jnp.exp(second)
