"""Tokens that a causal model draws as a function of noise, with the noise's name.

    python -m pdecode.train.noise_pairs configs/digits_one_step.py digits_raster

writes train.npy, validation.npy and heldout.npy to the config's `data_dir`: the pairs
that `objective="distilled_decoding"` learns from (Liu et al., 2024, arXiv:2412.17153).
The teacher goes left to right; at each position the flow of `rules.flows` carries that
position's noise to a code of its law, so that the tokens have the teacher's joint law,
over codes alone, and are a function of the noise.
"""

import argparse
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import prompts
from pdecode.contracts import Model, Params, Query, SlotRun, Visibility
from pdecode.data import packing
from pdecode.kernels.head import dense
from pdecode.models import digits, embedded
from pdecode.rules import flows
from pdecode.train import settings
from pdecode.train.objectives.distilled_decoding import (
    NAME_BASE,
    NAME_LENGTH,
    named_noise,
)

_BATCH = 512


@functools.partial(jax.jit, static_argnums=0)
def drawn(
    model: Model, params: Params, firsts: Array, noise: Array, codes: Array
) -> Array:
    """int32 [B, N]: what `model` draws of `noise` [B, N, D] behind `firsts` int32 [B].

    Codes [K, D] are those of the first K tokens; no other token is drawn.
    """
    batch, length, _ = noise.shape
    prompt = prompts.Prompt(
        firsts[:, None],
        jnp.ones(batch, jnp.int32),
        jnp.arange(batch, dtype=jnp.int32),
        jnp.full(batch, length, jnp.int32),
    )

    def turn(carry, now):
        tokens, cache = carry
        place, own = now
        place = jnp.full(batch, place, jnp.int32)
        visible = Visibility(jnp.zeros((batch, 1), jnp.int32), 1 + place[:, None])
        query = Query(tokens[:, None], place[:, None], SlotRun(place), visible)
        output, cache = model.apply(params, query, cache)
        raw = dense.logits(model.head(params), output.hidden[:, 0])
        law = jax.nn.log_softmax(raw[:, : len(codes)])
        tokens = flows.code_of(own, law, codes)
        return (tokens, cache), tokens

    carry = firsts, model.init_cache(prompt, length + 1)
    steps = jnp.arange(length), noise.swapaxes(0, 1)
    return jax.lax.scan(turn, carry, steps)[1].T


def collect(
    model: Model, params: Params, codes: Array, firsts: np.ndarray, length: int,
    begin: int,
) -> np.ndarray:  # fmt: skip
    """uint16 [R, 1 + length + NAME_LENGTH] of first tokens int [R]: the records.

    Their noise is named `begin`, `begin` + 1, ... ValueError for names too large.
    """
    names = begin + np.arange(len(firsts))
    if len(names) and names[-1] >= NAME_BASE**NAME_LENGTH:
        raise ValueError(
            f"name {names[-1]} has more than {NAME_LENGTH} digits: make at most "
            f"{NAME_BASE**NAME_LENGTH} records"
        )
    spelled = names[:, None] // NAME_BASE ** np.arange(NAME_LENGTH) % NAME_BASE
    blank = np.zeros((len(names), length), int)
    rows = np.concatenate([firsts[:, None], blank, spelled], 1).astype(np.int32)
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        # One shape for all batches.
        some = jnp.asarray(np.resize(part, (_BATCH, part.shape[1])))
        own = named_noise(some, codes.shape[1])
        made = drawn(model, params, some[:, 0], own, codes)
        part[:, 1 : 1 + length] = made[: len(part)]
    return rows.astype(np.uint16)


def main(arguments: list[str]) -> None:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("config", help="of digits, with the objective distilled_decoding")
    made.add_argument("teacher", help="an embedded model, or a run's folder")
    made.add_argument("--rows", type=int, default=65_536)
    args = made.parse_args(arguments)
    config = settings.load(args.config)
    if config.objective != "distilled_decoding" or config.data_dir is None:
        raise ValueError(f"{args.config} learns from no pairs in a data_dir")
    model, params, _ = embedded.load(args.teacher)
    if not isinstance(model, Model) or model.predicts != "next":
        raise ValueError(f"{args.teacher} is no causal model: pairs are made by one")
    codes = jnp.asarray(config.options.codes, jnp.float32)
    streams, begin = {}, 0
    few = max(args.rows // 32, 1)
    for split, count in {"train": args.rows, "validation": few, "heldout": few}.items():
        classes = digits.FIRST_CLASS + np.arange(count) % digits.NUM_CLASSES
        length = digits.SIDE**2
        found = collect(model, params, codes, classes, length, begin)
        streams[split], begin = found.ravel(), begin + count
        print(f"{split}: {count} records of {found.shape[1]} tokens")
    packing.save_splits(config.data_dir, **streams)


if __name__ == "__main__":
    main(sys.argv[1:])
