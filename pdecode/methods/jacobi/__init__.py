"""Fixed-point iteration."""

from pdecode.knobs import Variant
from pdecode.methods.jacobi.early_exit import early_exit
from pdecode.methods.jacobi.gsd import gsd
from pdecode.methods.jacobi.gsd_codebook import gsd_codebook
from pdecode.methods.jacobi.gsd_partition import gsd_partition
from pdecode.methods.jacobi.jacobi import jacobi
from pdecode.methods.jacobi.lookahead import lookahead
from pdecode.methods.jacobi.sjd import sjd
from pdecode.methods.jacobi.sjd2 import sjd2

__all__ = [
    "early_exit",
    "gsd",
    "gsd_codebook",
    "gsd_partition",
    "jacobi",
    "lookahead",
    "sjd",
    "sjd2",
]

VARIANTS = {
    "cllm": Variant(
        "jacobi",
        {"block_length": 16, "window": 16, "start": "text"},
        "decoding of a consistency model, blocks of 16, Kou et al., arXiv:2403.00835",
    ),
    "fastcot": Variant(
        "early_exit",
        {"window": 16, "max_iters": 48},
        "a rationale of confirmed and approximate tokens, arXiv:2311.08263",
    ),
    "pd_vla": Variant(
        "jacobi",
        {"window": 22, "start": "text"},
        "a window over a chunk of 3 actions of 7 numbers and EOS, arXiv:2503.02310",
    ),
    "gs_jacobi": Variant(
        "jacobi",
        {"block_length": 16, "window": 16},
        "Gauss-Seidel over blocks of 16, Santilli et al., arXiv:2305.10427",
    ),
    "plain_sjd": Variant(
        "sjd",
        {"transport": "independent"},
        "speculative Jacobi without coupling, Teng et al., arXiv:2410.01699",
    ),
    "gumbel_sjd": Variant(
        "sjd",
        {"transport": "gumbel"},
        "drafts coupled by shared Gumbel noise, arXiv:2510.24211",
    ),
    "frozen_gumbel_sjd": Variant(
        "sjd",
        {"transport": "gumbel_equal"},
        "frozen noise and acceptance by equality, arXiv:2510.24211",
    ),
}
