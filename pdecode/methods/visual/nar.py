"""NAR: diagonals of an image, each place from its left and its upper neighbour.

Neighboring autoregressive modeling: He et al., 2025. The model's own head predicts the
place to the right, the first of `heads` the place below, and where both neighbours are
there their logits are averaged. A token sees all that is as near to the corner as
itself, or nearer. Deviation: the head for the place below is a small network on the
last hidden state, not more layers of its own.
"""

import jax.numpy as jnp

from pdecode.contracts import Decoder, DraftHeads, Sampling
from pdecode.families import wavefront
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP


def nar(
    model: NextModel,
    heads: DraftHeads,
    *,
    max_new_tokens: Count,
    row_length: Count,
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """One antidiagonal a call; the corner is the mean of both heads on the prompt.

    Guarantee: lossy; the tokens of a diagonal are drawn independently, from a law of
    the model's own.
    Cost: H + W - 1 calls for H rows of W tokens, of the diagonal before.
    """
    if heads.past is not None:
        raise ValueError(
            f"nar reads the model's own states, but {heads.name} have a layer before "
            "them: take heads without one"
        )
    tables, left, above = wavefront.diagonals(max_new_tokens, row_length)

    def read(params, hidden, turn):
        if model.head(params["model"]).soft_cap is not None:
            raise ValueError(
                f"nar takes the mean of hidden states, but {model.name} caps its logits"
            )
        turn = jnp.minimum(turn, len(left) - 1)
        batch, lanes, width = hidden.shape
        below = heads.apply(params["heads"], hidden.reshape(-1, width))[:, 0]
        below = below.reshape(batch, lanes, width)

        def taken(states, table):
            lane = jnp.asarray(table)[turn]
            found = jnp.take_along_axis(states, jnp.maximum(lane, 0)[..., None], 1)
            return jnp.where((lane >= 0)[..., None], found, 0), lane >= 0

        # Of a linear head the mean of logits is that of hidden states.
        right, has_left = taken(hidden, left)
        under, has_above = taken(below, above)
        count = jnp.maximum(1, has_left.astype(jnp.int32) + has_above)
        return ((right + under) / count[..., None]).astype(hidden.dtype)

    return wavefront.of_tables(
        model,
        tables,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        read=read,
        is_causal=False,
    )
