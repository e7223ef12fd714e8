"""Set block decoding: a causal model fills several places of its next block at once.

Gat et al., 2025, arXiv:2509.04185, with the entropy-bounded sampler. Models are trained
for it by `objective="set_block"`; one that never saw a mask inside its text says little
about the places behind one. Deviation: tokens of the block before its first open place
count as text, so that they see no mask and the next place has the next-token law.
"""

from typing import Annotated, Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.families import set_blocks
from pdecode.knobs import Count, Knob, NextModel, Temperature, TopK, TopP
from pdecode.rules import commit


def set_block(
    model: NextModel,
    *,
    max_new_tokens: Count,
    block_length: Count = 16,
    gamma: Annotated[float, Knob(0, 1e6)] = 0.1,
    order: Literal["entropy", "margin", "max_prob", "sequential"] = "entropy",
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Fill what the entropy bound allows of the next block, over an exact causal cache.

    Guarantee: lossy; each call adds at most `gamma` nats of divergence from the law of
    one place a call. That law is the model's next-token law in order="sequential", and
    in blocks of one, where the output is the autoregressive one, token by token.
    Cost: at most a call a token; calls of 1 + `block_length` query tokens, and in the
    first one of a block the tokens of the block before it.
    """
    return set_blocks.set_blocks(
        model,
        commit.entropy_bounded(gamma, commit.order(order)),
        max_new_tokens=max_new_tokens,
        block_length=block_length,
        sampling=Sampling(temperature, top_k, top_p),
    )
