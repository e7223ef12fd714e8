"""Cross entropies that objectives share, in nats for every token, unsummed."""

import jax.numpy as jnp
import optax
from jax import Array

from pdecode.contracts import Head, Params
from pdecode.models import transformer
from pdecode.models.bytes import BOS_ID
from pdecode.models.config import Config
from pdecode.train import passes
from pdecode.train.passes import Pass

_HIDDEN = -1e9


def logits_of(
    model: Config, params: Params, hidden: Array, ban_mask: bool = True
) -> Array:
    """Float32 logits [..., V]; the mask id, which is never an answer, at -1e9."""
    head = transformer.make_model(model).head(params)
    return logits_under(model, head, hidden, ban_mask)


def logits_under(
    model: Config, head: Head, hidden: Array, ban_mask: bool = True
) -> Array:
    """`logits_of` under another head over the ids of `model`."""
    weight = head.weight.astype(hidden.dtype)
    logits = jnp.einsum(
        "...e,ve->...v", hidden, weight, preferred_element_type=jnp.float32
    )
    logits = logits * head.scale
    if head.bias is not None:
        logits = logits + head.bias.reshape((1,) * (logits.ndim - 1) + (-1,))
    if head.soft_cap is not None:
        logits = head.soft_cap * jnp.tanh(logits / head.soft_cap)
    if ban_mask and model.mask_id is not None:
        banned = jnp.arange(model.vocab_size) == model.mask_id
        banned = banned.reshape((1,) * (logits.ndim - 1) + (-1,))
        logits = jnp.where(banned, _HIDDEN, logits)
    return logits


def is_scored(tokens: Array, given_ids: tuple[int, ...]) -> Array:
    """bool, as `tokens`: all that are not given by the text."""
    scored = jnp.ones(tokens.shape, bool)
    for given in given_ids:
        scored = scored & (tokens != given)
    return scored


def ahead(
    tokens: Array, count: int, given_ids: tuple[int, ...]
) -> tuple[Array, Array, Array]:
    """What `count` guesses behind each next token are of: answers, scored, places.

    Tokens int32 [B, L]; answers int32 and scored bool [B, L - 1, K], places int32
    [L - 1, K]. Of a b c d e: at a, the target predicts b, guess 0 is c and guess 1 d.
    """
    length = tokens.shape[1]
    place = jnp.arange(length - 1)[:, None] + 2 + jnp.arange(count)[None]
    wanted = tokens[:, jnp.minimum(place, length - 1)]
    exists = (place < length)[None]
    return wanted, exists & is_scored(wanted, given_ids), place


def weighted(
    nats: Array, scored: Array, weights: Array
) -> tuple[Array, dict[str, Array]]:
    """Sum over guesses [B, L - 1, K] times `weights` [K], a position's mean; and aux.

    Positions count that have a first guess; the last ones have fewer guesses.
    """
    counted = scored.astype(jnp.float32)
    weight = counted[..., 0].sum()
    total = (nats * counted * weights[None, None]).sum()
    return total / jnp.maximum(weight, 1.0), {"weight": weight, "scored": scored}


def of_tokens(nats: Array, tokens: Array) -> Array:
    """Of nats [..., V] of every id those of `tokens` [...]."""
    return jnp.take_along_axis(nats, tokens[..., None], -1)[..., 0]


def divergence(nats: Array, law: Array) -> Array:
    """Kullback-Leibler divergence [...] from a law [..., V] to that of `nats`."""
    own = jnp.where(law > 0, jnp.log(jnp.where(law > 0, law, 1.0)), 0.0)
    return (law * (nats + own)).sum(-1)


def mean(nats: Array, scored: Array, places: Array) -> tuple[Array, dict[str, Array]]:
    """The mean of what is scored, as an objective's loss; `aux` as in `Objective`.

    `nats` and `scored` [B, ...]; `places` [...]: the positions of the answers.
    """
    counted = scored.astype(jnp.float32)
    weight = counted.sum()
    value = (nats * counted).sum() / jnp.maximum(weight, 1.0)
    aux = {"weight": weight, "nats": nats, "scored": scored, "places": places}
    return value, aux


def row_mean(values: Array, counted: Array) -> Array:
    """The mean over the last axis of what is counted; zero where nothing is."""
    total = jnp.where(counted, values, 0.0).sum(-1)
    return total / jnp.maximum(counted.sum(-1), 1)


def next_token_loss(
    model: Config,
    params: Params,
    tokens: Array,
    how: Pass | None = None,
    given_ids: tuple[int, ...] = (BOS_ID,),
) -> tuple[Array, Array]:
    """Nats [B, L-1] of each next token, and which of them are scored.

    `how` None: as a decoder runs the model.
    """
    how = passes.of_decoding(model) if how is None else how
    logits = logits_of(model, params, passes.hidden(how, params, tokens)[:, :-1])
    target = tokens[:, 1:]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    return nats, is_scored(target, given_ids)


def masked_loss(
    model: Config,
    params: Params,
    tokens: Array,
    masked: Array,
    how: Pass | None = None,
    ban_mask: bool = True,
) -> Array:
    """Nats [B, L] of the true token at every position, given the ones not masked."""
    how = passes.of_decoding(model) if how is None else how
    assert model.mask_id is not None, "the objective asks for one"
    seen = jnp.where(masked, model.mask_id, tokens)
    logits = logits_of(model, params, passes.hidden(how, params, seen), ban_mask)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
