"""Right answers rewarded along the very canvases that a fast decode went through.

CJ-GRPO (Yang et al., 2025, arXiv:2509.23924). For every prompt a group of answers is
drawn with the ascending steps of `methods.ascending_steps`, which fill 1, 2, 4, ...
positions; an answer that is the row's own, to its end, is worth 1, any other 0, and its
advantage is that less its group's mean. The probability of what a step filled is asked
of the canvas that the step saw. Of each step the loss has the mean over its tokens of
- ratio * advantage + beta * KL, the KL to a frozen reference by r - 1 - log r; steps
are summed, answers averaged.

Deviation: one update for each draw, so that the ratio to the policy that drew is one
and its clipping, which could do nothing, is left out.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import rng
from pdecode.contracts import Params
from pdecode.models import transformer
from pdecode.models.config import Config
from pdecode.rules import commit
from pdecode.train import active, evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.objectives import masked_diffusion
from pdecode.train.objectives.masked_diffusion import is_answer
from pdecode.train.passes import Pass


@dataclasses.dataclass(frozen=True)
class Options:
    group: int = 8  # answers to a prompt
    beta: float = 0.01  # of the KL
    temperature: float = 1.0  # of what is drawn
    # As in masked_diffusion: a row up to the first of these tokens is a prompt.
    prompt_end: int | tuple[int, ...] | None = None

    def __post_init__(self):
        most = float("inf")
        ranges = {"group": (2, most), "beta": (0, most), "temperature": (1e-3, most)}
        check_ranges(self, ranges)
        checked = masked_diffusion.Options(prompt_end=self.prompt_end)
        object.__setattr__(self, "prompt_end", checked.prompt_end)


NEEDS = Needs(
    attention=("bidirectional",),
    predicts=("masked",),
    why="the steps of the decode fill masks of a canvas",
    shift=True,
    mask=True,
    frozen=("reference",),
)


class Rollout(NamedTuple):
    """Answers N and the S steps that made them."""

    tokens: Array  # int32 [N, L]
    canvases: Array  # int32 [S, N, L]  what each step saw
    filled: Array  # bool [S, N, L]
    log_probs: Array  # float32 [S, N, L]  of the tokens it drew, filled or not


def start(config, key, given):
    return transformer.init(config.model, key) if given is None else given


def noise(config):
    del config

    def apply(batch, key):
        shape = batch["tokens"].shape[:1]
        return {**batch, "seed": jax.random.bits(key, shape, jnp.uint32)}

    return apply


def raw_logits(how: Pass, params: Params, canvas: Array) -> Array:
    hidden = passes.hidden(how, params, canvas)
    return losses.logits_of(how.model, params, hidden, ban_mask=False)


def log_law(model: Config, raw: Array, temperature) -> Array:
    """What is drawn from: without the mask."""
    assert model.mask_id is not None, "the objective asks for one"
    raw = raw.at[..., model.mask_id].set(-jnp.inf)
    return jax.nn.log_softmax(raw / jnp.where(temperature > 0, temperature, 1.0))


def rollout(
    how: Pass, params: Params, tokens: Array, answer: Array, keys: Array, temperature
) -> Rollout:
    """Answers of rows [N, L] in ascending steps; keys [N]; no gradient.

    As `methods.ascending_steps` at temperature 0.
    """
    params = jax.lax.stop_gradient(params)
    assert how.model.mask_id is not None, "the objective asks for one"
    length = tokens.shape[1]
    place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], tokens.shape)

    def step(canvas, number):
        raw = raw_logits(how, params, canvas)
        law = log_law(how.model, raw, temperature)
        turn = jnp.broadcast_to(number, tokens.shape[:1])
        drawn = rng.gumbel(
            rng.noise(keys, rng.TARGET, place, round=turn), law.shape[-1]
        )
        token = jnp.argmax(law + jnp.where(temperature > 0, drawn, 0.0), -1)
        # The order is by the law that has the mask, as the decoder's.
        sure = losses.of_tokens(jax.nn.log_softmax(raw), token)
        is_open = canvas == how.model.mask_id
        num_open, ladder = is_open.sum(1), 2**number
        count = jnp.where(num_open <= 3 * ladder, num_open, ladder)
        filled = jax.vmap(commit.best)(sure, is_open, count)
        after = jnp.where(filled, token, canvas).astype(jnp.int32)
        return after, (canvas, filled, losses.of_tokens(law, token))

    first = jnp.where(answer, how.model.mask_id, tokens)
    num_steps = max(length.bit_length() - 1, 1)
    made, steps = jax.lax.scan(step, first, jnp.arange(num_steps))
    return jax.lax.stop_gradient(Rollout(made, *steps))


def rewards(made: Array, tokens: Array, answer: Array, eos_ids: tuple) -> Array:
    """float32 [N]: 1 where an answer is the row's, up to the row's first EOS."""
    counted = answer & ~active.behind_end(tokens, answer, eos_ids)
    return ((made == tokens) | ~counted).all(1).astype(jnp.float32)


def path_log_probs(how: Pass, params: Params, found: Rollout, temperature) -> Array:
    """float32 [S, N, L]: of the tokens made, by each step's own canvas."""
    steps, num, length = found.canvases.shape
    flat = found.canvases.reshape(steps * num, length)
    law = log_law(how.model, raw_logits(how, params, flat), temperature)
    wanted = jnp.broadcast_to(found.tokens[None], found.canvases.shape)
    return losses.of_tokens(law.reshape(steps, num, length, -1), wanted)


