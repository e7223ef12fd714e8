"""Cases of methods/visual."""

from cases import ON_MASKS, TWO_HEADS, case

CASES = {
    "raster": case("any_order", "lossy", order="raster", **ON_MASKS),
    "random_order": case("any_order", "lossy", steps=4, **ON_MASKS),
    "diagonals": case("any_order", "lossy", order="diagonal", row_length=4, **ON_MASKS),
    "arpg": case(
        "arpg", "lossy", steps=4, knobs={"guidance_scale": 1.5}, max_calls=8, **ON_MASKS
    ),
    "lpd": case("lpd", "lossy", steps=4, row_length=4, **ON_MASKS),
    "zipar": case("zipar", "lossy", row_length=4, window=2),
    "nar": case("nar", "lossy", row_length=4, **TWO_HEADS),
    "next_block": case("next_block", "lossy", block_length=4, **ON_MASKS),
    "next_scale": case(
        "next_scale", "lossy", scales=(1, 3, 6), max_calls=3, **ON_MASKS
    ),
    "octgpt": case(
        "octgpt", "lossy", steps=(2, 4), branching=4, max_calls=6,
        knobs={"resample": 0.5}, **ON_MASKS,
    ),
    "diagonal_decoding": case(
        "diagonal_decoding", "lossy", row_length=2, frame_length=4, window=1,
        mode="video", stand_in="frame",
    ),
}  # fmt: skip
