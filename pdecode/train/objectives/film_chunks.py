"""A straight flow from noise to whole films, in chunks that an interface joins.

Video Interface Networks: Dedhia et al., 2025, arXiv:2503.17539. All frames of a row
have one time, but the first `num_given`, which stay clean; the interface reads the
whole noised film, and every chunk is denoised from its own frames and the interface
(`models.interfaces`). The loss is the squared error of the velocity, noise - x, in
every chunk's noised frames; those that two chunks share count in both. Gradients of all
chunks reach the interface. Rows are read as in `frame_diffusion`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Params
from pdecode.models import interfaces
from pdecode.models.denoiser import Net
from pdecode.train import evaluate, losses
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.objectives import frame_diffusion

_NUM_SAMPLES = 4  # of noise, for every row of a figure


@dataclasses.dataclass(frozen=True)
class Options(frame_diffusion.Options):
    chunk: int = 2  # frames that are denoised together
    overlap: int = 1  # frames that a chunk shares with the one before
    every: int = 2  # the interface reads one frame of so many
    num_given: int = 1  # first frames that are told

    def __post_init__(self):
        super().__post_init__()
        top = {"chunk": (1, 4096), "overlap": (0, 4096), "every": (1, 4096)}
        check_ranges(self, {**top, "num_given": (0, 4095)})


NEEDS = Needs(
    attention=("block_causal",),
    predicts=("values",),
    why="frames are denoised in chunks, and are no tokens",
    own_rows=True,
)


def net_of(config) -> Net:
    """The network of a run; ValueError, naming the field, for what does not fit."""
    net, own = frame_diffusion.net_of(config), config.options
    count = (config.row_len - own.head_len) // (config.model.block_len or 1)
    if own.num_given >= count:
        raise ValueError(
            f"num_given={own.num_given} leaves none of row_len={config.row_len}'s "
            f"{count} frames to denoise"
        )
    interfaces.starts(count, own.chunk, own.overlap)
    return net


def start(config, key, given):
    net = net_of(config)
    frame_diffusion.check_pass(config)
    return interfaces.init(net, key) if given is None else given


def noise(config):
    net = net_of(config)

    def apply(batch, key):
        clean, _ = frame_diffusion.read(config.options, net, batch["tokens"])
        return batch | _drawn(clean.shape, key)

    return apply


def _drawn(shape: tuple[int, ...], key: Array) -> dict[str, Array]:
    """Times float32 [B], of whole films, and noise [B, T, N, D]."""
    key_time, key_noise = jax.random.split(key)
    time = jax.random.uniform(key_time, shape[:1])
    return {"time": time, "noise": jax.random.normal(key_noise, shape)}


def squared_errors(
    own: Options, net: Net, params: Params, clean, given, time: Array, noise: Array
) -> tuple[Array, Array]:
    """Of the velocity float32 [B, K, C, N, D], and which count, bool [K, C]."""
    count = clean.shape[1]
    is_noised = jnp.arange(count) >= own.num_given
    time = time[:, None] * is_noised[None]
    share = time[..., None, None]
    film = (1 - share) * clean + share * noise
    first = interfaces.starts(count, own.chunk, own.overlap)
    velocity = interfaces.of_chunks(
        net, params, film, time, jnp.broadcast_to(is_noised, time.shape), given,
        jnp.asarray(first), own.chunk, own.every,
    )  # fmt: skip
    place = first[:, None] + np.arange(own.chunk)[None]
    return jnp.square(velocity - (noise - clean)[:, place]), is_noised[place]


def loss(config):
    net = frame_diffusion.computed(config, net_of(config))
    own = config.options

    def apply(params, frozen, batch, key, step):
        del frozen, key, step
        clean, given = frame_diffusion.read(own, net, batch["tokens"])
        error, counts = squared_errors(
            own, net, params, clean, given, batch["time"], batch["noise"]
        )
        counts = jnp.broadcast_to(counts[None, :, :, None, None], error.shape)
        places = jnp.zeros(error.shape[1:], jnp.int32)
        value, aux = losses.mean(error, counts, places)
        # No token is predicted: a noised frame holds some of its answer.
        return value, {**aux, "scored": jnp.zeros(error.shape, bool)}

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sums(own, net, params, rows, is_row, key):
    clean, given = frame_diffusion.read(own, net, rows)
    drawn = _drawn(clean.shape, key)
    error, counts = squared_errors(own, net, params, clean, given, **drawn)
    counts = is_row[:, None, None] & counts[None]
    counts = jnp.broadcast_to(counts[..., None, None], error.shape)
    return jnp.stack([jnp.where(counts, error, 0.0).sum(), counts.sum()])


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """The mean squared error of the velocity, over times and noise that are fixed."""
    del frozen
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    net, total = net_of(config), np.zeros(2)
    for sample in range(_NUM_SAMPLES):
        for number, (tokens, scored) in enumerate(evaluate.parts(rows)):
            key = jax.random.fold_in(jax.random.key(0), sample * 100_000 + number)
            arrays = put(tokens), put(scored.any(1))
            total += np.asarray(_sums(config.options, net, params, *arrays, key))
    return {"velocity_mse": float(total[0] / max(total[1], 1))}


def holds(config):
    own = config.options
    kept = {name: getattr(own, name) for name in ("patch", "chunk", "overlap", "every")}
    return {"kind": "denoiser", **kept}


OBJECTIVE = Objective(Options, NEEDS, start, loss, figures, holds, noise=noise)
