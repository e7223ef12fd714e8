"""One pass from noise to the tokens that an autoregressive model makes of it.

Distilled decoding (Liu et al., 2024, arXiv:2412.17153). A row is a record of
`train.noise_pairs`: tokens that a teacher drew as a function of noise, position by
position (`rules.flows`), and the name of that noise. The student reads the tokens
before a place of `starts`, noise from there on, and predicts every token that is noise:
cross entropy, plus `code_weight` times the squared distance of the mean predicted code
from the code. Nothing is learned from data but what the teacher learned. The law of the
pairs is the teacher's; what the student makes of them is lossy.
`methods.distilled_decoding` decodes the result.

Deviations: the weight of the second loss is a choice of this file, as is what it
measures; noise is named in the records and made again, not stored.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pdecode import rng
from pdecode.contracts import Params
from pdecode.models import noised
from pdecode.models.config import Config
from pdecode.train import evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.passes import Pass

NAME_LENGTH, NAME_BASE = 5, 16  # tokens behind a record, its name's digits
_SEED = 2412  # of all noise that has a name


@dataclasses.dataclass(frozen=True)
class Options:
    codes: noised.Codes = ((-1.0,), (1.0,))  # of the first tokens, which are all drawn
    # Tokens of a row's own that are known where a pass begins; as many as the decoder
    # is to have.
    starts: tuple[int, ...] = (0,)
    code_weight: float = 1.0

    def __post_init__(self):
        codes = tuple(tuple(float(x) for x in code) for code in self.codes)
        object.__setattr__(self, "codes", codes)
        object.__setattr__(self, "starts", tuple(self.starts))
        if not self.starts or min(self.starts) < 0:
            raise ValueError(f"starts={self.starts} must be places from 0 on")
        check_ranges(self, {"code_weight": (0, float("inf"))})


NEEDS = Needs(
    attention=("bidirectional",),
    predicts=("masked",),
    why="a token is a function of all the noise before it",
    mask=True,
    own_rows=True,
)


def start(config, key, given):
    own, length = config.options, num_drawn(config.row_len)
    noised.check(config.model, own.codes)
    if max(own.starts) >= length:
        raise ValueError(
            f"starts={own.starts}: row_len={config.row_len} has {length} tokens that "
            "are drawn, so that the last pass has nothing to say"
        )
    return noised.init(config.model, own.codes, key) if given is None else given


def num_drawn(row_len: int) -> int:
    """Tokens of a record between its first, which is given, and its name."""
    return row_len - 1 - NAME_LENGTH


def named_noise(rows: Array, depth: int) -> Array:
    """Noise [B, N, D] from N(0, I) of records int32 [B, 1 + N + NAME_LENGTH]."""
    digits = NAME_BASE ** jnp.arange(NAME_LENGTH)
    names = (rows[:, -NAME_LENGTH:] * digits[None]).sum(1)
    shape = num_drawn(rows.shape[1]), depth
    keys = rng.row_keys(rng.key(_SEED), names)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def noise(config):
    def apply(batch, key):
        starts = jnp.asarray(config.options.starts)
        shape = batch["tokens"].shape[:1]
        return {**batch, "start": jax.random.choice(key, starts, shape)}

    return apply


def laws(
    model: Config, own: Options, params: Params, rows: Array, begin: Array,
    how: Pass | None = None,
) -> Array:  # fmt: skip
    """Logits [B, N, V] of each drawn token, those before `begin` known.

    `begin` int32 [B]. Of the others the noise is seen, and never the token.
    """
    how = passes.of_decoding(model) if how is None else how
    assert model.mask_id is not None, "the objective asks for one"
    length = num_drawn(rows.shape[1])
    is_open = jnp.arange(length)[None] >= begin[:, None]
    vectors = named_noise(rows, len(own.codes[0])) * is_open[..., None]
    tokens = jnp.where(is_open, model.mask_id, rows[:, 1 : 1 + length])
    tokens = jnp.concatenate([rows[:, :1], tokens], 1)
    vectors = jnp.pad(vectors, ((0, 0), (1, 0), (0, 0)))
    added = noised.features(model, own.codes, params, tokens, vectors)
    hidden = passes.run(how, params, tokens, extra=added).hidden[:, 1:]
    return losses.logits_of(model, params, hidden)


def distances(model: Config, own: Options, logits: Array, wanted: Array) -> Array:
    """Squared distance [B, N] of the mean code under `logits` from the code wanted."""
    table = noised.table(model, own.codes)
    mean = jnp.einsum("...v,vd->...d", jax.nn.softmax(logits), table)
    return jnp.square(mean - table[wanted]).sum(-1)


def loss(config):
    how, own, model = passes.of_run(config), config.options, config.model

    def apply(params, frozen, batch, key, step):
        del frozen, key, step
        rows, begin = batch["tokens"], batch["start"]
        length = num_drawn(rows.shape[1])
        wanted = rows[:, 1 : 1 + length]
        logits = laws(model, own, params, rows, begin, how)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
        apart = distances(model, own, logits, wanted)
        scored = jnp.arange(length)[None] >= begin[:, None]
        places = jnp.arange(1, 1 + length)
        value, _ = losses.mean(nats + own.code_weight * apart, scored, places)
        return value, losses.mean(nats, scored, places)[1]

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sums(model, own, first, params, rows, scored):
    begin = jnp.full(rows.shape[0], first, jnp.int32)
    wanted = rows[:, 1 : 1 + num_drawn(rows.shape[1])]
    logits = laws(model, own, params, rows, begin)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    counted = scored[:, 1 : 1 + wanted.shape[1]]
    counted &= (jnp.arange(wanted.shape[1]) >= first)[None]
    said = jnp.argmax(logits, -1) == wanted
    found = nats, said, distances(model, own, logits, wanted), jnp.ones_like(nats)
    return jnp.stack([jnp.where(counted, x, 0.0).sum() for x in found])


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """Of the first pass, and of the last: bits a token, the share of tokens that are
    the teacher's for the same noise, and the root of the mean squared distance of the
    mean code.
    """
    del frozen
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    static, starts = (config.model, config.options), config.options.starts
    made = {}
    for name, first in (("first", min(starts)), ("last", max(starts))):
        total = np.zeros(4)
        for part in evaluate.parts(rows):
            total += np.asarray(_sums(*static, first, params, *map(put, part)), float)
        nats, said, apart, count = np.maximum(total, [0, 0, 0, 1])
        made[f"{name}_bits_per_token"] = float(evaluate.bits(nats) / count)
        made[f"{name}_right"] = float(said / count)
        made[f"{name}_code_error"] = float((apart / count) ** 0.5)
    return made


def holds(config):
    return {"kind": "noised", "codes": config.options.codes}


OBJECTIVE = Objective(Options, NEEDS, start, loss, figures, holds, noise=noise)
