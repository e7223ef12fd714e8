r"""An autoregressive model of the tasks, for a judge to read.

    pdecode train --config configs/task_causal.py
    pdecode train --config configs/task_causal.py --out results/task_drafter \
        --set model.width=48 --set model.mlp_width=128 --set model.num_layers=2

The second is a drafter for it. Data as in task_masked.py. Hardware: made for one
accelerator, minutes; on a CPU as byte_target.py says.
"""

import dataclasses
import pathlib

from pdecode.train import TrainConfig, settings

HERE = pathlib.Path(__file__).parent


def get_config() -> TrainConfig:
    base = settings.load(HERE / "task_masked.py")
    return dataclasses.replace(
        base,
        name="task_causal",
        objective="autoregressive",
        model=dataclasses.replace(
            base.model, attention="causal", predicts="next", name="task_causal"
        ),
        options=None,
    )
