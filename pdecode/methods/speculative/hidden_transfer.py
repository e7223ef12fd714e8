"""Hidden transfer: pseudo states in the verifying call guess the tokens behind it.

Wu et al., 2024, arXiv:2404.12022. `train.objectives.hidden_transfer` trains the maps
that make them. The paper searches its tree; here `branching` says it.
"""

import functools
from typing import Annotated

from pdecode import trees
from pdecode.contracts import Decoder, Sampling, Transfer
from pdecode.drafters import probes
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Size, Temperature, TopK, TopP


def hidden_transfer(
    model: NextModel,
    transfer: Transfer,
    *,
    max_new_tokens: Count,
    branching: Annotated[tuple[int, ...], Size()] = (3, 1),
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A tree of what the pseudo states behind the last accepted token said.

    Every node of depth d has branching[d] children and as many pseudo states as there
    are levels. ValueError for more levels than pseudo states, and for a model that is
    no plain transformer.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + number of nodes query tokens a call, and len(branching) pseudo states
    behind each; no other call.
    """
    if len(branching) > transfer.num_states:
        raise ValueError(f"{branching=}, but {transfer.name} has {transfer.num_states}")
    if transfer.around is not None:
        transfer = transfer.around(model)

    def apply(both, query, cache):
        return transfer.apply(both["transfer"], both["model"], query, cache)

    whole = model._replace(
        apply=apply, encode=apply, tapped=None, exits=(),
        head=lambda both: model.head(both["model"]),
    )  # fmt: skip
    drafter = probes.probed(whole, probes.full(trees.expand(branching)), 0)
    base = speculative.draft_verify(
        whole,
        drafter,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
    )
    assert isinstance(base.init, functools.partial), "of the family"
    plan = base.init.args[0]  # tells what is drafted, also of the decoder made here
    return base._replace(
        init=functools.partial(_as_one, plan, base.init),
        step=functools.partial(_as_one, plan, base.step),
    )


def _as_one(plan, call, params, keys, rest):
    """The target gets both sets of params."""
    del plan
    return call({**params, "model": params}, keys, rest)
