r"""The embedded masked model of the tasks, taught to revise (ReDiff, arXiv:2510.19871).

    pdecode train --config configs/task_refining.py
    pdecode train --config configs/task_refining.py --out results/task_refining_2 \
        --set start_from=results/task_refining --set own_errors=0.5 --set seed=1
    pdecode generate --model results/task_refining_2 --method refine --set steps=3 \
        --prompt "Sdbca....=" --max-new-tokens 8

The second run is the paper's second stage, in half of its rows. Data and hardware as in
task_masked.py.
"""

import dataclasses
import pathlib

from pdecode.train import TrainConfig, settings

HERE = pathlib.Path(__file__).parent


def get_config() -> TrainConfig:
    base = settings.load(HERE / "task_masked.py")
    return dataclasses.replace(
        base,
        name="task_refining",
        objective="refining",
        start_from="task_masked",
        options={"prompt_end": base.options.prompt_end},
        steps=3000,
        learning_rate=2e-3,
        decay_steps=1000,
        eval_every=1000,
        checkpoint_every=1000,
    )
