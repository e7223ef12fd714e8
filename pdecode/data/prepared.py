"""TensorFlow Datasets builders made ready once, for all processes of a machine.

Importing this module imports tensorflow_datasets, which takes seconds: import it late.
"""

import fcntl
import pathlib

import tensorflow_datasets as tfds


def builder(kind: type, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """A builder of `kind`, its data under `data_dir` (None: the library's default).

    Prepares them if they are not there yet; an interrupted preparation leaves nothing
    behind. One process prepares, others that ask at the same time wait for it.
    """
    root = tfds.core.constants.DATA_DIR if data_dir is None else data_dir
    folder = pathlib.Path(root).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".pdecode.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = kind(data_dir=data_dir, file_format="array_record")
        made.download_and_prepare()
    return made
