"""Next tokens, and masked tokens of the next block: one causal model for both.

Set block decoding (Gat et al., 2025, arXiv:2509.04185). A row is read twice in one
pass: as text, causally, for the loss of next tokens; and in blocks in which a random
share of the tokens is masked, for the loss of those. A block sees the text before it
and, from its first mask on, all of itself; what stands before that mask is text, as
`methods.set_block` has it. Every answer is read one position to the left, a block's
first one off the text. Each row cuts its blocks elsewhere, as decoding begins anywhere.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pdecode.contracts import Params, Visibility
from pdecode.models import transformer
from pdecode.models.config import Config
from pdecode.train import evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.objectives import autoregressive
from pdecode.train.passes import Pass


@dataclasses.dataclass(frozen=True)
class Options:
    block_length: int = 16
    masked_weight: float = 1.0  # of a masked token's nats beside a next token's

    def __post_init__(self):
        inf = float("inf")
        check_ranges(self, {"block_length": (1, inf), "masked_weight": (0, inf)})


NEEDS = Needs(
    attention=("causal",),
    predicts=("next",),
    why="the text before a block is decoded and stored causally",
    mask=True,
)


def start(config, key, given):
    if any(config.model.sliding):
        raise ValueError(
            f"model.sliding={config.model.sliding}: objective=set_block reads blocks "
            "beside the text, which layers with a window cannot place"
        )
    return transformer.init(config.model, key) if given is None else given


def noise(config):
    size, given_ids = config.options.block_length, config.given_ids

    def apply(batch, key):
        tokens = batch["tokens"]
        key_cut, key_rate, key_mask = jax.random.split(key, 3)
        num_rows, length = tokens.shape
        cut = jax.random.randint(key_cut, (num_rows, 1), 0, size)
        # The first token has nobody to its left: it is in no block, but before all.
        place = jnp.arange(length)[None]
        block = jnp.where(place > 0, (place - 1 + cut) // size, -1)
        rate = jax.random.uniform(key_rate, tokens.shape)
        rate = jnp.take_along_axis(rate, jnp.maximum(block, 0), 1)
        masked = jax.random.uniform(key_mask, tokens.shape) < rate
        masked &= losses.is_scored(tokens, given_ids) & (block >= 0)
        return {**batch, "block": block, "masked": masked}

    return apply


def behind_mask(block: Array, masked: Array) -> Array:
    """bool [B, L]: a mask of the position's own block stands left of it."""
    place = jnp.arange(block.shape[1])
    is_left = (place[:, None] > place[None])[None]
    same = block[:, :, None] == block[:, None]
    return (same & is_left & masked[:, None]).any(-1)


def among(block: Array, masked: Array) -> Array:
    """What each of 2 L lanes [text | blocks] sees of them, bool [B, 2 L, 2 L].

    `block` int32 [B, L]: the block of each position; `masked` bool [B, L].
    """
    length = block.shape[1]
    place = jnp.arange(length)
    causal = (place[:, None] >= place[None])[None]  # [q, k]: k is q or left of it
    mine, its = block[:, :, None], block[:, None]
    text = jnp.broadcast_to(causal, (*block.shape, length))
    text_sees = jnp.concatenate([text, jnp.zeros_like(text)], 2)
    is_open = masked | behind_mask(block, masked)
    inside = (mine == its) & (is_open[..., None] | causal)
    blocks_see = jnp.concatenate([its < mine, inside], 2)
    return jnp.concatenate([text_sees, blocks_see], 1)


def both_nats(
    model: Config, params: Params, tokens: Array, block: Array, masked: Array,
    how: Pass | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Nats [B, L - 1] of each token but the first: as the next one, and in its block.

    The second are those of masked tokens where `masked` says so.
    """
    how = passes.of_decoding(model) if how is None else how
    assert model.mask_id is not None, "the objective asks for one"
    length = tokens.shape[1]
    both = jnp.concatenate([tokens, jnp.where(masked, model.mask_id, tokens)], 1)
    place = jnp.broadcast_to(jnp.arange(2 * length) % length, both.shape)
    nowhere = jnp.zeros_like(place)
    visible = Visibility(nowhere, nowhere, among=among(block, masked))
    hidden = passes.run(how, params, both, positions=place, visible=visible).hidden
    text, inside = hidden[:, : length - 1], hidden[:, length:-1]
    begins = block[:, 1:] != block[:, :-1]
    inside = jnp.where(begins[..., None], text, inside)
    logits = losses.logits_of(model, params, jnp.stack([text, inside], 1))
    wanted = jnp.broadcast_to(tokens[:, None, 1:], logits.shape[:-1])
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    return nats[:, 0], nats[:, 1]


def loss(config):
    how, model, given_ids = passes.of_run(config), config.model, config.given_ids
    weight = config.options.masked_weight

    def apply(params, frozen, batch, key, step):
        del frozen, key, step
        tokens, masked = batch["tokens"], batch["masked"]
        found = both_nats(model, params, tokens, batch["block"], masked, how)
        scored = losses.is_scored(tokens, given_ids)[:, 1:], masked[:, 1:]
        count = scored[0].sum(dtype=jnp.float32)
        total = jnp.where(scored[0], found[0], 0.0).sum()
        total += weight * jnp.where(scored[1], found[1], 0.0).sum()
        place = jnp.arange(1, tokens.shape[1])
        return total / jnp.maximum(count, 1.0), {
            "weight": count,
            "nats": jnp.concatenate(found, 1),
            "scored": jnp.concatenate(scored, 1),
            "places": jnp.concatenate([place, place]),
        }

    return apply


@functools.partial(jax.jit, static_argnums=0)
def _masked_sums(model, params, batch, scored):
    """Nats of what is masked behind another mask of its block, and their number."""
    tokens, block, masked = (batch[name] for name in ("tokens", "block", "masked"))
    _, nats = both_nats(model, params, tokens, block, masked)
    counted = (masked & scored & behind_mask(block, masked))[:, 1:]
    return jnp.stack([jnp.where(counted, nats, 0.0).sum(), counted.sum()])


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """Bits of the next token, as `autoregressive.figures`, and of one behind a mask."""
    sizes = {"row_len": row_len, "max_rows": max_rows, "put": put}
    found = autoregressive.figures(config, params, frozen, text, **sizes)
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    drawn, total = noise(config), np.zeros(2)
    for number, (tokens, scored) in enumerate(evaluate.parts(rows)):
        batch = drawn({"tokens": put(tokens)}, jax.random.key(number))
        total += np.asarray(_masked_sums(config.model, params, batch, put(scored)))
    bits = float(evaluate.bits(total[0]) / max(total[1], 1))
    return {**found, f"bits_per_masked_{text.unit}": bits}


def holds(config):
    del config
    return {"kind": "transformer"}


def decoded_as(options: dict) -> tuple[str, dict]:
    return "set_block", {"block_length": options["block_length"]}


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, noise=noise, decoded_as=decoded_as
)
