"""Draft and verify: a drafter proposes, one call of the target judges."""

from pdecode.knobs import Variant
from pdecode.methods.speculative.aded import aded
from pdecode.methods.speculative.aggressive_decoding import aggressive_decoding
from pdecode.methods.speculative.alignment_sampling import alignment_sampling
from pdecode.methods.speculative.autoregressive import autoregressive
from pdecode.methods.speculative.bild import bild
from pdecode.methods.speculative.block_verification import block_verification
from pdecode.methods.speculative.blockwise import blockwise
from pdecode.methods.speculative.cascade import cascade
from pdecode.methods.speculative.conditional_verification import (
    conditional_verification,
)
from pdecode.methods.speculative.dynamic_tree import dynamic_tree
from pdecode.methods.speculative.eagle import eagle
from pdecode.methods.speculative.eagle2 import eagle2
from pdecode.methods.speculative.easy_spec import easy_spec
from pdecode.methods.speculative.falcon import falcon
from pdecode.methods.speculative.fastcoder import fastcoder
from pdecode.methods.speculative.flash import flash
from pdecode.methods.speculative.hidden_transfer import hidden_transfer
from pdecode.methods.speculative.hydra import hydra
from pdecode.methods.speculative.jakiro import jakiro
from pdecode.methods.speculative.judge_decoding import judge_decoding
from pdecode.methods.speculative.lantern import lantern
from pdecode.methods.speculative.lud import lud
from pdecode.methods.speculative.medusa import medusa
from pdecode.methods.speculative.mtp import mtp
from pdecode.methods.speculative.opt_tree import opt_tree
from pdecode.methods.speculative.ouroboros import ouroboros
from pdecode.methods.speculative.pcg import pcg
from pdecode.methods.speculative.pearl import pearl
from pdecode.methods.speculative.ppd import ppd
from pdecode.methods.speculative.prompt_lookup import prompt_lookup
from pdecode.methods.speculative.quantspec import quantspec
from pdecode.methods.speculative.rest import rest
from pdecode.methods.speculative.s2d import s2d
from pdecode.methods.speculative.sam_decoding import sam_decoding
from pdecode.methods.speculative.sequoia import sequoia
from pdecode.methods.speculative.slem import slem
from pdecode.methods.speculative.slrs import slrs
from pdecode.methods.speculative.space import space
from pdecode.methods.speculative.spec_dec import spec_dec
from pdecode.methods.speculative.spec_pv import spec_pv
from pdecode.methods.speculative.specinfer import specinfer
from pdecode.methods.speculative.specreason import specreason
from pdecode.methods.speculative.spectr import spectr
from pdecode.methods.speculative.speculative_sampling import speculative_sampling
from pdecode.methods.speculative.stand import stand
from pdecode.methods.speculative.token_recycling import token_recycling
from pdecode.methods.speculative.traversal_verification import traversal_verification
from pdecode.methods.speculative.typical_acceptance import typical_acceptance

__all__ = [
    "aded",
    "aggressive_decoding",
    "alignment_sampling",
    "autoregressive",
    "bild",
    "block_verification",
    "blockwise",
    "cascade",
    "conditional_verification",
    "dynamic_tree",
    "eagle",
    "eagle2",
    "easy_spec",
    "falcon",
    "fastcoder",
    "flash",
    "hidden_transfer",
    "hydra",
    "jakiro",
    "judge_decoding",
    "lantern",
    "lud",
    "medusa",
    "mtp",
    "opt_tree",
    "ouroboros",
    "pcg",
    "pearl",
    "ppd",
    "prompt_lookup",
    "quantspec",
    "rest",
    "s2d",
    "sam_decoding",
    "sequoia",
    "slem",
    "slrs",
    "space",
    "spec_dec",
    "spec_pv",
    "specinfer",
    "specreason",
    "spectr",
    "speculative_sampling",
    "stand",
    "token_recycling",
    "traversal_verification",
    "typical_acceptance",
]

VARIANTS = {
    "amphista": Variant(
        "medusa",
        {},
        "Medusa's tree of heads that see each other and two stages of adapted states, "
        "arXiv:2406.13170",
    ),
    "auto_lookup": Variant(
        "prompt_lookup",
        {"draft_length": "auto"},
        "prompt lookup, each draft as long as it is worth by measured costs of calls",
    ),
    "auto_speculation": Variant(
        "speculative_sampling",
        {"draft_length": "auto"},
        "speculative sampling, each draft as long as it is worth by measured costs",
    ),
    "clover": Variant(
        "hydra",
        {"branching": (4, 2, 1, 1)},
        "heads with a regressive gate behind an augmenting block, arXiv:2405.00263",
    ),
    "coupled_sampling": Variant(
        "speculative_sampling",
        {"acceptance": "coupled"},
        "drafter-invariant speculative sampling, Daliri et al., arXiv:2408.07978",
    ),
    "dream_vlm": Variant(
        "eagle2",
        {},
        "EAGLE-2's tree of layers that look at features across, arXiv:2505.19201",
    ),
    "eagle3": Variant(
        "eagle2",
        {"max_depth": 8},
        "EAGLE-2's tree of a layer that reads several of the target's, "
        "arXiv:2503.01840",
    ),
    "greedy_multi_draft": Variant(
        "specinfer",
        {"draws": "greedy", "branching": (4, 2, 1)},
        "the best but one as given and one drawn from the rest, arXiv:2502.18779",
    ),
    "hyper_bagel": Variant(
        "eagle2",
        {"max_depth": 8},
        "EAGLE-3's layer whose further taps came in through zeros, arXiv:2509.18824",
    ),
    "lantern_plus": Variant(
        "lantern",
        {"lantern_lambda": 2.0, "branching": (4, 2, 2, 1)},
        "LANTERN++: mass added in proportion to the candidate's own, arXiv:2502.06352",
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
    "spec_vlm": Variant(
        "eagle2",
        {},
        "EAGLE-2's tree of a layer that condenses the image it reads, arXiv:2509.11815",
    ),
}
