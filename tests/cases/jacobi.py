"""Cases of methods/jacobi."""

from cases import case

CASES = {
    "jacobi": case("jacobi", "plain", window=4),
    "jacobi_blocks": case("jacobi", "plain", window=4, block_length=4),
    "lookahead": case("lookahead", "plain", level=3, window_size=3, guess_set_size=2),
    "sjd": case("sjd", "law", window=4, transport="independent"),
    "mc_sjd": case("sjd", "law", window=4, transport="maximal", start="repeat"),
    "gs_sjd": case("sjd", "law", window=4, transport="gumbel"),
}
