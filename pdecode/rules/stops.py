"""Stops and truncations of one row: when nothing more need be asked, where it ends."""

import jax.numpy as jnp

from pdecode.contracts import Prediction, Read, Row
from pdecode.sampling import among

__all__ = ["clear_gap", "end_of_text"]


def clear_gap(start: int, length: int, steps: int, levels: tuple) -> Read:
    """A stop once the answer's mean gap of its two best logits passes a level.

    The answer is `length` positions from `start` behind the prompt; `levels` are those
    of the first, second and last third of `steps`. No lane of the answer: never.
    """

    def apply(row: Row, prediction: Prediction):
        place = row.positions - row.prompt_end - start
        inside = (place >= 0) & (place < length) & (row.positions < row.end)
        best, second = jnp.moveaxis(prediction.top_log_probs, -1, 0)
        total = jnp.where(inside, best - second, 0).sum()
        progress = row.turn / steps
        level = jnp.where(
            progress < 0.33, levels[0], jnp.where(progress < 0.67, levels[1], levels[2])
        )
        return inside.any() & (total >= level * inside.sum())

    return Read(apply, ("top:2",))


def end_of_text(eos_ids: tuple[int, ...]) -> Read:
    """The end behind an EOS just committed, else behind the likeliest one predicted."""

    def apply(row: Row, prediction: Prediction):
        is_open = row.masked[row.positions]
        is_end = among(prediction.token, eos_ids)
        taken = row.open & ~is_open & is_end
        said = (row.open | is_open) & is_end
        score = jnp.where(said, prediction.log_prob, -jnp.inf)
        lane = jnp.where(taken.any(), jnp.argmax(taken), jnp.argmax(score))
        return jnp.where(said.any(), row.positions[lane] + 1, row.end)

    return Read(apply)