def objective_of(
    log_probs: Array, old: Array, reference: Array, filled: Array, advantage: Array,
    beta: float,
) -> Array:  # fmt: skip
    """The loss of every answer, [N]; others [S, N, L], advantage [N]."""
    ratio = jnp.exp(jnp.where(filled, log_probs - old, 0.0))
    gap = jnp.where(filled, reference - log_probs, 0.0)
    kl = jnp.exp(gap) - 1 - gap
    each = jnp.where(filled, beta * kl - ratio * advantage[None, :, None], 0.0)
    return (each.sum(-1) / jnp.maximum(filled.sum(-1), 1)).sum(0)


def groups(batch: dict, group: int) -> tuple[Array, Array]:
    """(rows [B * G, L], keys [B * G]) of a batch, `group` of each row in turn."""
    keys = jax.vmap(jax.random.key)(batch["seed"])
    nth = jnp.arange(group)
    keys = jax.vmap(
        lambda key: jax.vmap(functools.partial(jax.random.fold_in, key))(nth)
    )(keys)
    return jnp.repeat(batch["tokens"], group, 0), keys.reshape(-1)


def loss(config):
    how, own = passes.of_run(config), config.options
    eos_ids = config.model.eos_ids

    def apply(params, frozen, batch, key, step):
        del key, step
        rows, keys = groups(batch, own.group)
        answer = is_answer(rows, own.prompt_end)
        found = rollout(how, params, rows, answer, keys, own.temperature)
        reward = rewards(found.tokens, rows, answer, eos_ids).reshape(-1, own.group)
        advantage = (reward - reward.mean(1, keepdims=True)).reshape(-1)
        log_probs = path_log_probs(how, params, found, own.temperature)
        fixed = jax.lax.stop_gradient(frozen["reference"])
        reference = path_log_probs(how, fixed, found, own.temperature)
        value = objective_of(
            log_probs, found.log_probs, reference, found.filled, advantage, own.beta
        )
        # What is scored is a reward, and no token.
        none = jnp.zeros(batch["tokens"].shape, jnp.float32)
        places = jnp.arange(none.shape[1])
        count = jnp.float32(len(none))
        return value.mean(), {
            "weight": count, "nats": none, "scored": none > 0, "places": places
        }  # fmt: skip

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1))
def _num_right(model: Config, prompt_end, params, rows, is_row):
    how, answer = passes.of_decoding(model), is_answer(rows, prompt_end)
    keys = rng.row_keys(jax.random.key(0), jnp.arange(len(rows)))
    found = rollout(how, params, rows, answer, keys, 0.0)
    return (rewards(found.tokens, rows, answer, model.eos_ids) * is_row).sum()


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """The share of answers that are right, decoded in ascending steps."""
    del frozen
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    static = config.model, config.options.prompt_end
    total = np.zeros(2)
    for tokens, scored in evaluate.parts(rows):
        is_row = scored.any(1)
        right = float(_num_right(*static, params, put(tokens), put(is_row)))
        total += right, is_row.sum()
    return {"right_answers": float(total[0] / max(total[1], 1))}


def holds(config):
    del config
    return {"kind": "transformer"}


OBJECTIVE = Objective(Options, NEEDS, start, loss, figures, holds, noise=noise)
