"""Cases of methods/jacobi."""

import jax
import jax.numpy as jnp
import numpy as np

from cases import CAUSAL, TARGET, VOCAB, case
from pdecode.contracts import Codes, Embedding
from pdecode.rules import relaxed


def _read(params, query, cache):
    """The causal toy with one-hot embeddings: a noisy one is the nearest token."""
    if query.extra is not None:
        stands = jax.nn.one_hot(query.tokens, VOCAB + 1) + query.extra
        tokens = jnp.argmax(stands, -1).astype(jnp.int32)
        query = query._replace(tokens=tokens, extra=None)
    return CAUSAL.apply(params, query, cache)


EMBEDDED = CAUSAL._replace(
    apply=_read,
    encode=_read,
    embedding=Embedding(lambda params: jnp.eye(VOCAB + 1), VOCAB + 1, "float32"),
)

_CODES = np.array([[0.0], [0.5], [2.0], [9.0], [np.nan]])


def _coded(params):
    """The causal toy and what its tokens stand for; the mask for nothing."""
    return {
        "model": (CAUSAL, Codes(VOCAB + 1)),
        "params": {"model": TARGET, "codes": jnp.asarray(params, jnp.float32)},
    }


CODED, PARTED = _coded(_CODES), _coded(relaxed.clusters(_CODES, 0.5))

CASES = {
    "jacobi": case("jacobi", "plain", window=4),
    "jacobi_blocks": case("jacobi", "plain", window=4, block_length=4),
    "cllm": case("jacobi", "plain", window=4, block_length=4, start="text"),
    "jacobi_uniform": case("jacobi", "plain", window=4, start="uniform"),
    "early_exit": case("early_exit", "lossy", window=10, max_iters=4, max_calls=4),
    "lookahead": case("lookahead", "plain", level=3, window_size=3, guess_set_size=2),
    "sjd": case("sjd", "law", window=4, transport="independent"),
    "mc_sjd": case("sjd", "law", window=4, transport="maximal", start="repeat"),
    "sjd_horizontal": case(
        "sjd",
        "law",
        window=4,
        transport="independent",
        start="horizontal",
        row_length=3,
    ),
    "sjd_vertical": case("sjd", "law", window=4, start="vertical", row_length=3),
    "sjd_sample": case("sjd", "law", window=4, start="sample"),
    "sjd2": case("sjd2", "law", window=4, levels=2, model=EMBEDDED),
    "sjd2_coupled": case(
        "sjd2", "law", window=5, levels=1, transport="maximal", model=EMBEDDED
    ),
    "gs_equal": case("sjd", "plain", window=4, transport="gumbel_equal"),
    "gsd": case("gsd", "lossy", window=4, size=2),
    "gsd_codebook": case("gsd_codebook", "lossy", window=4, size=2, **CODED),
    "gsd_partition": case("gsd_partition", "lossy", window=4, **PARTED),
    "gs_sjd": case("sjd", "law", window=4, transport="gumbel"),
}
