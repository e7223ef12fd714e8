"""OctGPT: a tree of cells grown depth by depth, each depth by masked steps.

Wei et al., 2025, arXiv:2504.09975. A node that is drawn as split has children at the
next depth; there the nodes are drawn in random order, and late in a depth those that
the model no longer holds for best are drawn again. Deviations: a depth has room for all
children, and those of nodes that are not split hold `empty_id` from its first step on;
all depths have one temperature, and a node is doubted if it is not the best, also at
the last depth, where theirs must be among the best five.
"""

from typing import Annotated

import jax.numpy as jnp
import numpy as np

from pdecode import rng
from pdecode.contracts import Decoder, Row, Rule, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Size, Temperature
from pdecode.rules import blocks, commit, growth


def octgpt(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Annotated[tuple[int, ...], Size()] = (64, 128, 128, 256),
    branching: Count = 8,
    split_id: Annotated[int, Size(0)] = 1,
    empty_id: Annotated[int, Size(0)] = 0,
    resample: Annotated[float, Knob(0, 1)] = 0.2,
    resample_from: Annotated[float, Knob(0, 1)] = 0.7,
    fade: Annotated[float, Knob(0, 1)] = 1.0,
    temperature: Temperature = 1.0,
) -> Decoder:
    """`steps` at each depth; a cosine share of its nodes stays open after each.

    The temperature falls to `fade` of its way to 0 within a depth. From the
    `resample_from` share of the steps on, the least likely `resample` of the nodes that
    the model does not hold for best are drawn again.
    ValueError if the depths do not make up `max_new_tokens`.
    Guarantee: lossy; nodes of one step are drawn independently.
    Cost: at most the sum of `steps` calls of the whole canvas.
    """
    tree = growth.tree(max_new_tokens, len(steps), branching, split_id, empty_id)
    of_depth = jnp.asarray(steps, jnp.int32)
    # Shares left open: in float32 their floors would be off by one.
    passed = (1 + np.arange(max(steps))) / np.array(steps)[:, None]
    share = jnp.asarray(np.cos(np.pi / 2 * np.minimum(passed, 1)), jnp.float32)

    def apply(key, row: Row, prediction):
        del prediction
        exists = growth.exists(tree, row)
        depth = jnp.minimum(row.block, len(steps) - 1)
        drawn = row.open & exists
        total = (exists & (row.block_of == row.block)).sum()
        left = (total * share[depth, row.step]).astype(jnp.int32)
        left = jnp.clip(left, 1, drawn.sum() - 1)
        left = jnp.where(row.step + 1 >= of_depth[depth], 0, left)
        order = rng.uniform(rng.at(key, row.positions))
        return commit.best(order, drawn, drawn.sum() - left) | (row.open & ~exists)

    def again(params, key, row: Row, prediction, memory):
        del params, key
        doubt = prediction.of_log_prob < prediction.max_log_prob
        doubt &= growth.exists(tree, row) & (row.block_of == row.block) & ~row.open
        count = jnp.floor(resample * doubt.sum()).astype(jnp.int32)
        number = of_depth[jnp.minimum(row.block, len(steps) - 1)]
        is_late = row.step > resample_from * number
        return commit.best(-prediction.of_log_prob, doubt, count) & is_late, memory

    return masked.masked_diffusion(
        model,
        commit.stateless(apply),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
        blocks=blocks.sizes(tree.sizes),
        edit=Rule(lambda length: (), again, ("of_log_prob", "max_log_prob")),
        lenses=(growth.lens(tree, fade),),
    )
