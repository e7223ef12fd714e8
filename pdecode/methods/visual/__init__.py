"""Parallel orders for images and other grids."""

from pdecode.knobs import Variant
from pdecode.methods.visual.any_order import any_order
from pdecode.methods.visual.arpg import arpg
from pdecode.methods.visual.diagonal_decoding import diagonal_decoding
from pdecode.methods.visual.distilled_decoding import distilled_decoding
from pdecode.methods.visual.lpd import lpd
from pdecode.methods.visual.nar import nar
from pdecode.methods.visual.next_block import next_block
from pdecode.methods.visual.next_scale import next_scale
from pdecode.methods.visual.octgpt import octgpt
from pdecode.methods.visual.zipar import zipar

__all__ = [
    "any_order",
    "arpg",
    "diagonal_decoding",
    "distilled_decoding",
    "lpd",
    "nar",
    "next_block",
    "next_scale",
    "octgpt",
    "zipar",
]

VARIANTS = {
    "next_detail": Variant(
        "next_block",
        {"block_length": 8},
        "tokens from coarse to fine, eight a call behind the first eight (DetailFlow)",
    ),
    "raster": Variant(
        "any_order",
        {"order": "raster"},
        "left to right, one position a call",
    ),
}
