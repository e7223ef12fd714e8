"""Masked tokens to fill in, and wrong tokens to put right: a model that can revise.

ReDiff (Ji et al., 2025, arXiv:2510.19871). First stage: of an answer a random share is
masked, as for LLaDA, and a small share of the rest is replaced by random tokens. The
loss is the masked tokens' cross entropy over their rate, that of the true tokens where
others stand, and that of tokens that stay as they are. Second stage, in `own_errors` of
the rows: all masked tokens are filled at once by the model's own best guesses, and only
where these are wrong is there a loss. All sums are divided by the answer's length.
`methods.refine` decodes with the result.

Deviations: the paper also injects wrong captions; its drafts are made by several steps
and corrected by an expert model, where here the expert is the row itself.
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
from pdecode.train.objectives import masked_diffusion
from pdecode.train.objectives.masked_diffusion import is_answer
from pdecode.train.passes import Pass


@dataclasses.dataclass(frozen=True)
class Options:
    replaced: float = 0.05  # of what is not masked, by random tokens
    replaced_weight: float = 1.0
    kept_weight: float = 1.0
    own_errors: float = 0.0  # rows of the second stage
    # As in masked_diffusion: a row up to the first of these tokens is a prompt.
    prompt_end: int | tuple[int, ...] | None = None

    def __post_init__(self):
        weights = dict.fromkeys(("replaced_weight", "kept_weight"), (0, float("inf")))
        check_ranges(self, {"replaced": (0, 1), "own_errors": (0, 1), **weights})
        checked = masked_diffusion.Options(prompt_end=self.prompt_end)
        object.__setattr__(self, "prompt_end", checked.prompt_end)


NEEDS = Needs(
    attention=("bidirectional",),
    predicts=("masked",),
    why="what is revised stands between what is known on both sides",
    shift=True,
    mask=True,
)


def start(config, key, given):
    return transformer.init(config.model, key) if given is None else given


def noise(config):
    own, model = config.options, config.model

    def apply(batch, key):
        tokens = batch["tokens"]
        keys = jax.random.split(key, 5)
        rate, weight = masked_diffusion.mask_rates(tokens.shape[0], keys[0], "llada")
        answer = is_answer(tokens, own.prompt_end)
        masked = (jax.random.uniform(keys[1], tokens.shape) < rate[:, None]) & answer
        replaced = jax.random.uniform(keys[2], tokens.shape) < own.replaced
        # Any token but the mask.
        other = jax.random.randint(keys[3], tokens.shape, 0, model.vocab_size - 1)
        other += other >= model.mask_id
        drafts = jax.random.uniform(keys[4], tokens.shape[:1]) < own.own_errors
        return {
            **batch, "masked": masked, "weight": weight, "replaced": replaced & answer,
            "other": other, "drafts": drafts,
        }  # fmt: skip

    return apply


def laws(how: Pass, params: Params, shown: Array) -> Array:
    """Logits [B, L, V] of every position of a canvas [B, L]."""
    return losses.logits_of(how.model, params, passes.hidden(how, params, shown))


def shown(
    how: Pass, params: Params, batch: dict, has_drafts: bool
) -> tuple[Array, Array, Array]:
    """(canvas, what is masked, what is wrong on purpose), all [B, L].

    In rows of the second stage nothing is masked any more, and wrong is where the
    model's own guess is. No gradient comes of a guess.
    """
    tokens, masked = batch["tokens"], batch["masked"]
    assert how.model.mask_id is not None, "the objective asks for one"
    wrong = batch["replaced"] & ~masked
    canvas = jnp.where(wrong, batch["other"], tokens)
    canvas = jnp.where(masked, how.model.mask_id, canvas)
    if not has_drafts:
        return canvas, masked, wrong
    drafts = batch["drafts"][:, None]
    begun = jnp.where(masked, how.model.mask_id, tokens)
    guess = jnp.argmax(laws(how, jax.lax.stop_gradient(params), begun), -1)
    filled = jnp.where(masked, guess, tokens)
    return (
        jnp.where(drafts, filled, canvas),
        masked & ~drafts,
        jnp.where(drafts, masked & (guess != tokens), wrong),
    )


def loss(config):
    how, own = passes.of_run(config), config.options

    def apply(params, frozen, batch, key, step):
        del frozen, key, step
        tokens = batch["tokens"]
        canvas, masked, wrong = shown(how, params, batch, own.own_errors > 0)
        logits = laws(how, params, canvas)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
        answer = is_answer(tokens, own.prompt_end)
        kept = answer & ~masked & ~wrong & ~batch["drafts"][:, None]
        weight = jnp.where(masked, batch["weight"][:, None], 0.0)
        weight = jnp.where(wrong, own.replaced_weight, weight)
        weight = jnp.where(kept, own.kept_weight, weight)
        count = answer.sum(dtype=jnp.float32)
        value = jnp.where(weight > 0, nats * weight, 0.0).sum()
        # What is kept is seen where it is predicted: it is no prediction.
        return value / jnp.maximum(count, 1.0), {
            "weight": count,
            "nats": nats,
            "scored": masked | wrong,
            "places": jnp.arange(tokens.shape[1]),
        }

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1))
def _hits(model: Config, prompt_end, params, batch, scored):
    """Of replaced and of other tokens: best guesses that are true, and their number."""
    how = passes.of_decoding(model)
    canvas, masked, wrong = shown(how, params, batch, False)
    tokens = batch["tokens"]
    hits = jnp.argmax(laws(how, params, canvas), -1) == tokens
    scored = scored & is_answer(tokens, prompt_end)
    parts = [scored & wrong, scored & ~wrong & ~masked]
    return jnp.stack([jnp.stack([(p & hits).sum(), p.sum()]) for p in parts])


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """The bound of `masked_diffusion.figures`; wrong tokens put right, right ones kept.

    Both among few masks or many, as in training.
    """
    own = masked_diffusion.Options(prompt_end=config.options.prompt_end)
    plain = dataclasses.replace(config, objective="masked_diffusion", options=own)
    sizes = {"row_len": row_len, "max_rows": max_rows, "put": put}
    found = masked_diffusion.figures(plain, params, frozen, text, **sizes)
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    drawn, total = noise(config), np.zeros((2, 2))
    for number, (tokens, scored) in enumerate(evaluate.parts(rows)):
        batch = drawn({"tokens": put(tokens)}, jax.random.key(number))
        static = config.model, own.prompt_end
        total += np.asarray(_hits(*static, params, batch, put(scored)))
    right = total[:, 0] / np.maximum(total[:, 1], 1)
    return {**found, "put_right": float(right[0]), "kept_right": float(right[1])}


def holds(config):
    del config
    return {"kind": "transformer"}


OBJECTIVE = Objective(Options, NEEDS, start, loss, figures, holds, noise=noise)
