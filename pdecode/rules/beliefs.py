"""Masked positions that remember what the model last held likely there."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import Cache, Model, Prompt, Query, Sampling, SlotRun
from pdecode.kernels.head import dense
from pdecode.sampling import ban, entropy, law


def softened(model: Model, ratio: Array | float, top_p: Array | float) -> Model:
    """`model` with masks mixed with the mean embedding of their last law.

    The input of a masked lane is (1 - a) e(mask) + a * sum over v of p(v) e(v), p the
    nucleus of the law predicted there last and a = ratio * (1 - H / log V): the surer,
    the more. One vector a slot is kept, no law; a position not predicted yet is a plain
    mask. Stored lanes must have slot == position, as the masked family's have; a
    literal mask id in a prompt is softened too. Zhu et al., 2025, arXiv:2510.11052.
    ValueError for a model without input embeddings.
    """
    embedding, mask_id = model.embedding, model.mask_id
    if embedding is None or mask_id is None or model.predicts != "masked":
        has = "no" if embedding is None else "such"
        raise ValueError(
            "soft masks need a masked model with input embeddings (Model.embedding), "
            f"but {model.name} has predicts={model.predicts!r} and {has} embeddings: "
            "use a transformer with a mask token"
        )

    def init_cache(prompt: Prompt, num_slots: int) -> Cache:
        shape = (prompt.tokens.shape[0], 1, num_slots, embedding.width)
        mean = jnp.zeros(shape, embedding.dtype)
        return {"model": model.init_cache(prompt, num_slots), "mean": mean}

    def apply(call, params, query: Query, cache: Cache):
        mean = cache["mean"]
        read = jax.vmap(lambda row, slot: row[0].at[slot].get(mode="clip"))
        query = query._replace(
            extra=read(mean, query.positions), has_extra=query.tokens == mask_id
        )
        output, inner = call(params, query, cache["model"])
        raw = ban(dense.logits(model.head(params), output.hidden), (mask_id,))
        step = shift(raw, embedding.table(params), mask_id, ratio, top_p).astype(
            mean.dtype
        )
        mean = caches.write(mean, query.slots, step[:, None])
        return output, {"model": inner, "mean": mean}

    def move(cache: Cache, source: Array, target: Array | SlotRun) -> Cache:
        return {
            "model": model.move(cache["model"], source, target),
            "mean": caches.move(cache["mean"], source, target),
        }

    return model._replace(
        init_cache=init_cache,
        apply=functools.partial(apply, model.apply),
        encode=functools.partial(apply, model.encode),
        move=move,
        name=f"softened {model.name}",
    )


def shift(raw: Array, table: Array, mask_id: int, ratio, top_p) -> Array:
    """[..., E]: what is added to a mask's embedding, of logits [..., V]."""
    nats = entropy(jax.nn.log_softmax(raw))
    weight = ratio * (1 - nats / math.log(raw.shape[-1]))
    kept = law(raw, Sampling(1.0, top_p=top_p))
    away = (table - table[mask_id][None]).astype(kept.dtype)
    return weight[..., None] * jnp.einsum("...v,ve->...e", kept, away)
