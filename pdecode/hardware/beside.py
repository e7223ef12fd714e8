"""What drafts for a target that is not here: its record, and its parameters' shapes."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct

from pdecode.contracts import PromptTokens
from pdecode.models import (
    draft_heads,
    draft_layers,
    draft_modules,
    falcon_layers,
    hydra_heads,
    transfers,
)
from pdecode.models.config import Config

ROLES = {
    "heads", "chained_heads", "layer", "modules", "block_layer", "prompt_tokens",
    "transfer",
}  # fmt: skip


def shapes(role: str, sizes: dict, config: Config) -> tuple[Any, Any]:
    """What plays a role of ROLES for a target of `config`, and bfloat16 shapes.

    Heads have an MLP as wide as the stream, a layer is EAGLE's, pseudo states join in
    the middle; `sizes` are a method's, which tell how many heads there are.
    """
    key, width = jax.random.key(0), config.width
    num_heads = sizes.get("num_draft") or len(sizes.get("branching") or (1,) * 4)
    made: Any
    if role == "layer":
        made = draft_layers.make_layer(config)
        tree = jax.eval_shape(lambda: draft_layers.init(config, key))
    elif role == "modules":
        made = draft_modules.make_modules(config, num_heads)
        tree = jax.eval_shape(lambda: draft_modules.init(config, key, num_heads))
    elif role == "chained_heads":
        made = hydra_heads.make_heads(config, num_heads)
        tree = jax.eval_shape(lambda: hydra_heads.init(config, num_heads))
    elif role == "block_layer":
        made = falcon_layers.make_layer(config)
        tree = jax.eval_shape(lambda: falcon_layers.init(config, key))
    elif role == "transfer":
        made = transfers.make_transfer(config, num_heads * (config.num_layers // 2,))
        tree = jax.eval_shape(lambda: transfers.init(config, num_heads))
    elif role == "prompt_tokens":
        made = PromptTokens(num_heads)
        tree = {"change": ShapeDtypeStruct((num_heads, width), jnp.bfloat16)}
    else:
        made = draft_heads.make_heads(num_heads)
        tree = jax.eval_shape(lambda: draft_heads.init(num_heads, width, width, key))
    return made, jax.tree.map(lambda s: ShapeDtypeStruct(s.shape, jnp.bfloat16), tree)
