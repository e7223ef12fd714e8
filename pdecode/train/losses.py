"""Training objectives: (params, frozen, tokens, key) -> mean loss in nats a token.

`frozen` is what the objective reads and does not train: the target's parameters for
blockwise heads, nothing otherwise. Tokens are int32 [B, L]; the loss is float32 [].
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pdecode.contracts import Params
from pdecode.models import draft_heads as heads_module
from pdecode.models import transformer
from pdecode.models.bytes import BOS_ID
from pdecode.train import plain
from pdecode.train.config import TrainConfig

_HIDDEN = -1e9
_EPS = 1e-3  # LLaDA's and MDLM's: no mask rate below it


def logits_of(
    config: transformer.Config, params: Params, hidden: Array, ban_mask: bool = True
) -> Array:
    """Float32 logits [..., V]; the mask id, which is never an answer, at -1e9."""
    head = transformer.make_model(config).head(params)
    weight = head.weight.astype(hidden.dtype)
    logits = jnp.einsum(
        "...e,ve->...v", hidden, weight, preferred_element_type=jnp.float32
    )
    logits = logits * head.scale
    if head.soft_cap is not None:
        logits = head.soft_cap * jnp.tanh(logits / head.soft_cap)
    if ban_mask and config.mask_id is not None:
        banned = jnp.arange(config.vocab_size) == config.mask_id
        banned = banned.reshape((1,) * (logits.ndim - 1) + (-1,))
        logits = jnp.where(banned, _HIDDEN, logits)
    return logits


def pass_of(config: TrainConfig):
    """The forward pass of a run: (params, tokens int32 [B, L]) -> hidden [B, L, E]."""
    if config.forward == "plain":
        plain.check(config.model)
        return functools.partial(
            plain.forward, config.model, matmul_dtype=config.matmul_dtype
        )
    return functools.partial(whole_rows, config.model, train=config.remat)


def whole_rows(model, params, tokens, *, train=False) -> Array:
    """`transformer.forward`'s hidden states."""
    return transformer.forward(model, params, tokens, train=train).hidden


def _mean(loss: Array, counted: Array) -> Array:
    counted = counted.astype(jnp.float32)
    return (loss * counted).sum() / jnp.maximum(counted.sum(), 1.0)


def next_token_loss(model, params, tokens, run=None) -> tuple[Array, Array]:
    """Nats [B, L-1] of each next token, and which count: BOS is given, not predicted.

    `run` is what `pass_of` gives; None: the transformer's own, unrolled.
    """
    run = functools.partial(whole_rows, model) if run is None else run
    logits = logits_of(model, params, run(params, tokens)[:, :-1])
    target = tokens[:, 1:]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    return loss, target != BOS_ID


def autoregressive(config: TrainConfig):
    """Cross entropy of the next token."""

    run = pass_of(config)

    def loss(params: Params, frozen: Params, tokens: Array, key: Array) -> Array:
        del frozen, key
        return _mean(*next_token_loss(config.model, params, tokens, run))

    return loss


def mask_rates(num_rows: int, key: Array, weighting: str) -> tuple[Array, Array]:
    """Each row's mask probability and loss weight, float32 [B]; `key` is consumed.

    Times are antithetic: one uniform draw, spread evenly over the rows. LLaDA (Nie et
    al., 2025, arXiv:2502.09992): p = (1 - eps) t + eps, weight 1 / p. MDLM (Sahoo et
    al., 2024, arXiv:2406.07524), log-linear: alpha = 1 - (1 - eps) t, p = 1 - alpha,
    weight -alpha' / (1 - alpha) = 1 / t.
    """
    time = (jax.random.uniform(key) + jnp.arange(num_rows) / num_rows) % 1.0
    if weighting == "llada":
        rate = (1 - _EPS) * time + _EPS
        return rate, 1 / rate
    # The bound needs t > 0; a row this close to it has no mask to weigh anyway.
    time = jnp.maximum(time, 1e-4)
    return (1 - _EPS) * time, 1 / time


def masked_loss(model, params, tokens, masked, run=None, ban_mask=True) -> Array:
    """Nats [B, L] of the true token at every position, given the ones not masked."""
    run = functools.partial(whole_rows, model) if run is None else run
    seen = jnp.where(masked, model.mask_id, tokens)
    logits = logits_of(model, params, run(params, seen), ban_mask)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens)


def masked_diffusion(config: TrainConfig):
    """Weighted cross entropy of masked tokens: the bound of the two papers above.

    MDLM's law leaves the mask out. LLaDA's does not, and its decoder reads that law,
    so the model has to learn that the mask is no answer.
    """
    if config.model.mask_id is None:
        raise ValueError("masked diffusion needs a model with a mask_id")
    run = pass_of(config)

    def loss(params: Params, frozen: Params, tokens: Array, key: Array) -> Array:
        del frozen
        key_rate, key_mask = jax.random.split(key)
        rate, weight = mask_rates(tokens.shape[0], key_rate, config.weighting)
        masked = jax.random.uniform(key_mask, tokens.shape) < rate[:, None]
        nats = masked_loss(
            config.model, params, tokens, masked, run, config.weighting == "mdlm"
        )
        return jnp.mean(jnp.where(masked, nats, 0.0) * weight[:, None])

    return loss


def heads_loss(
    model: transformer.Config, params: Params, target: Params, tokens: Array, run=None
) -> tuple[Array, Array]:
    """Nats [B, L-1, K] of the token each head predicts, and which exist and count."""
    run = functools.partial(whole_rows, model) if run is None else run
    hidden = run(target, tokens)[:, :-1]
    num_heads = params["up"].shape[0]
    hidden = heads_module.make_heads(num_heads).apply(
        params, jax.lax.stop_gradient(hidden)
    )
    logits = logits_of(model, target, hidden)
    # tokens a b c d e: at a, the target predicts b, head 1 c, head 2 d
    length = tokens.shape[1]
    place = jnp.arange(length - 1)[:, None] + 2 + jnp.arange(num_heads)[None, :]
    wanted = tokens[:, jnp.minimum(place, length - 1)]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    return loss, (place < length)[None] & (wanted != BOS_ID)


def blockwise_heads(config: TrainConfig):
    """Mean cross entropy of the heads on a frozen target (arXiv:1811.03115)."""

    run = pass_of(config)

    def loss(params: Params, frozen: Params, tokens: Array, key: Array) -> Array:
        del key
        return _mean(*heads_loss(config.model, params, frozen, tokens, run))

    return loss
