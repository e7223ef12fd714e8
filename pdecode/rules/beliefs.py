"""Masked positions that remember what the model last held likely there."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import Cache, Model, Prompt, Query, Sampling, SlotRun
from pdecode.kernels.head import dense
from pdecode.sampling import ban, entropy, law

__all__ = ["shift", "smoothed", "softened"]


def softened(model: Model, ratio: Array | float, top_p: Array | float) -> Model:
    """`model` with masks mixed with the mean embedding of their last law.

    The input of a masked lane is (1 - a) e(mask) + a * sum over v of p(v) e(v), p the
    nucleus of the law predicted there last and a = ratio * (1 - H / log V): the surer,
    the more. One vector a slot is kept, no law; a position not predicted yet is a plain
    mask. Stored lanes must have slot == position, as the masked family's have; a
    literal mask id in a prompt is softened too. Zhu et al., 2025, arXiv:2510.11052.
    ValueError for a model without input embeddings.
    """

    def added(raw, table, mask_id, turn):
        del turn
        return shift(ban(raw, (mask_id,)), table, mask_id, ratio, top_p)

    return _remembering(model, added)._replace(name=f"softened {model.name}")


def smoothed(model: Model, weight: Callable[[Array], Array]) -> Model:
    """`model` with the mean embedding of its last law added to every mask.

    The input of a masked lane is e(mask) + w * sum over v of p(v) e(v), p the whole
    law predicted there last, the mask in it, and w = weight(calls before that one).
    All else as in `softened`. Ma et al., 2025, arXiv:2510.08666 (iteration smoothing).
    """

    def added(raw, table, mask_id, turn):
        del mask_id
        probs = jax.nn.softmax(raw)
        mean = jnp.einsum("...v,ve->...e", probs, table.astype(probs.dtype))
        return weight(turn) * mean

    return _remembering(model, added)._replace(name=f"smoothed {model.name}")


def _remembering(model: Model, added: Callable) -> Model:
    """`model` whose masks carry `added(logits, table, mask_id, turn)`, [..., E].

    All rows of a batch begin together, so that one count of calls is every row's.
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
        mean, turn = jnp.zeros(shape, embedding.dtype), jnp.zeros((), jnp.int32)
        inner = model.init_cache(prompt, num_slots)
        return {"model": inner, "mean": mean, "turn": turn}

    def apply(params, query: Query, cache: Cache):
        mean, turn = cache["mean"], cache["turn"]
        read = jax.vmap(lambda row, slot: row[0].at[slot].get(mode="clip"))
        query = query._replace(
            extra=read(mean, query.positions), has_extra=query.tokens == mask_id
        )
        output, inner = model.apply(params, query, cache["model"])
        raw = dense.logits(model.head(params), output.hidden)
        step = added(raw, embedding.table(params), mask_id, turn).astype(mean.dtype)
        mean = caches.write(mean, query.slots, step[:, None])
        return output, {"model": inner, "mean": mean, "turn": turn + 1}

    def encode(params, query: Query, cache: Cache):
        output, inner = model.encode(params, query, cache["model"])
        return output, {**cache, "model": inner}

    def move(cache: Cache, source: Array, target: Array | SlotRun) -> Cache:
        return {
            **cache,
            "model": model.move(cache["model"], source, target),
            "mean": caches.move(cache["mean"], source, target),
        }

    return model._replace(init_cache=init_cache, apply=apply, encode=encode, move=move)


def shift(raw: Array, table: Array, mask_id: int, ratio, top_p) -> Array:
    """[..., E]: what is added to a mask's embedding, of logits [..., V]."""
    nats = entropy(jax.nn.log_softmax(raw))
    weight = ratio * (1 - nats / math.log(raw.shape[-1]))
    kept = law(raw, Sampling(1.0, top_p=top_p))
    away = (table - table[mask_id][None]).astype(kept.dtype)
    return weight[..., None] * jnp.einsum("...v,ve->...e", kept, away)
