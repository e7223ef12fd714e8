"""Fixed-point iteration."""

from pdecode.knobs import Variant
from pdecode.methods.jacobi.jacobi import jacobi
from pdecode.methods.jacobi.lookahead import lookahead
from pdecode.methods.jacobi.sjd import sjd

__all__ = [
    "jacobi",
    "lookahead",
    "sjd",
]

VARIANTS = {
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
}
