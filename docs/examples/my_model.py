"""A network of one's own in ten lines: any function of tokens, positions and a mask."""

import jax
import jax.numpy as jnp

import pdecode
from pdecode import models, prompts

VOCAB, WIDTH = 11, 16


def init(key):
    """One layer of attention, untrained."""
    keys = jax.random.split(key, 5)
    shapes = {"embed": (VOCAB, WIDTH), "q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH),
              "v": (WIDTH, WIDTH), "out": (WIDTH, VOCAB)}  # fmt: skip
    return {
        name: jax.random.normal(each, shape) * 0.5
        for each, (name, shape) in zip(keys, shapes.items())
    }


def apply(params, tokens, positions, mask):
    """logits [B, K, V]; lane i sees lane j where mask[b, i, j]."""
    wave = positions[..., None] / 10.0 ** jnp.linspace(0, 2, WIDTH)[None, None]
    x = params["embed"][tokens] + jnp.sin(wave)
    q, k, v = (x @ params[name] for name in "qkv")
    scores = jnp.where(mask, jnp.einsum("bqe,bke->bqk", q, k) / WIDTH**0.5, -1e9)
    return (x + jax.nn.softmax(scores) @ v) @ params["out"]


# Nothing is cached: each call computes again all that it sees.
model = models.from_apply(apply, vocab_size=VOCAB, name="mine")


if __name__ == "__main__":
    params = init(jax.random.key(0))
    print(pdecode.check(model, params))
    prompt = prompts.from_rows([[1, 2, 3], [4]], max_new_tokens=12)
    generation, stats = pdecode.run(
        pdecode.methods.prompt_lookup, model, params, prompt, jax.random.key(0),
        max_new_tokens=12, num_draft=3,
    )  # fmt: skip
    print(generation.tokens, stats.num_calls)
