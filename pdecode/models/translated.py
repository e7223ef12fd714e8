"""A drafter of another vocabulary, seen through the tokens that both have.

Token-level intersection (Timor et al., 2025, arXiv:2502.05202): the drafter's law is
restricted to the strings that are tokens of both, renormalised, and written in the
target's ids. That is a law like any other, so every acceptance rule stays exact.
"""

import functools
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from pdecode.contracts import Head, Model, Params, Query
from pdecode.sampling import BANNED

# What stands for a space in the tokens of different tokenizers.
SPACES = ("\u0120", "\u2581")


def translated(
    model: Model,
    params: Params,
    own_words: Mapping[str, int],
    words: Mapping[str, int],
    vocab_size: int,
    *,
    unknown_id: int = 0,
) -> tuple[Model, Params]:
    """(model, params) over the `vocab_size` ids of `words`, those of another tokenizer.

    `own_words` are the tokens of `model`. Ids that it has no token for are never
    drafted, and it reads `unknown_id` where the text has one. Raises ValueError if no
    token is shared, and for a head with a soft cap, under which a token cannot be made
    impossible.
    """
    to_own = matched(own_words, words, vocab_size)
    if model.mask_id is not None:
        to_own = np.where(to_own == model.mask_id, -1, to_own)
    if not (to_own >= 0).any():
        raise ValueError(
            f"{model.name} and the target share none of {len(words)} tokens: draft "
            "with a model whose tokenizer is closer"
        )
    head = model.head(params)
    if head.soft_cap is not None:
        raise ValueError(
            f"{model.name} caps its logits at {head.soft_cap}: no token is impossible"
        )
    here = jnp.asarray(np.maximum(to_own, 0))
    bias = 0.0 if head.bias is None else head.bias[here]
    made = {
        "own": params,
        "to_own": jnp.asarray(np.where(to_own >= 0, to_own, unknown_id), jnp.int32),
        "head": Head(
            weight=head.weight[here],
            bias=jnp.where(jnp.asarray(to_own >= 0), bias, BANNED),
            scale=head.scale,
        ),
    }

    return _over(model, vocab_size), made


@functools.cache
def _over(model: Model, vocab_size: int) -> Model:
    """One object for equal arguments: programs are kept by their models."""

    def read(call):
        def apply(params, query: Query, cache):
            own = params["to_own"][query.tokens]
            return call(params["own"], query._replace(tokens=own), cache)

        return apply

    return model._replace(
        apply=read(model.apply),
        encode=read(model.encode),
        head=lambda params: params["head"],
        vocab_size=vocab_size,
        mask_id=None,
        eos_ids=(),
        tapped=None,
        exits=(),
        name=f"translated {model.name}",
    )


def matched(
    own_words: Mapping[str, int], words: Mapping[str, int], vocab_size: int
) -> np.ndarray:
    """int32 [vocab_size]: the id in `own_words` of each id of `words`, or -1.

    Tokens are compared as the text they stand for: markers of a space are one.
    """
    own = {plain(word): index for word, index in own_words.items()}
    found = np.full(vocab_size, -1, np.int32)
    for word, index in words.items():
        found[index] = own.get(plain(word), -1)
    return found


def plain(word: str) -> str:
    for marker in SPACES:
        word = word.replace(marker, " ")
    return word
