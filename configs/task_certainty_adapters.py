"""The model of the tasks made certain by adapters alone (dParallel, arXiv:2509.26488).

    pdecode train --config configs/task_certainty_adapters.py

Data as in task_certainty.py. The paper's rank and alpha are 128 beside kernels of
thousands; here both are 32 beside kernels of 96, on all of a layer's attention. The
folder holds the adapters, 98,304 parameters beside 468,192, and decodes as a model
where the base is; to write a folder that needs no other:

    python -m pdecode.train.adapters results/task_certainty_adapters results/MERGED
"""

import dataclasses
import pathlib

from pdecode.train import TrainConfig, settings
from pdecode.train.adapters import Adapters

HERE = pathlib.Path(__file__).parent


def get_config() -> TrainConfig:
    base = settings.load(HERE / "task_certainty.py")
    return dataclasses.replace(
        base,
        name="task_certainty_adapters",
        adapters=Adapters(rank=32, names=("query", "key", "value", "out")),
        learning_rate=1e-3,
        forward="transformer",
    )
