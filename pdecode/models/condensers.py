"""What of an image a draft layer keeps: the target's features there, made fewer.

SpecVLM's elastic compressor (Huang et al., 2025, arXiv:2509.11815): several operators,
each with a number of vectors of its own, and a gate that looks at the question and
picks one of them for the whole image. FLASH (Wang et al., 2025, arXiv:2505.12728) has
one operator, learned queries. An operator makes n vectors of C features:

prune    every (C / n)-th feature
pool     the mean of each run of C / n
conv     a linear map of each run of C / n, stride as long as the kernel
latents  n learned queries a_i: the sum over t of softmax_t(a_i f_t) f_t
none     nothing: the layer reads the text alone

Deviations: features are those of the target's last layer, in reading order and not in
two dimensions; pruning is even where the paper prunes at random; a resampler's maps of
keys and values are left out, since the layer has its own behind it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Params

OPERATORS = ("prune", "pool", "conv", "latents", "none")
_IN_RUNS = ("prune", "pool", "conv")


class Condenser(NamedTuple):
    """Which operators there are, and of how many features; hashable."""

    num_features: int  # C, which stand at the first positions of a row
    counts: tuple[tuple[str, int], ...]  # operators and how many vectors they make
    num_question: int = 1  # tokens behind the features that the gate looks at

    @property
    def size(self) -> int:
        """Vectors of the largest operator: slots that an image takes."""
        return max(count for _, count in self.counts)

    @property
    def num_gone(self) -> int:
        """Slots fewer than features."""
        return self.num_features - self.size


def read(found: dict) -> Condenser:
    """A condenser out of a record, which holds its fields."""
    counts = tuple((name, count) for name, count in found["counts"])
    return Condenser(found["num_features"], counts, found["num_question"])


def check(made: Condenser) -> None:
    """ValueError for numbers that cannot be."""
    for field in ("num_features", "num_question"):
        if getattr(made, field) < 1:
            raise ValueError(f"{field}={getattr(made, field)} must be at least 1")
    if not made.counts:
        raise ValueError(f"counts={made.counts}: an image needs one operator at least")
    for name, count in made.counts:
        if name not in OPERATORS:
            raise ValueError(f"unknown operator {name!r}; known: {OPERATORS}")
        if name == "none":
            if count:
                raise ValueError(f"none={count} must be 0: it keeps nothing")
        elif not 1 <= count <= made.num_features:
            raise ValueError(
                f"{name}={count} must be at least 1 and at most num_features="
                f"{made.num_features}"
            )
        elif name in _IN_RUNS and made.num_features % count:
            raise ValueError(
                f"{name}={count} must divide num_features={made.num_features}"
            )


def init(made: Condenser, width: int, key: Array) -> Params:
    """Random float32 parameters: "conv" [C / n, E, E], "latents" [n, E], and "gate"
    [E, operators] where there is a choice. A convolution begins as the mean of its run,
    and the gate as a draw.
    """
    check(made)
    params = {}
    for number, (name, count) in enumerate(made.counts):
        draw = jax.random.fold_in(key, number)
        if name == "conv":
            run = made.num_features // count
            params["conv"] = jnp.tile(jnp.eye(width)[None] / run, (run, 1, 1))
        elif name == "latents":
            params["latents"] = jax.random.normal(draw, (count, width)) * width**-0.5
    if len(made.counts) > 1:
        draw = jax.random.fold_in(key, len(made.counts))
        gate = jax.random.normal(draw, (width, len(made.counts)))
        params["gate"] = gate * width**-0.5
    return params


def apply(
    made: Condenser,
    params: Params,
    features: Array,  # [B, C, E]
    question: Array,  # [B, N, E]  embeddings of the question's tokens
    noise: Array | None = None,  # float32 [B, operators]  of the gate, in training
) -> tuple[Array, Array]:
    """Vectors [B, size, E], and the first of them that counts, int32 [B].

    A row's operator fills the last slots. What is chosen has its own value, and the
    gate the slope of its soft choice (straight through).
    """
    every = [
        jnp.pad(each, ((0, 0), (made.size - each.shape[1], 0), (0, 0)))
        for each in (
            operator(name, count, params, features) for name, count in made.counts
        )
    ]
    counts = jnp.asarray([count for _, count in made.counts], jnp.int32)
    if len(every) == 1:
        return every[0], jnp.broadcast_to(made.size - counts, features.shape[:1])
    logits = jnp.einsum("bne,eo->bo", question, params["gate"]) / question.shape[1]
    logits = logits.astype(jnp.float32) + (0.0 if noise is None else noise)
    choice = jnp.argmax(logits, -1)
    soft = jax.nn.softmax(logits)
    hard = jax.nn.one_hot(choice, len(every)) + soft - jax.lax.stop_gradient(soft)
    chosen = jnp.einsum("bo,obke->bke", hard.astype(features.dtype), jnp.stack(every))
    return chosen, made.size - counts[choice]


def operator(name: str, count: int, params: Params, features: Array) -> Array:
    """[B, n, E] of features [B, C, E]."""
    batch, size, width = features.shape
    if name == "none":
        return features[:, :0]
    if name == "latents":
        scores = jnp.einsum("ne,bce->bnc", params["latents"], features)
        return jnp.einsum("bnc,bce->bne", jax.nn.softmax(scores, -1), features)
    runs = features.reshape(batch, count, size // count, width)
    if name == "prune":
        return runs[:, :, 0]
    if name == "pool":
        return runs.mean(2)
    return jnp.einsum("bnre,ref->bnf", runs, params["conv"])


def places(made: Condenser) -> tuple[int, ...]:
    """Positions of the slots: evenly over those of the features."""
    size = made.size
    return tuple((2 * i + 1) * made.num_features // (2 * size) for i in range(size))
