"""A masked transformer whose open positions hold noise in the space of codes.

The student of distilled decoding (Liu et al., 2024, arXiv:2412.17153): a lane reads its
token and a vector, which is the token's code, or noise where the token is still open.
So it sees all the noise that its answer is a function of.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import rng
from pdecode.contracts import Cache, Embedding, Model, Params, Prompt, Query
from pdecode.models import layers as parts
from pdecode.models import transformer
from pdecode.models.config import Config

Codes = tuple[tuple[float, ...], ...]  # of the first tokens, all of one length


def init(config: Config, codes: Codes, key: Array) -> Params:
    """Those of a transformer, and "noise": an MLP from codes to its width."""
    key_net, *keys = jax.random.split(key, 3)
    sizes = {"opening": len(codes[0]), "closing": config.width}
    noise = {
        name: _dense(config).init(each, jnp.zeros((1, 1, size)))["params"]
        for each, (name, size) in zip(keys, sizes.items(), strict=True)
    }
    return {**transformer.init(config, key_net), "noise": noise}


def features(
    config: Config, codes: Codes, params: Params, tokens: Array, noise: Array
) -> Array:
    """What is added to the embeddings of tokens int32 [B, L]: [B, L, E].

    `noise` [B, L, D] is 0 where a token is known; what has no code is 0 there too.
    """
    vectors = table(config, codes)[tokens] + noise
    opened = parts.applied(_dense(config), params["noise"]["opening"], vectors)
    return parts.applied(
        _dense(config), params["noise"]["closing"], jax.nn.silu(opened)
    )


def table(config: Config, codes: Codes) -> Array:
    """float32 [V, D]: the code of every token."""
    known = np.asarray(codes, np.float32)
    return jnp.asarray(np.pad(known, ((0, config.vocab_size - len(known)), (0, 0))))


@functools.cache
def make_model(config: Config, codes: Codes) -> Model:
    """The decoder's view; `Model.embedding` is the codebook, of width D.

    `query.extra` [B, Q, D] is added to the codes where `query.has_extra`.
    """
    base = transformer.make_model(config)

    def apply(params: Params, query: Query, cache: Cache):
        noise = jnp.zeros((*query.tokens.shape, len(codes[0])))
        if query.extra is not None:
            noise = query.extra
            if query.has_extra is not None:
                noise = jnp.where(query.has_extra[..., None], noise, 0)
        added = features(config, codes, params, query.tokens, noise)
        return base.apply(params, query._replace(extra=added, has_extra=None), cache)

    return base._replace(
        apply=apply,
        encode=apply,
        embedding=Embedding(
            lambda params: table(config, codes), len(codes[0]), "float32"
        ),
        predicts="noised",
        tapped=None,
        exits=(),
        name=f"noised {config.name}",
    )


def told(model: Model) -> Model:
    """`model` of (its params, keys [B] of rows): open positions hold the row's noise.

    Noise from N(0, I) at every position, the same in every call. ValueError for a model
    without codes, as `make_model` gives them.
    """
    if model.predicts != "noised" or model.embedding is None:
        raise ValueError(
            f"{model.name} has predicts={model.predicts!r} and reads no noise: train "
            "one by objective='distilled_decoding'"
        )
    shape = (model.embedding.width,)

    def init_cache(prompt: Prompt, num_slots: int) -> Cache:
        is_open = jnp.arange(num_slots)[None] >= prompt.lengths[:, None]
        if prompt.masked is not None:
            is_open = is_open.at[:, : prompt.masked.shape[1]].max(prompt.masked)
        return {"model": model.init_cache(prompt, num_slots), "open": is_open}

    def apply(told, query: Query, cache: Cache):
        params, keys = told
        places = rng.noise(keys, rng.TRANSPORT, query.positions)
        draw = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, shape)))
        # A mask that stands in the prompt is a token.
        is_open = jnp.take_along_axis(cache["open"], query.positions, 1)
        is_open &= query.tokens == model.mask_id
        query = query._replace(extra=draw(places), has_extra=is_open)
        output, after = model.apply(params, query, cache["model"])
        return output, {**cache, "model": after}

    return model._replace(
        init_cache=init_cache, apply=apply, encode=apply,
        head=lambda told: model.head(told[0]), embedding=None, predicts="masked",
    )  # fmt: skip


def check(config: Config, codes: Codes) -> None:
    """ValueError for what is no codebook of the model's first tokens."""
    if len(codes) < 2 or len({len(code) for code in codes}) > 1 or not codes[0]:
        raise ValueError(f"codes={codes} must be two or more vectors of one length")
    if len(set(codes)) < len(codes):
        raise ValueError(f"codes={codes}: equal codes are one code to the noise")
    if len(codes) > config.vocab_size:
        raise ValueError(
            f"{len(codes)} codes are more than vocab_size={config.vocab_size} tokens"
        )


def _dense(config: Config) -> parts.Dense:
    return parts.Dense(config.width, True, config.dtype)
