"""Every method, one import a line. A method is a function: models in, Decoder out."""

from pdecode.methods.jacobi.jacobi import jacobi
from pdecode.methods.jacobi.sjd import sjd
from pdecode.methods.masked.dream import dream
from pdecode.methods.masked.eb_sampler import eb_sampler
from pdecode.methods.masked.fast_dllm import fast_dllm
from pdecode.methods.masked.llada import llada
from pdecode.methods.masked.maskgit import maskgit
from pdecode.methods.masked.mdlm import mdlm
from pdecode.methods.masked.remdm import remdm
from pdecode.methods.speculative.autoregressive import autoregressive
from pdecode.methods.speculative.block_verification import block_verification
from pdecode.methods.speculative.blockwise import blockwise
from pdecode.methods.speculative.prompt_lookup import prompt_lookup
from pdecode.methods.speculative.specinfer import specinfer
from pdecode.methods.speculative.speculative_sampling import speculative_sampling
from pdecode.methods.uniform.diffusion_gemma import diffusion_gemma
from pdecode.methods.visual.any_order import any_order

__all__ = [
    "any_order",
    "autoregressive",
    "block_verification",
    "blockwise",
    "diffusion_gemma",
    "dream",
    "eb_sampler",
    "fast_dllm",
    "jacobi",
    "llada",
    "maskgit",
    "mdlm",
    "prompt_lookup",
    "remdm",
    "sjd",
    "specinfer",
    "speculative_sampling",
]
