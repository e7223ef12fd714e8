"""Jakiro: a draft layer of two experts grows a tree, the last two levels in one call.

Huang et al., 2025, arXiv:2502.06282. The tree is EAGLE-2's (arXiv:2406.16858), with the
paper's sizes; `train.objectives.jakiro` trains the layer.
"""

from pdecode.contracts import Decoder, DraftLayer, Sampling
from pdecode.drafters import features
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP


def jakiro(
    model: NextModel,
    layer: DraftLayer,
    *,
    max_new_tokens: Count,
    num_nodes: Count = 62,
    width: Count = 8,
    max_depth: Count = 6,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """The `num_nodes` likeliest nodes that a beam of `width` finds, level by level.

    The last level's candidates are what the layer's second guess said a call earlier,
    the same below all children of a node. ValueError for a layer without one.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + num_nodes query tokens a call; max_depth - 1 calls of the layer.
    """
    drafter = features.grown_tree(
        model, layer, num_nodes, width=width, max_depth=max_depth, is_last_ahead=True
    )
    return speculative.draft_verify(
        model,
        drafter,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
    )
