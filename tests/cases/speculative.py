"""Cases of methods/speculative."""

from cases import STORED, TWO, TWO_HEADS, case

CASES = {
    "autoregressive": case("autoregressive", "plain"),
    "prompt_lookup": case("prompt_lookup", "plain", num_draft=4),
    "prompt_lookup_whole": case(
        "prompt_lookup", "plain", num_draft=2, continuation="whole"
    ),
    "token_recycling": case("token_recycling", "plain", widths=(2, 2, 1), num_top=2),
    "sam_decoding": case(
        "sam_decoding", "plain", num_draft=3, len_threshold=2, widths=(2, 2), num_top=2
    ),
    "rest": case(
        "rest", "plain", num_draft=5, draft_len=3, min_match=1, num_matches=4, **STORED
    ),
    "stand": case(
        "stand", "plain", widths=(2, 2, 1), num_top=2, contexts=(2, 1), num_slots=64
    ),
    "alignment_sampling": case(
        "alignment_sampling", "plain", num_draft=2, num_beside=2
    ),
    "specreason": case(
        "specreason",
        "lossy",
        num_draft=4,
        delimiters=(2,),
        knobs={"threshold": -0.7},
        **TWO,
    ),
    "speculative": case("speculative_sampling", "law", num_draft=3, **TWO),
    "coupled": case(
        "speculative_sampling", "plain", num_draft=3, acceptance="coupled", **TWO
    ),
    "block_verification": case("block_verification", "law", num_draft=3, **TWO),
    "specinfer": case("specinfer", "law", branching=(2, 2), **TWO),
    "specinfer_without": case(
        "specinfer", "law", branching=(3, 1), draws="without_replacement", **TWO
    ),
    "blockwise": case("blockwise", "plain", num_draft=3, **TWO_HEADS),
}
