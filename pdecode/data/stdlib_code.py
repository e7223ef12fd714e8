"""A TensorFlow Datasets builder over the running interpreter's own standard library.

Read it with `documents(split)`, which prepares it once (array_record files, a folder a
Python version) and serves it through `as_data_source`, so TensorFlow is never needed.
Importing this module imports tensorflow_datasets, which takes seconds: import it late.
"""

import platform
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from pdecode.data import corpus, prepared


class StdlibCode(tfds.core.GeneratorBasedBuilder):
    """One example a document: its file's path, its index in the file, its text."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Top-level definitions of the standard library."}
    # The corpus is this interpreter's, so another interpreter's copy must not be read.
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=f"py{platform.python_version()}")]
    # Looked up through importlib_resources otherwise, which nobody declares.
    code_path = tfds.core.Path(__file__)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Python source code of the running interpreter's library.",
            features=tfds.features.FeaturesDict(
                {
                    "path": tfds.features.Text(),
                    "index": tfds.features.Scalar(dtype=np.int32),
                    "text": tfds.features.Text(),
                }
            ),
            license="PSF-2.0",
            disable_shuffling=True,  # keys below sort in the order of the corpus
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {split: self._generate(split) for split in ("train", "validation")}

    def _generate(self, split: str):
        number = 0
        for path, text in corpus.sources(split):
            for index, document in enumerate(corpus.documents(text)):
                yield number, {"path": path, "index": index, "text": document}
                number += 1

    def _generate_examples(self, split: str):
        yield from self._generate(split)


def documents(split: str, data_dir: str | None = None) -> Iterator[bytes]:
    """UTF-8 text of every document of a split ("train" or "validation"), in order.

    Prepares the data under `data_dir`, as `prepared.builder` says.
    """
    builder = prepared.builder(StdlibCode, data_dir)
    for example in builder.as_data_source(split=split):
        yield example["text"]
