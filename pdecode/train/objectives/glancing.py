"""A block of masks behind a text, filled at once, after a glance at some of the answer.

The Spec-Drafter of SpecDec (Xia et al., 2022, arXiv:2203.16487), trained as glancing
models are (Qian et al., 2021, arXiv:2008.07905): of a row a prefix is told and the next
tokens are masked; what stands behind them is not there. A first pass, without a
gradient, says how many of them the model gets wrong; a share of that number is revealed
at random places, and the loss is the cross entropy of the others. The share falls from
`reveal_first` to `reveal_last` over the run. `methods.spec_dec` decodes with it.

Deviation: texts are the data's own. The paper's are the target's; rows that a target
wrote come as data="rows".
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pdecode.contracts import Params
from pdecode.models import transformer
from pdecode.models.config import Config
from pdecode.train import evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.passes import Pass


@dataclasses.dataclass(frozen=True)
class Options:
    block_length: int = 25
    reveal_first: float = 0.5  # of the wrong tokens, at the first step
    reveal_last: float = 0.3  # at the last one

    def __post_init__(self):
        ranges = {"reveal_first": (0, 1), "reveal_last": (0, 1)}
        check_ranges(self, {"block_length": (1, float("inf")), **ranges})


NEEDS = Needs(
    attention=("bidirectional",),
    predicts=("masked",),
    why="masks of a block see each other and the text before them",
    mask=True,
)


def start(config, key, given):
    field = "row_len" if config.short_len is None else "short_len"
    if getattr(config, field) <= config.options.block_length:
        raise ValueError(
            f"{field}={getattr(config, field)} must be longer than block_length="
            f"{config.options.block_length}: a block stands behind a text"
        )
    return transformer.init(config.model, key) if given is None else given


def noise(config):
    size = config.options.block_length

    def apply(batch, key):
        key_first, key_order = jax.random.split(key)
        num_rows, length = batch["tokens"].shape
        first = jax.random.randint(key_first, (num_rows,), 1, length - size + 1)
        order = jax.random.uniform(key_order, (num_rows, length))
        return {**batch, "first": first, "order": order}

    return apply


def blank_logits(
    how: Pass, params: Params, tokens: Array, hidden: Array, stop: Array
) -> Array:
    """Logits [B, L, V] of rows [B, L] that end before `stop` [B], `hidden` masked."""
    model = how.model
    assert model.mask_id is not None, "the objective asks for one"
    place = jnp.arange(tokens.shape[1])[None]
    seen = jnp.where(hidden, model.mask_id, tokens)
    segments = jnp.where(place < stop[:, None], 0, -1)
    return losses.logits_of(
        model, params, passes.run(how, params, seen, segments).hidden
    )


def still_hidden(
    guessed: Array, tokens: Array, block: Array, order: Array, share: Array
) -> Array:
    """bool [B, L]: `block` less what a glance reveals.

    Where n of a block's tokens are guessed wrong, round(share * n) of all its tokens
    are revealed: those that come first in `order`.
    """
    num_wrong = (block & (guessed != tokens)).sum(1)
    count = jnp.round(share * num_wrong)[:, None]
    rank = jnp.argsort(jnp.argsort(jnp.where(block, order, 2.0), axis=1), axis=1)
    return block & (rank >= count)


def in_block(tokens: Array, first: Array, size: int) -> Array:
    """bool [B, L]."""
    place = jnp.arange(tokens.shape[1])[None]
    return (place >= first[:, None]) & (place < first[:, None] + size)


def loss(config):
    how, own, given_ids = passes.of_run(config), config.options, config.given_ids

    def apply(params, frozen, batch, key, step):
        del frozen, key
        tokens, first = batch["tokens"], batch["first"]
        block, stop = (
            in_block(tokens, first, own.block_length),
            first + own.block_length,
        )
        hidden = block
        if own.reveal_first > 0 or own.reveal_last > 0:
            fixed = jax.lax.stop_gradient(params)
            guessed = jnp.argmax(blank_logits(how, fixed, tokens, block, stop), -1)
            done = step / max(config.steps - 1, 1)
            share = own.reveal_first + (own.reveal_last - own.reveal_first) * done
            hidden = still_hidden(guessed, tokens, block, batch["order"], share)
        logits = blank_logits(how, params, tokens, hidden, stop)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
        scored = hidden & losses.is_scored(tokens, given_ids)
        return losses.mean(nats, scored, jnp.arange(tokens.shape[1]))

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _block_sums(model: Config, size: int, given_ids, params, rows, first):
    """Nats of a block's tokens, their number, hits and hits before a miss, [4, B]."""
    how = passes.of_decoding(model)
    block = in_block(rows, first, size)
    logits = blank_logits(how, params, rows, block, first + size)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, rows)
    hits = jnp.argmax(logits, -1) == rows
    run = jnp.cumprod(hits | ~block, 1) * block
    counted = block & losses.is_scored(rows, given_ids)
    sums = [jnp.where(counted, nats, 0.0), counted, counted & hits, run]
    return jnp.stack([each.sum(1, dtype=jnp.float32) for each in sums])


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """Of the blocks at the end of rows: bits a token without a glance, how many best
    guesses are right, and how many of a block before the first wrong one."""
    del frozen
    size = config.options.block_length
    rows = evaluate.rows(text, row_len, size, max_rows)
    total, count = np.zeros(4), 0
    for tokens, scored in evaluate.parts(rows):
        whole = scored[:, -size:].all(1)
        first = np.full(len(tokens), row_len - size, np.int32)
        static = config.model, size, text.given_ids
        found = _block_sums(*static, params, put(tokens), put(first))
        total += np.asarray(found)[:, whole].sum(1)
        count += int(whole.sum())
    nats, tokens, hits, runs = total.tolist()
    return {
        f"bits_per_{text.unit}": float(evaluate.bits(nats) / max(tokens, 1)),
        "accuracy": hits / max(tokens, 1),
        "drafted_right": runs / max(count, 1),
    }


def holds(config):
    del config
    return {"kind": "transformer"}


def decoded_by(options: dict) -> tuple[str, dict]:
    return "spec_dec", {"num_draft": options["block_length"]}


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, noise=noise, decoded_by=decoded_by
)
