"""Probes in a training pass: lanes behind places of a row that guess what follows.

In the pass of whole rows K lanes stand behind each of a few places, at the positions
after it. The k-th sees the text up to the place and the lanes before it, as the probes
of `pdecode.drafters.probes` do when it is decoded; no token of the text sees a lane.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Params, Visibility
from pdecode.models.config import Config
from pdecode.train import losses, passes
from pdecode.train.passes import Pass


def drawn(key: Array, shape: tuple[int, int], count: int) -> Array:
    """Up to `count` different places int32 [B, M] of rows of `shape`.

    Behind each of them there is a token that a lane guesses. `key` is consumed.
    """
    batch, length = shape
    order = jnp.argsort(jax.random.uniform(key, (batch, max(length - 2, 1))), axis=1)
    return order[:, :count].astype(jnp.int32)


def even(shape: tuple[int, int], count: int) -> Array:
    """As `drawn`, spread evenly and the same in all rows."""
    batch, length = shape
    last = max(length - 3, 0)
    places = np.linspace(0, last, min(count, last + 1)).astype(np.int32)
    return jnp.broadcast_to(places, (batch, len(places)))


def of_pass(how: Pass, params: Params) -> Callable[..., Array]:
    """The `run` of `behind` for a model as it is: hidden states of a pass."""
    # The plain pass knows whole rows only.
    how = how._replace(forward="transformer")

    def run(tokens, positions, visible, extra):
        return passes.run(
            how, params, tokens, positions=positions, visible=visible, extra=extra
        ).hidden

    return run


def behind(
    run: Callable[..., Array],
    tokens: Array,  # int32 [B, L]
    places: Array,  # int32 [B, M]
    num: int,
    token: int,
    change: Array | None = None,  # [K, E]  added to the embeddings of the lanes
) -> tuple[Array, Array]:
    """Hidden states of the text [B, L, E] and of lanes behind places [B, M, K, E].

    `run(tokens, positions, visible, extra)` gives those of all lanes, the text first.
    `num` = K lanes are fed as `token`. Lane k behind place t stands at t + 1 + k and
    guesses the token at t + 2 + k, which is guess k of `losses.ahead` there.
    """
    batch, length = tokens.shape
    num_places = places.shape[1]
    asked = (places[..., None] + 1 + jnp.arange(num)[None, None]).reshape(batch, -1)
    text = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), tokens.shape)
    fed = jnp.full(asked.shape, token, jnp.int32)
    extra = None
    if change is not None:
        extra = jnp.broadcast_to(change, (batch, num_places, *change.shape))
        extra = extra.reshape(batch, num_places * num, -1)
        extra = jnp.pad(extra, ((0, 0), (length, 0), (0, 0)))
    nowhere = jnp.zeros((batch, length + asked.shape[1]), jnp.int32)
    hidden = run(
        jnp.concatenate([tokens, fed], 1),
        jnp.concatenate([text, asked], 1),
        Visibility(nowhere, nowhere, among=sees(places, length, num)),
        extra,
    )
    lanes = hidden[:, length:].reshape(batch, num_places, num, hidden.shape[-1])
    return hidden[:, :length], lanes


def taught(
    run: Callable[..., Array], model: Config, target: Params, tokens: Array,
    places: Array, num: int, token: int = 0, change: Array | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Nats [B, M, K, V] of every id at the lanes behind places, and the law to learn.

    That is the target's own at the true token that stands where the lane does, without
    a slope; behind the row's end it has no meaning.
    """
    hidden, guessed = behind(run, tokens, places, num, token, change)
    stands = places[..., None] + 1 + jnp.arange(num)[None, None]
    row = jnp.arange(tokens.shape[0])[:, None, None]
    true = hidden[row, jnp.minimum(stands, tokens.shape[1] - 1)]
    nats = -jax.nn.log_softmax(losses.logits_of(model, target, guessed))
    law = jax.nn.softmax(losses.logits_of(model, target, true))
    return nats, jax.lax.stop_gradient(law)


def divergence(
    found: tuple[Array, Array], tokens: Array, places: Array, rate: Array, given_ids
) -> tuple[Array, dict]:
    """The divergence of what was `taught`, lane k times rate[k], a place's mean."""
    nats, law = found
    wanted, scored, stands = losses.ahead(tokens, rate.shape[0], given_ids)
    here, size = at(scored, places), scored.shape[1]
    value, aux = losses.weighted(losses.divergence(nats, law), here, rate)
    of_text = spread(losses.of_tokens(nats, at(wanted, places)), places, size)
    aux |= {"nats": of_text, "scored": spread(here, places, size), "places": stands}
    return value, aux


def sums(
    found: tuple[Array, Array], rows: Array, places: Array, counted: Array, given_ids
) -> Array:
    """By lane, [3, K]: nats of the text's token, how often the best token is the
    target's, and how many there are, of those `counted` (bool [B, L])."""
    nats, law = found
    wanted, scored, stands = losses.ahead(rows, nats.shape[2], given_ids)
    scored &= counted[:, jnp.minimum(stands, rows.shape[1] - 1)]
    wanted, scored = at(wanted, places), at(scored, places)
    agrees = jnp.argmin(nats, -1) == jnp.argmax(law, -1)
    each = [losses.of_tokens(nats, wanted), agrees, jnp.ones(wanted.shape)]
    return jnp.stack(
        [jnp.where(scored, leaf, 0.0).sum((0, 1), jnp.float32) for leaf in each]
    )


def sees(places: Array, length: int, num: int) -> Array:
    """bool [B, Q, Q] over L lanes of text and `num` behind each place."""
    batch, num_places = places.shape
    size = num_places * num
    group, nth = np.divmod(np.arange(size), num)
    text = np.tril(np.ones((length, length), bool))
    text = np.concatenate([text, np.zeros((length, size), bool)], 1)
    before = jnp.arange(length)[None, None] <= places[:, group][..., None]
    chain = (group[:, None] == group[None]) & (nth[None] <= nth[:, None])
    chain = jnp.broadcast_to(jnp.asarray(chain), (batch, size, size))
    lanes = jnp.concatenate([before, chain], 2)
    text = jnp.broadcast_to(jnp.asarray(text), (batch, *text.shape))
    return jnp.concatenate([text, lanes], 1)


def at(leaf: Array, places: Array) -> Array:
    """Of `leaf` [B, L - 1, ...] what stands at places: [B, M, ...]."""
    return leaf[jnp.arange(places.shape[0])[:, None], places]


def spread(values: Array, places: Array, size: int) -> Array:
    """`values` [B, M, K] at their places of rows [B, size, K]; elsewhere zero."""
    batch, _, num = values.shape
    row = jnp.arange(batch)[:, None]
    return jnp.zeros((batch, size, num), values.dtype).at[row, places].set(values)
