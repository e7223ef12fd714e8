"""Images of values from coarse to fine: the velocity of a slice of a flow a stage.

E-CAR (Yuan et al., 2024, arXiv:2412.14170), its slices after pyramidal flow matching
(Jin et al., 2024, arXiv:2410.05954). A row is a class and the levels of a square image,
which become values from -1 to 1. With noise for every stage an image gives both ends of
every slice (`rules.pyramids.ends`): the transformer reads the ends, as a decoder's
stages would have left them, and the head learns to tell, of a patch anywhere between
its two ends, the way from one to the other. The loss is the mean squared error over all
patches of all stages. `families.staged` draws with the result.

What the paper says of its stages is known to this file by its abstract: patch size,
slices, times drawn evenly and several of them for a condition (MAR: Li et al., 2024,
arXiv:2406.11838) are choices of this file.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Params
from pdecode.models import frames, staged
from pdecode.models.config import Config
from pdecode.models.staged import Grid
from pdecode.rules import pyramids
from pdecode.train import evaluate, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.passes import Pass


@dataclasses.dataclass(frozen=True)
class Options:
    side: int = 8  # of an image, whose side * side levels follow a row's first token
    levels: int = 17  # tokens 0 .. levels - 1 are values from -1 to 1
    patch: int = 2
    slices: tuple[tuple[float, float], ...] = ((0.0, 0.7), (0.4, 0.85), (0.6, 1.0))
    draws: int = 4  # times at which each patch is asked

    def __post_init__(self):
        slices = tuple((float(a), float(b)) for a, b in self.slices)
        object.__setattr__(self, "slices", slices)
        most = math.inf
        check_ranges(
            self,
            {"side": (1, most), "levels": (2, most), "patch": (1, most),
             "draws": (1, most)},
        )  # fmt: skip
        pyramids.check(slices)

    @property
    def grid(self) -> Grid:
        return Grid(self.side, self.patch, len(self.slices))


NEEDS = Needs(
    attention=("bidirectional",),
    predicts=("uniform",),
    why="patches of a stage are noise that is moved at once",
)


def start(config, key, given):
    own = config.options
    length = config.row_len if config.short_len is None else config.short_len
    if length < 1 + own.side**2:
        raise ValueError(
            f"rows of {length} tokens hold no class and image of side={own.side}"
        )
    staged.check(config.model, own.grid)
    return staged.init(config.model, own.grid, key) if given is None else given


def drawn_noise(own: Options, key: Array, batch: int) -> dict[str, Array]:
    """Noise of every stage [B, H, W], and times [B, draws, N] of all patches."""
    key_time, *keys = jax.random.split(key, 1 + len(own.slices))
    shape = batch, own.draws, sum(own.grid.lanes())
    found = {"times": jax.random.uniform(key_time, shape)}
    for stage, (each, side) in enumerate(zip(keys, own.grid.sides(), strict=True)):
        found[f"noise_{stage}"] = jax.random.normal(each, (batch, side, side))
    return found


def noise(config):
    def apply(batch, key):
        own = drawn_noise(config.options, key, batch["tokens"].shape[0])
        return {**batch, **own}

    return apply


def errors(
    model: Config, own: Options, params: Params, batch: dict, how: Pass | None = None
) -> Array:
    """Squared error [B, draws, N] of every patch's velocity, the mean of its cells."""
    how = passes.of_decoding(model) if how is None else how
    rows, patch = batch["tokens"], own.patch
    image = 2.0 * rows[:, 1 : 1 + own.side**2] / (own.levels - 1) - 1
    image = image.reshape(-1, own.side, own.side)
    noises = [batch[f"noise_{stage}"] for stage in range(len(own.slices))]
    pairs = pyramids.ends(image, own.slices, noises)
    grown = [pyramids.grown(last) for _, last in pairs[:-1]]
    lanes = staged.lanes_of(model, own.grid, params, rows[:, 0], grown)
    tokens, visible, extra = lanes
    told = passes.run(how, params, tokens, visible=visible, extra=extra).hidden
    first, last = (
        jnp.concatenate([frames.patches(pair[end], patch) for pair in pairs], 1)
        for end in (0, 1)
    )
    times = batch["times"][..., None]
    between = first[:, None] + times * (last - first)[:, None]
    ask = jax.vmap(
        functools.partial(staged.velocity, model, params), (None, 1, 1), out_axes=1
    )
    found = ask(told, between, batch["times"])
    return jnp.square(found - (last - first)[:, None]).mean(-1)


def loss(config):
    own, how = config.options, passes.of_run(config)

    def apply(params, frozen, batch, key, step):
        del frozen, key, step
        value = errors(config.model, own, params, batch, how).mean((1, 2))
        # No token has a law: nothing is scored as one.
        nobody = jnp.zeros(batch["tokens"].shape, bool)
        aux = {"weight": jnp.float32(len(value)), "nats": jnp.zeros(nobody.shape)}
        aux |= {"scored": nobody, "places": jnp.arange(nobody.shape[1])}
        return value.mean(), aux

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sums(model, own, params, rows, is_row, key):
    batch = {"tokens": rows, **drawn_noise(own, key, rows.shape[0])}
    found = errors(model, own, params, batch).mean(1)
    return jnp.where(is_row[:, None], found, 0.0).sum(0)


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """The mean squared error of the velocity, of each stage and of all patches."""
    del frozen
    rows, own = evaluate.rows(text, row_len, row_len - 1, max_rows), config.options
    total, count = np.zeros(sum(own.grid.lanes())), 0
    for number, (tokens, scored) in enumerate(evaluate.parts(rows)):
        is_row, key = scored.any(1), jax.random.key(number)
        found = _sums(config.model, own, params, put(tokens), put(is_row), key)
        total, count = total + np.asarray(found, float), count + int(is_row.sum())
    total = total / max(count, 1)
    ends = np.cumsum(own.grid.lanes())[:-1]
    made = {
        f"velocity_error_{stage}": float(part.mean())
        for stage, part in enumerate(np.split(total, ends))
    }
    return {"velocity_error": float(total.mean()), **made}


def holds(config):
    own = config.options
    return {"kind": "staged", "grid": own.grid, "slices": own.slices}


OBJECTIVE = Objective(Options, NEEDS, start, loss, figures, holds, noise=noise)
