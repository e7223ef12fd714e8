"""Masked diffusion: a canvas of open positions, filled in any order."""

from pdecode.knobs import Variant
from pdecode.methods.masked.bd3lm import bd3lm
from pdecode.methods.masked.d2f import d2f
from pdecode.methods.masked.discrete_diffusion_vla import discrete_diffusion_vla
from pdecode.methods.masked.dkv_cache import dkv_cache
from pdecode.methods.masked.dream import dream
from pdecode.methods.masked.eb_sampler import eb_sampler
from pdecode.methods.masked.fast_dllm import fast_dllm
from pdecode.methods.masked.fast_dllm_v2 import fast_dllm_v2
from pdecode.methods.masked.freedave import freedave
from pdecode.methods.masked.genmol import genmol
from pdecode.methods.masked.hmar import hmar
from pdecode.methods.masked.llada import llada
from pdecode.methods.masked.llada2 import llada2
from pdecode.methods.masked.maskgit import maskgit
from pdecode.methods.masked.mdlm import mdlm
from pdecode.methods.masked.mmm import mmm
from pdecode.methods.masked.rcr import rcr
from pdecode.methods.masked.refine import refine
from pdecode.methods.masked.remdm import remdm
from pdecode.methods.masked.remdm_llada import remdm_llada
from pdecode.methods.masked.wino import wino

__all__ = [
    "bd3lm",
    "d2f",
    "discrete_diffusion_vla",
    "dkv_cache",
    "dream",
    "eb_sampler",
    "fast_dllm",
    "fast_dllm_v2",
    "freedave",
    "genmol",
    "hmar",
    "llada",
    "llada2",
    "maskgit",
    "mdlm",
    "mmm",
    "rcr",
    "refine",
    "remdm",
    "remdm_llada",
    "wino",
]

VARIANTS = {
    "semi_autoregressive": Variant(
        "llada",
        {"block_length": 32},
        "LLaDA block by block, Nie et al., arXiv:2502.09992",
    ),
    "fast_dllm_threshold": Variant(
        "fast_dllm",
        {"threshold": 0.9},
        "confidence above 0.9, no cache, Wu et al., arXiv:2505.22618",
    ),
    "fast_dllm_prefix": Variant(
        "fast_dllm",
        {"threshold": 0.9, "cache": "prefix"},
        "threshold 0.9, cache of what lies before the block",
    ),
    "fast_dllm_dual": Variant(
        "fast_dllm",
        {"threshold": 0.9, "cache": "dual"},
        "threshold 0.9, cache of all that lies outside the block",
    ),
    "fast_dllm_factor": Variant(
        "fast_dllm",
        {"factor": 1.0, "cache": "dual"},
        "the factor rule in place of the threshold, dual cache",
    ),
    "dream_entropy": Variant(
        "dream",
        {"alg": "entropy"},
        "lowest entropy first, Ye et al., arXiv:2508.15487",
    ),
    "d3llm": Variant(
        "d2f",
        {
            "rule": "entropy",
            "threshold": 0.5,
            "block_add_threshold": 0.5,
            "decoded_token_threshold": 0.5,
            "forced": "first",
        },
        "low entropy in several blocks, only the first one forced, arXiv:2601.07568",
    ),
    "remdm_conf": Variant(
        "remdm",
        {"variant": "conf"},
        "reopens tokens that were unlikely when committed, arXiv:2503.00307",
    ),
}
