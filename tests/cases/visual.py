"""Cases of methods/visual."""

import jax.numpy as jnp

from cases import MASKED, ON_MASKS, TWO_HEADS, VOCAB, case
from pdecode.contracts import Embedding


def _with_noise(params, query, cache):
    """The toy, whose law leans where the noise of a lane points."""
    output, cache = MASKED.apply(params, query._replace(extra=None), cache)
    leans = jnp.where(query.has_extra[..., None], query.extra, 0)
    leans = jnp.pad(leans, ((0, 0), (0, 0), (0, VOCAB - 1)))
    return output._replace(hidden=output.hidden + leans), cache


ON_NOISE = MASKED._replace(
    apply=_with_noise,
    predicts="noised",
    embedding=Embedding(lambda params: jnp.zeros((VOCAB + 1, 2)), 2, "float32"),
)

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
    "distilled_decoding": case(
        "distilled_decoding", "lossy", starts=(0, 4), max_calls=2, model=ON_NOISE
    ),
    "diagonal_decoding": case(
        "diagonal_decoding", "lossy", row_length=2, frame_length=4, window=1,
        mode="video", stand_in="frame",
    ),
}  # fmt: skip
