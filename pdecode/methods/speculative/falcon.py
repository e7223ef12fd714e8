"""Falcon: a semi-autoregressive draft layer says several levels of a tree in a call.

Gao et al., 2024, arXiv:2412.12639. The authors' tree is for a model of 7B; here
`branching` says it. `train.objectives.falcon` trains the layer.
"""

from typing import Annotated

from pdecode import trees
from pdecode.contracts import BlockLayer, Decoder, Sampling
from pdecode.drafters import blocks
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Size, Temperature, TopK, TopP


def falcon(
    model: NextModel,
    block_layer: BlockLayer,
    *,
    max_new_tokens: Count,
    branching: Annotated[tuple[int, ...], Size()] = (4, 2, 2, 1),
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A tree whose levels come in blocks of K, the layer's `block_len`, a call each.

    Every node of depth d has branching[d] children.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + number of nodes query tokens a call; a call of the layer for K levels.
    """
    return speculative.draft_verify(
        model,
        blocks.static_tree(model, block_layer, trees.expand(branching)),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
    )
