"""Draft and verify: a drafter proposes, one call of the target judges."""

from pdecode.knobs import Variant
from pdecode.methods.speculative.alignment_sampling import alignment_sampling
from pdecode.methods.speculative.autoregressive import autoregressive
from pdecode.methods.speculative.block_verification import block_verification
from pdecode.methods.speculative.blockwise import blockwise
from pdecode.methods.speculative.prompt_lookup import prompt_lookup
from pdecode.methods.speculative.rest import rest
from pdecode.methods.speculative.sam_decoding import sam_decoding
from pdecode.methods.speculative.specinfer import specinfer
from pdecode.methods.speculative.specreason import specreason
from pdecode.methods.speculative.speculative_sampling import speculative_sampling
from pdecode.methods.speculative.stand import stand
from pdecode.methods.speculative.token_recycling import token_recycling

__all__ = [
    "alignment_sampling",
    "autoregressive",
    "block_verification",
    "blockwise",
    "prompt_lookup",
    "rest",
    "sam_decoding",
    "specinfer",
    "specreason",
    "speculative_sampling",
    "stand",
    "token_recycling",
]

VARIANTS = {
    "coupled_sampling": Variant(
        "speculative_sampling",
        {"acceptance": "coupled"},
        "drafter-invariant speculative sampling, Daliri et al., arXiv:2408.07978",
    ),
    "pld_original": Variant(
        "prompt_lookup",
        {"continuation": "whole"},
        "prompt lookup that searches on until the whole draft follows, Saxena, 2023",
    ),
    "recursive_rejection": Variant(
        "specinfer",
        {"draws": "without_replacement", "branching": (3, 1, 1)},
        "siblings drawn without replacement, Jeon et al., arXiv:2402.14160",
    ),
    "relaxed_blockwise": Variant(
        "blockwise",
        {"match_top": 2},
        "a token passes if it is among the target's best two, arXiv:1811.03115",
    ),
}
