"""Cases of methods/jacobi."""

from cases import case

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
    "gs_equal": case("sjd", "plain", window=4, transport="gumbel_equal"),
    "gsd": case("gsd", "lossy", window=4, size=2),
    "gs_sjd": case("sjd", "law", window=4, transport="gumbel"),
}
