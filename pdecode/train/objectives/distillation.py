"""A drafter learns the laws of the target that will judge it.

DistillSpec (Zhou et al., 2023, arXiv:2310.08461): a divergence between the target's law
and the drafter's at every token of texts that are given, or that one of the two writes.
What a verifier accepts of a draft is sum min(p, q) = 1 - total variation, so "tvd" is
the quantity itself. "tvd++" (Goel et al., 2024, arXiv:2403.00858) is its policy
gradient, whose reward 1{p > q} is normalised over tokens and vocabulary. The sum over
the vocabulary is exact, where a baseline changes nothing: it is "tvd" by one over the
rewards' deviation.

Texts are written inside the step, at temperature 1, from the beginnings of given rows,
and no gradient passes through their drawing. Cost: a forward pass of the target over
each row, and where texts are written row_len - given_len calls of their writer besides.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import decode, methods, rng
from pdecode.contracts import Params, Prompt
from pdecode.models import transformer
from pdecode.models.config import Config
from pdecode.train import evaluate, losses, passes, sources
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.objectives import autoregressive
from pdecode.train.passes import Pass

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "tvd", "tvd++")
WRITERS = ("given", "drafter", "target")


@dataclasses.dataclass(frozen=True)
class Options:
    divergence: str = "tvd"
    jsd_beta: float = 0.5  # the target's weight in the mixture of "jsd"
    texts: str = "given"  # who wrote what is learned
    share: float = 1.0  # of steps whose texts are written; the others' are given
    given_len: int = 32  # tokens of a row that a writer goes on from

    def __post_init__(self):
        for field, known in (("divergence", DIVERGENCES), ("texts", WRITERS)):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"unknown {field} {getattr(self, field)!r}; known: {known}"
                )
        check_ranges(self, {"given_len": (1, math.inf), "share": (0, 1)})
        check_ranges(self, {"jsd_beta": (1e-3, 1 - 1e-3)})


NEEDS = Needs(
    attention=("causal",),
    predicts=("next",),
    why="a drafter says what comes next, having seen what its target has seen",
    frozen=("target",),
    of_any_size=("target",),
)


class Pair(NamedTuple):
    """Drafter and target, and how they are run; hashable."""

    drafter: Pass
    target: Pass


def log_law(how: Pass, params: Params, tokens: Array) -> Array:
    """Log-law [B, L-1, V] of every token but the first, given those before it."""
    hidden = passes.hidden(how, params, tokens)[:, :-1]
    return jax.nn.log_softmax(losses.logits_of(how.model, params, hidden))


def divergence(options: Options, wanted: Array, found: Array, scored: Array) -> Array:
    """D(p, q) [B, L-1] from log-laws [B, L-1, V] of target and drafter.

    Of "tvd++" it is what has the gradient, normalised over what is scored; its value
    means nothing.
    """
    p, q = jnp.exp(wanted), jnp.exp(found)
    if options.divergence == "forward_kl":
        return (p * (wanted - found)).sum(-1)
    if options.divergence == "reverse_kl":
        return (q * (found - wanted)).sum(-1)
    if options.divergence == "jsd":
        beta = options.jsd_beta
        mixed = jnp.logaddexp(wanted + math.log(beta), found + math.log(1 - beta))
        ahead, behind = p * (wanted - mixed), q * (found - mixed)
        return (beta * ahead + (1 - beta) * behind).sum(-1)
    if options.divergence == "tvd":
        return 1 - jnp.minimum(p, q).sum(-1)
    advantage = advantages(p, q, scored)
    return -(jax.lax.stop_gradient(q * advantage) * found).sum(-1)


def advantages(p: Array, q: Array, scored: Array) -> Array:
    """(1{p > q} - mean) / deviation [B, L-1, V], over all tokens of scored places."""
    reward, counted = (p > q).astype(jnp.float32), scored[..., None]
    size = jnp.maximum(scored.sum() * p.shape[-1], 1)
    mean = jnp.where(counted, reward, 0).sum() / size
    variance = jnp.where(counted, (reward - mean) ** 2, 0).sum() / size
    # Of equal laws no token has more: nothing is left to learn.
    return (reward - mean) / jnp.sqrt(jnp.maximum(variance, 1e-8))


def written(
    model: Config, params: Params, tokens: Array, row_ids: Array, given_len: int, key
) -> tuple[Array, Array]:
    """Rows [B, L] that `model` writes on from their beginnings, and what is its own.

    Its EOS ends a row; what stands behind it is nobody's.
    """
    batch, length = tokens.shape
    num_new = length - given_len
    prompt = Prompt(
        tokens[:, :given_len],
        jnp.full(batch, given_len, jnp.int32),
        row_ids,
        jnp.full(batch, num_new, jnp.int32),
    )
    decoder = methods.autoregressive(
        transformer.make_model(model), max_new_tokens=num_new, temperature=1.0
    )
    made, _ = decode.decode(decoder, jax.lax.stop_gradient(params), prompt, key)
    return made.tokens[:, :length], made.committed[:, :length]


def noise(config):
    def apply(batch, key):
        if config.options.texts == "given":
            return batch
        size = batch["tokens"].shape[:1]
        names = jax.random.randint(key, size, 0, jnp.iinfo(jnp.int32).max)
        return {**batch, "row_ids": names}

    return apply


def loss(config):
    _check(config)
    pair, own = _pair(config), config.options
    writer = pair.target if own.texts == "target" else pair.drafter
    key_texts, key_steps = jax.random.split(rng.key(config.seed))

    def learned(params, frozen, batch, step):
        """Rows [B, L], and which of their tokens are learned."""
        tokens = batch["tokens"]
        given = tokens, losses.is_scored(tokens, config.given_ids)
        if own.texts == "given" or own.share == 0:
            return given
        models = frozen["target"] if own.texts == "target" else params
        write = functools.partial(
            written, writer.model, models, tokens, batch["row_ids"], own.given_len,
            key_texts,
        )  # fmt: skip
        if own.share == 1:
            return write()
        # All parts of a batch agree.
        drawn = jax.random.uniform(jax.random.fold_in(key_steps, step)) < own.share
        return jax.lax.cond(drawn, write, lambda: given)

    def apply(params, frozen, batch, key, step):
        del key
        tokens, scored = learned(params, frozen, batch, step)
        scored = scored[:, 1:]
        wanted = log_law(pair.target, frozen["target"], tokens)
        found = log_law(pair.drafter, params, tokens)
        places = jnp.arange(1, tokens.shape[1])
        apart = divergence(own, jax.lax.stop_gradient(wanted), found, scored)
        value, aux = losses.mean(apart, scored, places)
        # A token's own loss is the drafter's: the divergence knows of no answer.
        return value, {**aux, "nats": losses.of_tokens(-found, tokens[:, 1:])}

    return apply


def _pair(config) -> Pair:
    target = sources.model_of(config, "target")
    limit = target.max_positions
    if limit is not None and config.row_len > limit:
        raise ValueError(
            f"row_len={config.row_len} exceeds the {limit} positions of "
            f"frozen.target={config.frozen['target']}"
        )
    return Pair(passes.of_run(config), passes.of_run(config, target))


def _check(config) -> None:
    own = config.options
    length = config.row_len if config.short_len is None else config.short_len
    if own.texts != "given" and own.given_len >= length:
        raise ValueError(
            f"given_len={own.given_len} leaves nothing to write of rows of {length}: "
            "choose a smaller one"
        )
    if own.divergence == "tvd++" and config.accumulate > 1:
        raise ValueError(
            f"accumulate={config.accumulate}: divergence='tvd++' is normalised over "
            "the whole batch, which parts do not know: set accumulate=1"
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _row_figures(pair: Pair, given_ids, params, target, rows, scored):
    """Sums over what is scored: the drafter's nats, sum min(p, q), and the count."""
    counted = scored[:, 1:] & losses.is_scored(rows[:, 1:], given_ids)
    wanted = log_law(pair.target, target, rows)
    found = log_law(pair.drafter, params, rows)
    nats = losses.of_tokens(-found, rows[:, 1:])
    overlap = jnp.exp(jnp.minimum(wanted, found)).sum(-1)
    each = [jnp.where(counted, x, 0.0).sum() for x in (nats, overlap)]
    return (*each, counted.sum())


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """Bits of the drafter, and the chance that one token of it is accepted.

    On a given text, at temperature 1: the mean of sum min(p, q) over its tokens.
    """
    drafter, target = config.model, sources.model_of(config, "target")
    pair = Pair(passes.of_decoding(drafter), passes.of_decoding(target))
    rows = evaluate.rows(text, row_len, row_len // 2, max_rows)
    sums = [0.0, 0.0, 0.0]
    for part in evaluate.parts(rows):
        some = _row_figures(
            pair, text.given_ids, params, frozen["target"], *map(put, part)
        )
        sums = [total + float(one) for total, one in zip(sums, some, strict=True)]
    nats, overlap, count = sums
    return {
        f"bits_per_{text.unit}": evaluate.bits(nats) / rows.num_units,
        "acceptance": overlap / max(count, 1),
    }


OBJECTIVE = Objective(
    Options,
    NEEDS,
    autoregressive.start,
    loss,
    figures,
    autoregressive.holds,
    noise=noise,
)
