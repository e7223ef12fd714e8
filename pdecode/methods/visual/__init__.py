"""Parallel orders for images and other grids."""

from pdecode.knobs import Variant
from pdecode.methods.visual.any_order import any_order

__all__ = [
    "any_order",
]

VARIANTS = {
    "raster": Variant(
        "any_order",
        {"order": "raster"},
        "left to right, one position a call",
    ),
}
