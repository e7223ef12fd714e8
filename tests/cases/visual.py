"""Cases of methods/visual."""

from cases import ON_MASKS, case

CASES = {
    "raster": case("any_order", "lossy", order="raster", **ON_MASKS),
    "random_order": case("any_order", "lossy", steps=4, **ON_MASKS),
}
