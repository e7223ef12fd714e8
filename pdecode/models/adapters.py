"""Low-rank adapters beside kernels that stay as they are (LoRA).

Hu et al., 2021, arXiv:2106.09685. Beside a kernel W [K, N] stand "lora_a" [K, r] and
"lora_b" [r, N]: a linear map answers x W + x A B (`layers.Dense`). A begins random and
B as zero, so that the first answer is that of W alone. Adapters by themselves are a
tree of the model's own names in which nothing else is left.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Params

# Linear maps of a layer that may have adapters; experts have none.
NAMES = ("query", "key", "value", "out", "gate", "up", "down")


def init(base: Params, rank: int, names: Sequence[str], key: Array) -> Params:
    """Adapters of `rank` for every linear map of `base` with one of `names`.

    `key` is consumed. ValueError for names that `base` does not have, and for a rank
    below 1 or above a side of a kernel, which would be no low rank.
    """
    places: dict[tuple[str, ...], tuple[int, int]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(base):
        *above, last = (str(each.key) for each in path)
        if last == "kernel" and above[0].startswith("layer_") and above[-1] in names:
            places[tuple(above)] = leaf.shape
    missing = sorted(set(names) - {path[-1] for path in places})
    if missing or not places:
        raise ValueError(
            f"adapters.names={tuple(names)}: the model has no kernels of {missing}; "
            f"known: {', '.join(NAMES)}"
        )
    most = min(min(shape) for shape in places.values())
    if not 1 <= rank <= most:
        raise ValueError(
            f"adapters.rank={rank} must be at least 1 and at most {most}, the shorter "
            "side of the smallest kernel"
        )
    own: dict = {}
    for number, (path, (size, features)) in enumerate(sorted(places.items())):
        draw = jax.random.normal(jax.random.fold_in(key, number), (size, rank))
        place = own
        for name in path:
            place = place.setdefault(name, {})
        place["lora_a"] = size**-0.5 * draw.astype(jnp.float32)
        place["lora_b"] = jnp.zeros((rank, features), jnp.float32)
    return own


def joined(base: Params, own: Params, scale: float) -> Params:
    """`base` with adapters beside its kernels, B times `scale`."""
    made = dict(base)
    for name, leaf in own.items():
        if isinstance(leaf, dict):
            made[name] = joined(base[name], leaf, scale)
        else:
            made[name] = scale * leaf if name == "lora_b" else leaf
    return made


def merged(params: Params) -> Params:
    """What `joined` gives as parameters of the model alone: W + A B in place of W."""
    made = {
        name: merged(leaf) if isinstance(leaf, dict) else leaf
        for name, leaf in params.items()
    }
    if "lora_a" in made:
        made["kernel"] = made["kernel"] + made.pop("lora_a") @ made.pop("lora_b")
    return made
