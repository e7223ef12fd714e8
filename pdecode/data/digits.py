"""A TensorFlow Datasets builder over the handwritten digits that scikit-learn ships.

1,797 images of 8 x 8 pixels with 17 grey levels (Alpaydin & Kaynak, 1998, the test part
of the UCI set). Read it with `stream(split)` or `images(split)`, which prepare it once
and serve it through `as_data_source`, as `stdlib_code` does. Needs scikit-learn (the
extra `images`). The split is by hash of the pixels, so equal images stay together.
"""

import hashlib

import numpy as np
import tensorflow_datasets as tfds

from pdecode.data import prepared
from pdecode.models import digits

SPLITS = ("train", "validation", "heldout")
_VALIDATION, _HELDOUT = 0.08, 0.2


class Digits(tfds.core.GeneratorBasedBuilder):
    """One example an image: its pixels and its class."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Split by hash of the pixels."}
    # Looked up through importlib_resources otherwise, which nobody declares.
    code_path = tfds.core.Path(__file__)

    def _info(self) -> tfds.core.DatasetInfo:
        shape = (digits.SIDE, digits.SIDE)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 8 x 8 pixels of 17 grey levels.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=shape, dtype=np.uint8),
                    "label": tfds.features.Scalar(dtype=np.int32),
                }
            ),
            license="CC-BY-4.0",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {split: self._generate(split) for split in SPLITS}

    def _generate(self, split: str):
        pixels, labels = shipped()
        for number, (image, label) in enumerate(zip(pixels, labels)):
            if split_of(image) == split:
                yield number, {"image": image, "label": int(label)}

    def _generate_examples(self, split: str):
        yield from self._generate(split)


def split_of(image: np.ndarray) -> str:
    """ "train", "validation" or "heldout" for an image of uint8."""
    digest = hashlib.sha256(np.asarray(image, np.uint8).tobytes()).digest()
    fraction = int.from_bytes(digest[:4], "big") / 2**32
    if fraction < _VALIDATION:
        return "validation"
    return "heldout" if fraction < _VALIDATION + _HELDOUT else "train"


def shipped() -> tuple[np.ndarray, np.ndarray]:
    """All images uint8 [1797, 8, 8] and classes; ValueError without scikit-learn."""
    try:
        from sklearn import datasets
    except ImportError:
        raise ValueError(
            "the digits come with scikit-learn, which is not installed: "
            "pip install 'pdecode[images]'"
        ) from None
    pixels, labels = map(np.asarray, datasets.load_digits(return_X_y=True))
    shape = (-1, digits.SIDE, digits.SIDE)
    return pixels.reshape(shape).astype(np.uint8), labels.astype(np.int32)


def images(split: str, data_dir: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [N, 8, 8], int32 [N]) of "train", "validation" or "heldout".

    Prepares the data under `data_dir`, as `prepared.builder` says.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    builder = prepared.builder(Digits, data_dir)
    found = list(builder.as_data_source(split=split))
    pixels = np.stack([np.asarray(each["image"], np.uint8) for each in found])
    return pixels, np.array([each["label"] for each in found], np.int32)


def stream(split: str, data_dir: str | None = None) -> np.ndarray:
    """uint16 [65 N]: the class and the pixels of each image, one after the other."""
    found = zip(*images(split, data_dir))
    rows = [digits.record(image, int(label)) for image, label in found]
    return np.concatenate(rows).astype(np.uint16)
