"""GSD with fixed groups: exact for groups of tokens, whatever the tokens are.

So et al., 2025, arXiv:2508.07747, on SJD's redraws. Deviation: the groups are a
partition, such as `relaxed.clusters` makes of a codebook, and what follows a refusal is
drawn group first (`relaxed.coarse`), where the paper's overlap and keep no law.
"""

from pdecode.contracts import Codes, Decoder, Sampling
from pdecode.drafters import guesses, iterates
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP
from pdecode.rules import accept, relaxed


def gsd_partition(
    model: NextModel,
    codes: Codes,
    *,
    max_new_tokens: Count,
    window: Count = 16,
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A guess is kept as often as its group would be, and a group drawn where not.

    Params of the role "codes" are float [G, V], each token's shares in groups, which
    may overlap too.
    Guarantee: lossy; behind a given text the next token's group has the target's law,
    and groups of one token are lossless in distribution.
    Cost: 1 + window query tokens a call; the head is also read once to recompute q.
    """
    relaxed.check_codes(codes, model)
    sampling = Sampling(temperature, top_k, top_p)
    return speculative.draft_verify(
        model,
        iterates.iterate(model, window, sampling, transport=guesses.independent()),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.by_node(relaxed.coarse()),
    )
