"""What drawn digits are worth: a classifier's word, Fréchet distance, coverage, sheets.

The classifier is a small network trained here, in seconds, on the real training images;
its accuracy on held-out images is part of every report. Fréchet distance is Heusel et
al.'s (2017, arXiv:1706.08500) on that classifier's last hidden layer in place of an
Inception network's: figures compare with each other and with nothing outside.
"""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax

from pdecode.evals import quality
from pdecode.models import digits

_WIDTHS = (digits.SIDE**2, 128, 48)
_STEPS = 400


class Judge(NamedTuple):
    """A classifier of digits, and what the held-out images look like to it."""

    params: Any
    accuracy: float  # on the held-out images
    heldout: np.ndarray  # uint8 [N, 8, 8]
    labels: np.ndarray  # int32 [N]


class Worth(NamedTuple):
    """Figures of drawn images; intervals hold 95 of 100 repetitions."""

    accuracy: float  # of the classifier, by the class that was asked for
    accuracy_interval: tuple[float, float]
    frechet: float
    frechet_interval: tuple[float, float]
    coverage: list[float]  # by class: held-out images that have a sample near


def judge(training, heldout, *, seed: int = 0) -> Judge:
    """Trains the classifier; arguments are pairs of images [N, 8, 8] and classes."""
    images, labels = training
    x, y = _scaled(images), jnp.asarray(labels)
    keys = jax.random.split(jax.random.key(seed), len(_WIDTHS) + 1)
    sizes = (*_WIDTHS, digits.NUM_CLASSES)
    params = [
        {"w": jax.random.normal(key, (a, b)) * (2 / a) ** 0.5, "b": jnp.zeros(b)}
        for key, a, b in zip(keys, sizes, sizes[1:])
    ]
    update = optax.adamw(optax.cosine_decay_schedule(3e-3, _STEPS), weight_decay=1e-2)

    def loss(params, x):
        found = _layers(params, x)[1]
        return optax.softmax_cross_entropy_with_integer_labels(found, y).mean()

    @jax.jit
    def train(params, key):
        def step(carry, key):
            params, state = carry
            noisy = x + 0.1 * jax.random.normal(key, x.shape)
            change, state = update.update(jax.grad(loss)(params, noisy), state, params)
            return (optax.apply_updates(params, change), state), None

        carry = params, update.init(params)
        return jax.lax.scan(step, carry, jax.random.split(key, _STEPS))[0][0]

    params = train(params, keys[-1])
    found = np.asarray(_layers(params, _scaled(heldout[0]))[1]).argmax(-1)
    return Judge(params, float((found == heldout[1]).mean()), *heldout)


def classified(by: Judge, images: np.ndarray) -> np.ndarray:
    """The classifier's classes int [N] of images [N, 8, 8]."""
    return np.asarray(_layers(by.params, _scaled(images))[1]).argmax(-1)


def _scaled(images) -> jax.Array:
    flat = np.asarray(images, np.float32).reshape(len(images), -1)
    return jnp.asarray(flat / (digits.NUM_LEVELS - 1))


def _layers(params, x) -> tuple[jax.Array, jax.Array]:
    """Last hidden layer and logits."""
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"][None])
    return x, x @ params[-1]["w"] + params[-1]["b"][None]


def worth(by: Judge, images: np.ndarray, classes: np.ndarray) -> Worth:
    """Figures of images uint8 [N, 8, 8] that were asked for as `classes`."""
    hidden, logits = map(np.asarray, _layers(by.params, _scaled(images)))
    right = logits.argmax(-1) == classes
    real = np.asarray(_layers(by.params, _scaled(by.heldout))[0])
    distance = frechet(hidden, real)
    draw = np.random.default_rng(0)
    again = [
        frechet(hidden[draw.integers(len(hidden), size=len(hidden))], real)
        for _ in range(100)
    ]
    # A resample has less variety than its sample: its own bias is taken off.
    shift = distance - np.mean(again)
    low, high = np.quantile(again, [0.025, 0.975]) + shift
    return Worth(
        accuracy=float(right.mean()),
        accuracy_interval=quality.wilson(int(right.sum()), len(right)),
        frechet=distance,
        frechet_interval=(float(low), float(high)),
        coverage=_coverage(by, images, classes),
    )


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Squared distance of two Gaussians fitted to features float [N, F]."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    gap = first.mean(0) - second.mean(0)
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ two @ root), 0)).sum()
    return float(gap @ gap + np.trace(one) + np.trace(two) - 2 * shared)


def _coverage(by: Judge, images, classes, neighbours: int = 5) -> list[float]:
    """By class the held-out images with a sample nearer than their fifth neighbour.

    Neighbours are held-out images of the same class (Naeem et al., 2020,
    arXiv:2002.09797).
    """
    found = []
    for label in range(digits.NUM_CLASSES):
        real = np.asarray(_scaled(by.heldout[by.labels == label]))
        own = np.asarray(_scaled(images[classes == label]))
        radius = np.sort(_distances(real, real), 1)[:, neighbours]
        nearest = _distances(real, own).min(1, initial=np.inf)
        found.append(float((nearest <= radius).mean()))
    return found


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(a[:, None] - b[None]).sum(-1))


def sheet(
    path: str | os.PathLike, images: np.ndarray, *, columns: int = 10, scale: int = 6
) -> None:
    """Writes images uint8 [N, 8, 8] side by side, ink dark, as a PNG."""
    count, side = len(images), digits.SIDE
    lines = -(-count // columns)
    grid = np.zeros((lines * columns, side + 2, side + 2), np.float32)
    grid[:count, 1:-1, 1:-1] = images
    page = grid.reshape(lines, columns, side + 2, side + 2).swapaxes(1, 2)
    page = page.reshape(lines * (side + 2), columns * (side + 2))
    page = page.repeat(scale, 0).repeat(scale, 1)
    top = digits.NUM_LEVELS - 1
    matplotlib.image.imsave(path, page, cmap="gray_r", vmin=0, vmax=top, format="png")
