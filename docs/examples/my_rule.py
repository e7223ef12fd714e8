"""A commit rule of one's own: fill what is calm, and always the surest.

pdecode check docs/examples/my_rule.py:calm --set nats=0.8
pdecode check docs/examples/my_rule.py:eager --set level=0.6
"""

import jax.numpy as jnp

from pdecode import commit


def calm(nats: float):
    """Every position that carries less than `nats` of entropy: blind to the draw."""

    def apply(key, row, prediction):
        quiet = row.open & (prediction.entropy <= nats)
        return quiet | commit.best(-prediction.entropy, row.open, 1)

    return commit.stateless(apply, wants=("entropy",))


def eager(level: float):
    """Every position whose drawn token has probability `level`: biased, see check."""

    def apply(key, row, prediction):
        sure = row.open & (jnp.exp(prediction.log_prob) >= level)
        return sure | commit.best(prediction.log_prob, row.open, 1)

    return commit.stateless(apply)


if __name__ == "__main__":
    import pdecode

    print(pdecode.check(calm, nats=0.8))
    print(pdecode.check(eager, level=0.6))
