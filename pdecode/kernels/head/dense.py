"""Token statistics of logits that exist: the plain path, and the only one for a law."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Head, Prediction, Sampling
from pdecode.sampling import (
    ban,
    cooled,
    entropy,
    filter_logits,
    law,
    sample,
    second_largest,
)


def logits(head: Head, hidden: Array) -> Array:
    """Logits float32 [..., V] of hidden [..., E]; no bans, no temperature."""
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    out = jnp.einsum("...e,ve->...v", hidden, head.weight, preferred_element_type=dtype)
    out = out * head.scale
    if head.bias is not None:
        out = out + jax.lax.broadcast_in_dim(head.bias, out.shape, (out.ndim - 1,))
    if head.soft_cap is not None:
        out = head.soft_cap * jnp.tanh(out / head.soft_cap)
    return out


def statistics(
    raw: Array,
    wants: tuple[str, ...],
    sampling: Sampling,
    keys: Array | Callable[[], Array] | None = None,
    *,
    of: Array | None = None,
) -> Prediction:
    """`api.statistics` of logits [B, Q, V], float32 or wider, with banned ids out."""
    names = {want.partition(":")[0] for want in wants}
    num_top = max((int(want[4:]) for want in wants if want[:4] == "top:"), default=0)
    leaves: dict[str, Array] = {}
    log_probs = jax.nn.log_softmax(raw)
    filtered = filter_logits(raw, sampling)
    sampled_log_probs = jax.nn.log_softmax(cooled(filtered, sampling))

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


def _take(values: Array, index: Array) -> Array:
    return jnp.take_along_axis(values, index[..., None], -1)[..., 0]


def _margin(log_probs: Array) -> Array:
    # Not top_k: where its ids are not read, the compiler sorts the whole vocabulary.
    second = second_largest(log_probs)
    return jnp.exp(log_probs.max(-1)) - jnp.exp(second)
