"""A straight flow from noise to each frame, given the clean frames before it.

ACDiT: Hu et al., 2024, arXiv:2412.07720, with the flow matching of NFD (Cheng et al.,
2025, arXiv:2506.01380; Lipman et al., 2022, arXiv:2210.02747) in place of its noise
prediction. A row is read twice in one pass, as clean frames and as noised ones with a
time of their own each: a clean frame sees itself and clean ones before it, a noised
frame clean ones before it and itself, which is what a decoder finds in its cache. The
loss is the squared error of the velocity, noise - x, over all numbers.

A row of the text is a head and then frames of `model.block_len` tokens, pixels row by
row. Frame t is asked for by the ids at places 0 and t of the head.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Params
from pdecode.models import denoiser, frames
from pdecode.models.denoiser import Call, Net
from pdecode.train import evaluate, losses
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.objectives.any_order import twice

_NUM_SAMPLES = 4  # of noise, for every row of a figure


@dataclasses.dataclass(frozen=True)
class Options:
    patch: int = 1  # pixels along the side of a square, which is one lane
    head_len: int = frames.HEAD  # tokens in front of the frames, at least one a frame
    num_levels: int = 17  # grey levels: ids 0 .. 16 are -1 .. 1

    def __post_init__(self):
        check_ranges(
            self, {"patch": (1, 64), "head_len": (1, 4096), "num_levels": (2, 65536)}
        )


NEEDS = Needs(
    attention=("block_causal",),
    predicts=("values",),
    why="frames are denoised whole, from clean ones before them, and are no tokens",
    own_rows=True,
)


def net_of(config) -> Net:
    """The network of a run; ValueError, naming the field, for what does not fit."""
    net = denoiser.make_net(config.model, config.options.patch)
    head, length = config.options.head_len, net.config.block_len
    count, rest = divmod(config.row_len - head, length)
    if rest or not 1 <= count <= head:
        raise ValueError(
            f"row_len={config.row_len} is no head of head_len={head} tokens, one for "
            f"each frame at least, and frames of model.block_len={length}"
        )
    return net


def check_pass(config) -> None:
    """ValueError for a pass that a denoiser does not have."""
    if (config.forward, config.remat) != ("transformer", False):
        raise ValueError(
            f"objective={config.objective} needs forward='transformer' (not "
            f"{config.forward!r}) and remat=False"
        )


def computed(config, net: Net) -> Net:
    """`net` with the numbers that the run's layers compute in."""
    if config.matmul_dtype != "bfloat16":
        return net
    model = dataclasses.replace(net.config, dtype="bfloat16")
    return denoiser.make_net(model, net.patch)


def start(config, key, given):
    check_pass(config)
    net = net_of(config)
    return denoiser.init(net, key) if given is None else given


def read(own: Options, net: Net, tokens: Array) -> tuple[Array, Array]:
    """Frames float32 [B, T, N, D] of rows int32 [B, L], and what asks, [B, T, 2]."""
    side = round((net.config.block_len or 0) ** 0.5)
    batch, head = tokens.shape[0], tokens[:, : own.head_len]
    pixels = tokens[:, own.head_len :].reshape(batch, -1, side, side)
    numbers = frames.values(pixels.astype(jnp.float32), own.num_levels)
    asks = head[:, : pixels.shape[1]]
    given = jnp.stack([jnp.broadcast_to(head[:, :1], asks.shape), asks], -1)
    return frames.patches(numbers, own.patch), given


def noise(config):
    net = net_of(config)

    def apply(batch, key):
        clean, _ = read(config.options, net, batch["tokens"])
        return batch | _drawn(clean.shape, key)

    return apply


def _drawn(shape: tuple[int, ...], key: Array) -> dict[str, Array]:
    key_time, key_noise = jax.random.split(key)
    time = jax.random.uniform(key_time, shape[:2])
    return {"time": time, "noise": jax.random.normal(key_noise, shape)}


def squared_errors(
    net: Net, params: Params, clean: Array, given: Array, time: Array, noise: Array
) -> Array:
    """Float32 [B, T, N, D]: of the velocity of each noised frame, in one pass."""
    batch, count = time.shape
    share = time[..., None, None]
    noised = (1 - share) * clean + share * noise
    index = jnp.broadcast_to(jnp.arange(count), time.shape)
    is_noised = jnp.broadcast_to(jnp.arange(2 * count) >= count, (batch, 2 * count))
    call = Call(
        values=jnp.concatenate([clean, noised], 1),
        time=jnp.concatenate([0 * time, time], 1),
        is_noised=is_noised,
        given=jnp.concatenate([given, given], 1),
        index=jnp.concatenate([index, index], 1),
        among=twice(index),
    )
    velocity, _ = denoiser.apply(net, params, call)
    return jnp.square(velocity[:, count:] - (noise - clean))


def loss(config):
    net = computed(config, net_of(config))

    def apply(params, frozen, batch, key, step):
        del frozen, key, step
        clean, given = read(config.options, net, batch["tokens"])
        error = squared_errors(net, params, clean, given, batch["time"], batch["noise"])
        places = jnp.zeros(error.shape[1:], jnp.int32)
        value, aux = losses.mean(error, jnp.ones(error.shape, bool), places)
        # No token is predicted: a noised frame holds some of its answer.
        return value, {**aux, "scored": jnp.zeros(error.shape, bool)}

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1))
def _error_of(own, net, params, rows, is_row, key):
    clean, given = read(own, net, rows)
    error = squared_errors(net, params, clean, given, **_drawn(clean.shape, key))
    return jnp.where(is_row[:, None, None, None], error, 0.0).sum()


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """The mean squared error of the velocity, over times and noise that are fixed."""
    del frozen
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    net, total = net_of(config), 0.0
    for sample in range(_NUM_SAMPLES):
        for number, (tokens, scored) in enumerate(evaluate.parts(rows)):
            key = jax.random.fold_in(jax.random.key(0), sample * 100_000 + number)
            arrays = put(tokens), put(scored.any(1))
            total += float(_error_of(config.options, net, params, *arrays, key))
    pixels = row_len - config.options.head_len
    count = _NUM_SAMPLES * int(rows.scored.any(1).sum()) * pixels
    return {"velocity_mse": float(np.float64(total) / max(count, 1))}


def holds(config):
    return {"kind": "denoiser", "patch": config.options.patch}


OBJECTIVE = Objective(Options, NEEDS, start, loss, figures, holds, noise=noise)
