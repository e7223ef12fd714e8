"""A drafter whose token ids are not the target's: by its words, or by its padding."""

import warnings
from typing import Any

from jax.sharding import Mesh

from pdecode import sharding
from pdecode.contracts import Model, Params
from pdecode.drafters import spelled
from pdecode.models import bytes as byte_text
from pdecode.models import transformer, translated

SHARED = "shared"  # NAME@shared: a drafter of the tokens that both have


def words(name: str, model: Model, tokenizer: Any) -> dict[str, int]:
    """The ids of a tokenizer's words that a model has, by the word."""
    if isinstance(tokenizer, byte_text.ByteTokenizer):
        return {chr(byte): byte for byte in range(256)}
    if not hasattr(tokenizer, "backend"):
        raise ValueError(f"{name} has no tokenizer whose words another one could share")
    every = tokenizer.backend.get_vocab()
    return {word: index for word, index in every.items() if index < model.vocab_size}


def spelled_in(
    wanted: str, drafter: Any, params: Params, own, its, size: int, mesh: Mesh | None
):
    """A drafter of another tokenizer: its words, and the target's over `size` ids."""
    if wanted == "spelled":
        params = spelled.tables(params, own, its, size)
    else:
        drafter, params = translated.translated(drafter, params, own, its, size)
    if mesh is not None:
        own = params.pop("own")
        params = {**sharding.replicate(params, mesh), "own": own}
    return drafter, params


def resized(drafter: Model, params: Params, own, target: Model, tokenizer, mesh):
    """`drafter` over the target's ids, where they differ by padding alone."""
    sizes = f"the drafter has {drafter.vocab_size} token ids and the target "
    sizes += str(target.vocab_size)
    words = [
        each.backend.get_vocab() if hasattr(each, "backend") else None
        for each in (own, tokenizer)
    ]
    num_words = min(drafter.vocab_size, target.vocab_size)
    if words[0] is None or words[0] != words[1] or max(words[0].values()) >= num_words:
        raise ValueError(
            f"{sizes}: they need one vocabulary, or one tokenizer and padding behind "
            f"it; a drafter of another tokenizer is asked for as NAME@{SHARED}, or by "
            "the methods slem and slrs"
        )
    warnings.warn(
        f"{sizes}; their tokenizer is one, so what lies behind {num_words} is padding, "
        "which is never drafted",
        stacklevel=3,
    )
    drafter, params = transformer.resized(drafter, params, target.vocab_size)
    return drafter, params if mesh is None else sharding.shard_params(params, mesh)
