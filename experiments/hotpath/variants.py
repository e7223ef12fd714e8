"""What a call costs on this CPU under each way of holding the weights.

    python experiments/hotpath/variants.py [--sizes 3m,30m,130m] [--out variants.json]

A llama-shaped stack (norm, attention over a cache, SwiGLU, head), float32 activations,
repeated in one compiled loop in which each call's tokens come from the one before.
Variants: kernels stored [in, out] or [out, in], the projections of one input fused into
one matmul or not, weights in float32, bfloat16 or int8 with one scale a column, lanes
padded to a multiple of 8, contractions cut in two halves that add up (what the models
here do for a single query). `XLA_FLAGS` and `taskset` give the thread settings.
"""

import argparse
import functools
import itertools
import json
import statistics
import time

import jax
import jax.numpy as jnp

from pdecode.contracts import Visibility
from pdecode.kernels.attention.api import attention

# name: vocabulary, width, layers, heads, MLP width
SIZES = {
    "3m": (1024, 192, 7, 3, 512),
    "30m": (8192, 512, 8, 8, 1536),
    "130m": (32000, 768, 15, 12, 2048),
}
SLOTS, HEAD_DIM = 256, 64


def weights(size, layout, is_fused, kind, key):
    """Random weights {name: array} a layer, and the head."""
    vocab, width, num_layers, heads, inner = SIZES[size]
    wide = heads * HEAD_DIM
    shapes = (
        {"qkv": (width, 3 * wide), "gate_up": (width, 2 * inner)}
        if is_fused
        else {
            **{name: (width, wide) for name in ("q", "k", "v")},
            **{name: (width, inner) for name in ("gate", "up")},
        }
    )
    shapes |= {"out": (wide, width), "down": (inner, width)}

    def draw(key, shape):
        value = jax.random.normal(key, shape) * shape[0] ** -0.5
        value = value.T if layout == "nk" else value
        if kind == "int8":
            scale = jnp.abs(value).max() / 127
            return (value / scale).round().astype(jnp.int8), scale
        return value.astype(kind)

    keys = iter(jax.random.split(key, 1 + num_layers * len(shapes)))
    layers = [
        {name: draw(next(keys), shape) for name, shape in shapes.items()}
        for _ in range(num_layers)
    ]
    return layers, jax.random.normal(next(keys), (vocab, width)) * width**-0.5


def program(size, layout, is_fused, kind, num_queries, count, pad, halves):
    _, _, num_layers, heads, _ = SIZES[size]
    lanes = -(-num_queries // 8) * 8 if pad else num_queries

    def times(x, weight):
        if halves:
            rows = x.reshape(-1, 2, weight.shape[0] // 2)
            parts = weight.reshape(2, -1, weight.shape[1])
            out = jnp.einsum("qhk,hkn->hqn", rows, parts).sum(0)
            return out.reshape(*x.shape[:-1], -1)
        axis = 1 if layout == "nk" else 0
        dims = (((x.ndim - 1,), (axis,)), ((), ()))
        if kind == "int8":
            value, scale = weight
            return scale * jax.lax.dot_general(x, value.astype(x.dtype), dims)
        if kind == "bfloat16":
            return jax.lax.dot_general(
                x.astype(kind), weight, dims, preferred_element_type=jnp.float32
            )
        return jax.lax.dot_general(x, weight, dims)

    def norm(x):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    place = SLOTS - lanes + jnp.arange(lanes, dtype=jnp.int32)[None]
    visible = Visibility(jnp.zeros_like(place), place + 1)

    def call(_, carry, layers, embed):
        tokens, cache = carry
        x, after = embed[tokens], []
        for layer, (keys, values) in zip(layers, cache):
            y = norm(x)
            if is_fused:
                q, k, v = jnp.split(times(y, layer["qkv"]), 3, -1)
            else:
                q, k, v = (times(y, layer[name]) for name in "qkv")
            q, k, v = (each.reshape(1, lanes, heads, HEAD_DIM) for each in (q, k, v))
            keys = keys.at[:, :, place[0]].set(k.swapaxes(1, 2))
            values = values.at[:, :, place[0]].set(v.swapaxes(1, 2))
            out = attention(q, keys, values, visible, scale=HEAD_DIM**-0.5)
            x = x + times(out.reshape(1, lanes, -1), layer["out"])
            y = norm(x)
            if is_fused:
                gate, up = jnp.split(times(y, layer["gate_up"]), 2, -1)
            else:
                gate, up = times(y, layer["gate"]), times(y, layer["up"])
            x = x + times(jax.nn.silu(gate) * up, layer["down"])
            after.append((keys, values))
        logits = jnp.einsum("bqe,ve->bqv", norm(x), embed)
        return jnp.argmax(logits, -1), after

    @jax.jit
    def run(layers, embed, cache):
        tokens = jnp.zeros((1, lanes), jnp.int32)
        step = functools.partial(call, layers=layers, embed=embed)
        return jax.lax.fori_loop(0, count, step, (tokens, cache))[0]

    shape = (1, heads, SLOTS, HEAD_DIM)
    cache = [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(num_layers)]
    return run, cache


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default="3m,30m,130m")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out")
    args = parser.parse_args()
    found = []
    print("size  layout fused weights   pad   halves  1 query ms  8 queries ms  ratio")
    for size in args.sizes.split(","):
        count = {"3m": 64, "30m": 16, "130m": 4}[size]
        for layout, is_fused, kind, pad, halves in itertools.product(
            ("kn", "nk"), (False, True), ("float32", "bfloat16", "int8"),
            (False, True), (False, True),
        ):  # fmt: skip
            if pad and (kind != "float32" or is_fused):
                continue
            if halves and (kind != "float32" or layout == "nk" or pad):
                continue
            held = weights(size, layout, is_fused, kind, jax.random.key(0))
            ms = []
            for num_queries in (1, 8):
                if pad and num_queries == 8:
                    ms.append(ms[0])
                    continue
                run, cache = program(
                    size, layout, is_fused, kind, num_queries, count, pad, halves
                )
                jax.block_until_ready(run(*held, cache))
                spent = []
                for _ in range(args.repeats):
                    began = time.perf_counter()
                    jax.block_until_ready(run(*held, cache))
                    spent.append(1e3 * (time.perf_counter() - began) / count)
                ms.append(statistics.median(spent))
            found.append(
                {"size": size, "layout": layout, "fused": is_fused, "weights": kind,
                 "padded": pad, "halves": halves, "one_ms": ms[0], "eight_ms": ms[1]}
            )  # fmt: skip
            print(
                f"{size:5} {layout:6} {is_fused!s:5} {kind:8} {pad!s:6} {halves!s:6} "
                f"{ms[0]:10.3f}  {ms[1]:12.3f}  {ms[1] / ms[0]:5.2f}",
                flush=True,
            )
    if args.out:
        with open(args.out, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
