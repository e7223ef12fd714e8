"""AdaBlock: a block ends where the model would write a delimiter.

Lu et al., 2025, arXiv:2509.26432. When a block begins, the most confident delimiter
predicted in the near quarter of the generation ends it, if it is confident enough;
otherwise the block has its default length.
"""

from typing import Annotated

import jax.numpy as jnp

from pdecode.contracts import Decoder, Row, Rule, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Size, Temperature
from pdecode.rules import commit
from pdecode.sampling import among


def adablock(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    delimiter_ids: Annotated[tuple[int, ...], Size(0)],
    block_length: Count = 32,
    threshold: Annotated[float, Knob(0, 1)] = 0.9,
    delimiter_threshold: Annotated[float, Knob(0, 2)] = 0.3,
    temperature: Temperature = 0.0,
) -> Decoder:
    """Threshold commits in blocks that end at predicted delimiters, such as newlines.

    The authors use delimiter_threshold 0.3 for LLaDA and 0.5 for Dream; above 1 all
    blocks have `block_length` positions.
    Guarantee: lossy, in `threshold`; the blocks change the order only.
    Cost: between one call a block and one a token, of the whole canvas.
    """
    if model.attention == "block_causal":
        raise ValueError(
            f"{model.name} attends by blocks of its own, so adablock cannot choose "
            "them: use fast_dllm"
        )
    return masked.masked_diffusion(
        model,
        up_to_delimiter(
            commit.threshold(threshold), delimiter_ids, block_length,
            max(max_new_tokens // 4, 1), delimiter_threshold,
        ),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
    )  # fmt: skip


def up_to_delimiter(
    rule: Rule, delimiter_ids: tuple[int, ...], block_length: int, ahead: int, level
) -> Rule:
    """`rule` on the open positions of a block that it ends itself.

    Memory: the block's end, int32 [], and that of `rule`.
    """

    def apply(params, key, row: Row, prediction, memory):
        end, inner = memory
        first = jnp.where(row.open, row.positions, row.tokens.shape[0]).min()
        near = row.open & (row.positions < first + ahead)
        near &= among(prediction.token, delimiter_ids)
        score = jnp.where(near, jnp.exp(prediction.log_prob), -1.0)
        at = jnp.argmax(score)
        new = jnp.where(score[at] >= level, row.positions[at] + 1, first + block_length)
        end = jnp.where(first < end, end, jnp.minimum(new, row.end))
        inside = row._replace(open=row.open & (row.positions < end))
        chosen, inner = rule.apply(params, key, inside, prediction, inner)
        return chosen, (end.astype(jnp.int32), inner)

    def init(length: int):
        return jnp.zeros((), jnp.int32), rule.init(length)

    return rule._replace(init=init, apply=apply, is_exact=False)
