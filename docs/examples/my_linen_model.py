"""Flax modules behind the `Model` record: linen with a cache, nnx without one."""

import jax
import jax.numpy as jnp
from flax import linen, nnx

import pdecode
from pdecode import cache, models

VOCAB, WIDTH, HEADS = 11, 16, 2


class Net(linen.Module):
    """One attention layer that keeps keys and values of what it was told to store."""

    @linen.compact
    def __call__(self, tokens, positions, mask, slots, kept):
        batch, size = tokens.shape
        wave = positions[..., None] / 10.0 ** jnp.linspace(0, 2, WIDTH)[None, None]
        x = linen.Embed(VOCAB, WIDTH)(tokens) + jnp.sin(wave)

        def heads(name):
            made = linen.Dense(WIDTH, name=name)(x)
            return made.reshape(batch, size, HEADS, -1).swapaxes(1, 2)

        q, k, v = heads("q"), heads("k"), heads("v")  # [B, H, Q, D]
        kept = {
            "k": cache.write(kept["k"], slots, k),
            "v": cache.write(kept["v"], slots, v),
        }
        keys = jnp.concatenate([kept["k"], k], 2)  # the cache, then the lanes
        values = jnp.concatenate([kept["v"], v], 2)
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, keys) / keys.shape[-1] ** 0.5
        share = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e9))
        seen = (share @ values).swapaxes(1, 2).reshape(batch, size, WIDTH)
        return linen.Dense(VOCAB)(x + linen.Dense(WIDTH)(seen)), kept


def init_cache(batch: int, num_slots: int):
    """Empty keys and values [B, H, S, D]."""
    blank = jnp.zeros((batch, HEADS, num_slots, WIDTH // HEADS))
    return {"k": blank, "v": blank}


net = Net()
model = models.from_apply(
    net.apply, vocab_size=VOCAB, init_cache=init_cache, name="linen"
)


def init(key):
    """Untrained parameters."""
    lanes = jnp.zeros((1, 1), jnp.int32)
    mask = jnp.ones((1, 1, 2), bool)
    return net.init(key, lanes, lanes, mask, lanes, init_cache(1, 1))


class Small(nnx.Module):
    """Reads tokens only, and sees nothing but the token itself and its mean past."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, VOCAB, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        count = jnp.arange(1, x.shape[1] + 1)[None, :, None]
        return self.out(x + jnp.cumsum(x, 1) / count)


graph, small_params = nnx.split(Small(nnx.Rngs(0)))
small = models.from_apply(
    lambda params, tokens: nnx.merge(graph, params)(tokens),
    vocab_size=VOCAB,
    name="nnx",
)


if __name__ == "__main__":
    print(pdecode.check(model, init(jax.random.key(0))))
    print(pdecode.check(small, small_params))
