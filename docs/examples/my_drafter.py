"""A drafter of one's own: the last token again and again.

pdecode check docs/examples/my_drafter.py:stutter --set length=2
"""

import jax.numpy as jnp

from pdecode.contracts import Draft, Drafter
from pdecode.drafters import ignore


def stutter(length: int):
    """Proposes `length` copies; whatever it proposes never changes the output."""

    def init(params, keys, prompt, prefix, output):
        return ()

    def propose(params, keys, state, prefix):
        root = jnp.take_along_axis(prefix.tokens, prefix.length[:, None] - 1, 1)
        tokens = jnp.broadcast_to(root, (root.shape[0], length))
        parents = jnp.broadcast_to(jnp.arange(-1, length - 1), tokens.shape)
        return Draft(tokens=tokens, parents=parents), state

    return Drafter(length, length, init, propose, observe=ignore)


if __name__ == "__main__":
    import pdecode

    print(pdecode.check(stutter, length=2))
