"""Which positions of a block are right already, told from their confidences alone.

Learn2PD (Bao et al., 2025, arXiv:2509.25188): a small network over the confidences of a
block, trained beside a frozen masked model. Rows are prompts with answers that the
model gave itself. Of one block of a row the extremely greedy parallel decode is rerun:
everything before the block is told, everything behind it masked; a step predicts all of
the block, and what agrees with the answer is filled in. Each step gives one example,
the confidences that a decoder would see, with one label a position: whether the
prediction is the answer's. The loss is their binary cross entropy. `learn2pd` decodes.

Deviations: the rerun is made anew for each batch instead of once, and ends where a step
fills nothing (the authors' code gives that example twice and goes on to the next
block).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pdecode.contracts import Params
from pdecode.models import filters
from pdecode.models.config import Config
from pdecode.train import active, evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.objectives import masked_diffusion
from pdecode.train.objectives.masked_diffusion import is_answer
from pdecode.train.passes import Pass


@dataclasses.dataclass(frozen=True)
class Options:
    block_length: int = 32
    # As in masked_diffusion: a row up to the first of these tokens is a prompt.
    prompt_end: int | tuple[int, ...] | None = None

    def __post_init__(self):
        check_ranges(self, {"block_length": (1, float("inf"))})
        checked = masked_diffusion.Options(prompt_end=self.prompt_end)
        object.__setattr__(self, "prompt_end", checked.prompt_end)


NEEDS = Needs(
    attention=("bidirectional", "block_causal"),
    predicts=("masked",),
    why="the filter says which masks of a canvas may be filled at once",
    shift=True,
    mask=True,
    frozen=("target",),
    can_start=False,
)


class Rerun(NamedTuple):
    """The steps of a greedy decode, S of them at most, over blocks of K places."""

    confidence: Array  # float32 [B, S, K]
    is_right: Array  # bool [B, S, K]
    counted: Array  # bool [B, S, K]  a step that was taken, a place that is there


def start(config, key, given):
    del given
    active.length_of(config.model, config.options.block_length)
    return filters.init(config.options.block_length, key)


def noise(config):
    own, eos_ids = config.options, config.model.eos_ids
    is_absolute = config.model.attention == "block_causal"

    def apply(batch, key):
        tokens = batch["tokens"]
        answer = is_answer(tokens, own.prompt_end)
        number = active.numbers(answer, own.block_length, is_absolute)
        filler = active.behind_end(tokens, answer, eos_ids)
        block = active.drawn(number, filler, key)
        origin = 0 if is_absolute else jnp.argmax(answer, axis=1)
        begin = (origin + block * own.block_length)[:, None]
        here, later = number == block[:, None], number > block[:, None]
        return {**batch, "here": here, "later": later, "begin": begin}

    return apply


def rerun(
    model: Config, params: Params, batch: dict, block_length: int,
    how: Pass | None = None,
) -> Rerun:  # fmt: skip
    """The greedy decode of each row's block towards the row's own tokens.

    As many calls as the row that takes most of them. Confidences are those of the
    decoder: of the likeliest token that is no mask, under the law that has the mask.
    """
    how = passes.of_decoding(model) if how is None else how
    mask_id = model.mask_id
    assert mask_id is not None, "the objective asks for one"
    tokens, here, later = batch["tokens"], batch["here"], batch["later"]
    index = jnp.arange(tokens.shape[1])[None] - batch["begin"]
    nth = jnp.arange(tokens.shape[0])[:, None]
    where = jnp.where(here, index, block_length)

    def placed(values, rest):
        blank = jnp.full((tokens.shape[0], block_length), rest, values.dtype)
        return blank.at[nth, where].set(values, mode="drop")

    def step(carry):
        number, masked, going, found = carry
        seen = jnp.where(masked | later, mask_id, tokens)
        hidden = passes.hidden(how, params, seen)
        raw = losses.logits_of(model, params, hidden, ban_mask=False)
        token = jnp.argmax(raw.at[..., mask_id].set(-jnp.inf), axis=-1)
        said = jnp.take_along_axis(jax.nn.softmax(raw), token[..., None], -1)[..., 0]
        is_right = token == tokens
        now = (placed(said, 1.0), placed(is_right, False), placed(here, False))
        counted = now[2] & going[:, None]
        found = jax.tree.map(
            lambda kept, new: kept.at[:, number].set(new),
            found, Rerun(now[0], now[1], counted),
        )  # fmt: skip
        filled = masked & is_right
        masked &= ~filled
        return number + 1, masked, going & filled.any(1) & masked.any(1), found

    shape = (tokens.shape[0], block_length, block_length)
    none = jnp.zeros(shape, bool)
    found = Rerun(jnp.ones(shape, jnp.float32), none, none)
    first = (jnp.int32(0), here, here.any(1), found)
    return jax.lax.while_loop(lambda carry: carry[2].any(), step, first)[3]


def label_nats(params: Params, found: Rerun) -> Array:
    """Nats [B, S, K] of every label."""
    apply = filters.make_filter(found.confidence.shape[-1]).apply
    said = jax.vmap(jax.vmap(functools.partial(apply, params)))(found.confidence)
    return optax.sigmoid_binary_cross_entropy(said, found.is_right.astype(said.dtype))


def loss(config):
    how, own = passes.of_run(config), config.options

    def apply(params, frozen, batch, key, step):
        del key, step
        found = rerun(config.model, frozen["target"], batch, own.block_length, how)
        places = jnp.zeros(found.counted.shape[1:], jnp.int32)
        value, aux = losses.mean(label_nats(params, found), found.counted, places)
        # No token is predicted here: the answers are in the input.
        return value, {**aux, "scored": jnp.zeros_like(found.counted)}

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sums(model, length, params, target, batch, is_row):
    found = rerun(model, target, batch, length)
    counted = found.counted & is_row[:, None, None]
    nats = jnp.where(counted, label_nats(params, found), 0.0).sum()
    steps = counted.any(-1).sum()
    return jnp.stack([nats, counted.sum(), steps, counted.any((1, 2)).sum()])


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """Bits a label, and the greedy decode's calls a block, which knows the answer."""
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    model, length = config.model, config.options.block_length
    drawn, total = noise(config), np.zeros(4)
    for number, (tokens, scored) in enumerate(evaluate.parts(rows)):
        batch = drawn({"tokens": put(tokens)}, jax.random.key(number))
        target, is_row = frozen["target"], put(scored.any(1))
        total += np.asarray(_sums(model, length, params, target, batch, is_row))
    nats, labels, steps, blocks = np.maximum(total, [0, 1, 0, 1]).tolist()
    return {
        "bits_per_label": float(evaluate.bits(nats) / labels),
        "greedy_calls_per_block": steps / blocks,
    }


def holds(config):
    return {"kind": "filter", "block_length": config.options.block_length}


def decoded_by(options: dict) -> tuple[str, dict]:
    del options
    return "learn2pd", {}


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, noise=noise, decoded_by=decoded_by
)
