"""Stores a finished run of digits as an embedded model.

    python -m pdecode.train.embed results/digits_raster digits_raster

With its figures on the validation and the held-out images, which have no part in the
training.
"""

import sys

from pdecode.data import packing, texts
from pdecode.models import embedded
from pdecode.train import export, settings


def main(folder: str, name: str) -> None:
    """Writes NAME.safetensors and NAME.json beside the other embedded models."""
    path = embedded.config_of(name)
    config = settings.load(path)
    if config.data is None:
        raise ValueError(f"{path} trains on text: `train.export.embed` stores its run")
    splits = ("train", "validation", "heldout")
    prepare = texts.KINDS[config.data].stream
    streams = [packing.load_split(each, config.data_dir, prepare) for each in splits]
    command = f"pdecode train --config {path}"
    record = export.embed(config, folder, name, streams, command=command)
    print({split: record[split] for split in ("validation", "heldout")})


if __name__ == "__main__":
    main(*sys.argv[1:])
