"""Certainty forcing: a masked model made sure of its own answers, early and everywhere.

dParallel (Chen et al., 2025, arXiv:2509.26488). Rows are prompts with answers that the
model gave itself, one token at a time, and that are right. One block of a row is
active: what stands before it is told, what comes after it is masked, and of the block a
random part is masked in one copy and the rest in a second copy. The loss of a copy is
the mean cross entropy of its masked tokens and `beta` times the mean entropy of the
sharpened laws at those of them whose likeliest token is right already: what is wrong is
corrected before it is made certain. `dparallel` decodes the result.

The paper trains adapters (`TrainConfig.adapters`); without them all parameters are.
Deviation: blocks that hold nothing but what follows an end of text are never active.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pdecode.contracts import Params
from pdecode.models.config import Config
from pdecode.sampling import entropy
from pdecode.train import active, evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Objective
from pdecode.train.objectives import masked_diffusion
from pdecode.train.objectives.masked_diffusion import is_answer
from pdecode.train.passes import Pass


@dataclasses.dataclass(frozen=True)
class Options:
    beta: float = 2.0  # of the entropies; the paper's for LLaDA, 1 for Dream
    sharpness: float = 0.5  # the temperature of the laws they are of
    mask_rate: float = 0.5
    block_length: int | None = 32  # None: the answer is one block, as for Dream
    # As in masked_diffusion: a row up to the first of these tokens is a prompt.
    prompt_end: int | tuple[int, ...] | None = None

    def __post_init__(self):
        most = float("inf")
        ranges = {"beta": (0, most), "mask_rate": (0, 1), "block_length": (1, most)}
        check_ranges(self, ranges | {"sharpness": (1e-3, most)})
        checked = masked_diffusion.Options(prompt_end=self.prompt_end)
        object.__setattr__(self, "prompt_end", checked.prompt_end)


def start(config, key, given):
    active.length_of(config.model, config.options.block_length)
    return masked_diffusion.start(config, key, given)


def _numbers(model: Config, own: Options, tokens: Array) -> tuple[Array, Array]:
    """The answer's places, bool [B, L], and the block of each, int32 [B, L]."""
    answer = is_answer(tokens, own.prompt_end)
    is_absolute = model.attention == "block_causal"
    length = active.length_of(model, own.block_length)
    return answer, active.numbers(answer, length, is_absolute)


def noise(config):
    def apply(batch, key):
        key_block, key_mask = jax.random.split(key)
        tokens = batch["tokens"]
        answer, number = _numbers(config.model, config.options, tokens)
        filler = active.behind_end(tokens, answer, config.model.eos_ids)
        block = active.drawn(number, filler, key_block)[:, None]
        draw = jax.random.uniform(key_mask, tokens.shape)
        masked = draw < config.options.mask_rate
        return {
            **batch, "masked": masked, "here": number == block, "later": number > block
        }  # fmt: skip

    return apply


def laws(
    model: Config, params: Params, tokens: Array, masked: Array, sharpness: float,
    how: Pass | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Of every place [B, L], given the tokens that are not masked: the nats of its
    token, the entropy of its law at temperature `sharpness`, and whether its likeliest
    token is the true one.
    """
    how = passes.of_decoding(model) if how is None else how
    assert model.mask_id is not None, "the objective asks for one"
    seen = jnp.where(masked, model.mask_id, tokens)
    logits = losses.logits_of(model, params, passes.hidden(how, params, seen))
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
    spread = entropy(jax.nn.log_softmax(logits / sharpness))
    return nats, spread, jnp.argmax(logits, axis=-1) == tokens


def loss(config):
    how, own = passes.of_run(config), config.options

    def apply(params, frozen, batch, key, step):
        del frozen, key, step
        tokens, here = batch["tokens"], batch["here"]
        copies = jnp.stack([here & batch["masked"], here & ~batch["masked"]], axis=1)
        hidden = copies | batch["later"][:, None]
        rows = jnp.repeat(tokens, 2, axis=0)
        found = laws(
            config.model, params, rows, hidden.reshape(rows.shape), own.sharpness, how
        )
        nats, spread, is_right = (each.reshape(copies.shape) for each in found)
        of_copy = losses.row_mean(nats, copies)
        of_copy += own.beta * losses.row_mean(spread, copies & is_right)
        value = of_copy.sum(axis=1).mean()
        count = jnp.float32(tokens.shape[0])
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), copies.shape[1:])
        return value, {
            "weight": count, "nats": nats, "scored": copies, "places": places
        }  # fmt: skip

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1))
def _first_entropy(model, own, params, rows, scored):
    """The sum of the entropies of first blocks that are all masks, and their number."""
    answer, number = _numbers(model, own, rows)
    nothing = active.behind_end(rows, answer, model.eos_ids)
    _, spread, _ = laws(model, params, rows, answer, 1.0)
    counted = (number == 0) & ~nothing & scored.any(1, keepdims=True)
    return jnp.where(counted, spread, 0.0).sum(), counted.sum()


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """The evidence bound, and the mean entropy, in nats, with which a decode begins."""
    sizes = {"row_len": row_len, "max_rows": max_rows, "put": put}
    made = masked_diffusion.figures(config, params, frozen, text, **sizes)
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    static = config.model, config.options
    total = np.zeros(2)
    for part in evaluate.parts(rows):
        total += np.array(_first_entropy(*static, params, *map(put, part)), float)
    return {**made, "first_entropy_nats": float(total[0] / max(total[1], 1))}


OBJECTIVE = Objective(
    Options,
    masked_diffusion.NEEDS,
    start,
    loss,
    figures,
    masked_diffusion.holds,
    noise=noise,
)
