"""Masked diffusion: a canvas of open positions, filled in any order."""

from pdecode.knobs import Variant
from pdecode.methods.masked.adablock import adablock
from pdecode.methods.masked.apd import apd
from pdecode.methods.masked.ascending_steps import ascending_steps
from pdecode.methods.masked.assd import assd
from pdecode.methods.masked.audited import audited
from pdecode.methods.masked.bd3lm import bd3lm
from pdecode.methods.masked.certainty_density import certainty_density
from pdecode.methods.masked.credit_decoding import credit_decoding
from pdecode.methods.masked.d2cache import d2cache
from pdecode.methods.masked.d2f import d2f
from pdecode.methods.masked.dimple import dimple
from pdecode.methods.masked.discrete_diffusion_vla import discrete_diffusion_vla
from pdecode.methods.masked.dkv_cache import dkv_cache
from pdecode.methods.masked.dparallel import dparallel
from pdecode.methods.masked.dream import dream
from pdecode.methods.masked.eb_sampler import eb_sampler
from pdecode.methods.masked.eoser import eoser
from pdecode.methods.masked.fast_dllm import fast_dllm
from pdecode.methods.masked.fast_dllm_v2 import fast_dllm_v2
from pdecode.methods.masked.free_cache import free_cache
from pdecode.methods.masked.freedave import freedave
from pdecode.methods.masked.genmol import genmol
from pdecode.methods.masked.guided_diffusion import guided_diffusion
from pdecode.methods.masked.halton import halton
from pdecode.methods.masked.hierarchical import hierarchical
from pdecode.methods.masked.hmar import hmar
from pdecode.methods.masked.iteration_smoothing import iteration_smoothing
from pdecode.methods.masked.klass import klass
from pdecode.methods.masked.latent_refinement import latent_refinement
from pdecode.methods.masked.lavida import lavida
from pdecode.methods.masked.learn2pd import learn2pd
from pdecode.methods.masked.llada import llada
from pdecode.methods.masked.llada2 import llada2
from pdecode.methods.masked.local_leap import local_leap
from pdecode.methods.masked.magnet import magnet
from pdecode.methods.masked.magnet_rescored import magnet_rescored
from pdecode.methods.masked.maskgit import maskgit
from pdecode.methods.masked.mdlm import mdlm
from pdecode.methods.masked.mmm import mmm
from pdecode.methods.masked.pc_sampler import pc_sampler
from pdecode.methods.masked.prophet import prophet
from pdecode.methods.masked.rcr import rcr
from pdecode.methods.masked.recap import recap
from pdecode.methods.masked.refine import refine
from pdecode.methods.masked.remdm import remdm
from pdecode.methods.masked.remdm_llada import remdm_llada
from pdecode.methods.masked.set_block import set_block
from pdecode.methods.masked.uncage import uncage
from pdecode.methods.masked.wino import wino

__all__ = [
    "adablock",
    "apd",
    "ascending_steps",
    "assd",
    "audited",
    "bd3lm",
    "certainty_density",
    "credit_decoding",
    "d2cache",
    "d2f",
    "dimple",
    "discrete_diffusion_vla",
    "dkv_cache",
    "dparallel",
    "dream",
    "eb_sampler",
    "eoser",
    "fast_dllm",
    "fast_dllm_v2",
    "free_cache",
    "freedave",
    "genmol",
    "guided_diffusion",
    "halton",
    "hierarchical",
    "hmar",
    "iteration_smoothing",
    "klass",
    "latent_refinement",
    "lavida",
    "learn2pd",
    "llada",
    "llada2",
    "local_leap",
    "magnet",
    "magnet_rescored",
    "maskgit",
    "mdlm",
    "mmm",
    "pc_sampler",
    "prophet",
    "rcr",
    "recap",
    "refine",
    "remdm",
    "remdm_llada",
    "set_block",
    "uncage",
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
    "dream_confidence_threshold": Variant(
        "dream",
        {"alg": "confidence_threshold", "threshold": 0.9, "block_length": 32},
        "all above 0.9 in the filtered law, in blocks of 32, arXiv:2505.22618",
    ),
    "remdm_conf": Variant(
        "remdm",
        {"variant": "conf"},
        "reopens tokens that were unlikely when committed, arXiv:2503.00307",
    ),
    "set_block_decoding": Variant(
        "eb_sampler",
        {"cache": "dual"},
        "the entropy bound inside the next block, over a cache that is exact for "
        "block-causal models, Gat et al., arXiv:2509.04185",
    ),
    "first_hitting": Variant(
        "llada",
        {"order": "random", "temperature": 1.0},
        "exact any-order sampling, a call a token; no model here reads the hitting "
        "times, so none are drawn, Zheng et al., arXiv:2409.02908",
    ),
    "llada2_threshold": Variant(
        "fast_dllm",
        {"threshold": 0.95, "cache": "dual"},
        "LLaDA 2.0 as published, over its exact cache, Bie et al., arXiv:2512.15745",
    ),
    "md4": Variant(
        "mdlm",
        {"schedule": "cosine"},
        "ancestral sampling on a cosine grid, Shi et al., arXiv:2406.04329",
    ),
    "soft_threshold": Variant(
        "hierarchical",
        {"decoder": "threshold"},
        "a threshold that never asks more than the best confidence, arXiv:2510.08666",
    ),
    "hierarchical_fast": Variant(
        "hierarchical",
        {"decoder": "hierarchical_fast"},
        "one position a step where nothing is likely, arXiv:2510.08666",
    ),
}
