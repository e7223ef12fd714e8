r"""The embedded target, taught to fill the masks of its next block (arXiv:2509.04185).

    pdecode train --config configs/byte_set_block.py
    pdecode generate --model results/byte_set_block --method set_block \
        --set block_length=8 --set gamma=0.2 --prompt "def f(n):"

The next-token loss goes on beside that of the masks, so the result is still an
autoregressive model. Data as in byte_target.py. Hardware: made for one accelerator; on
a CPU --set start_from=drafter with its sizes, and --set batch_size=8.
"""

import dataclasses
import pathlib

from pdecode.train import TrainConfig, settings

HERE = pathlib.Path(__file__).parent


def get_config() -> TrainConfig:
    base = settings.load(HERE / "byte_medusa.py")
    return dataclasses.replace(
        base,
        name="byte_set_block",
        objective="set_block",
        start_from="target",
        frozen={},
        options={"block_length": 8},
        steps=3000,
        row_len=256,
        batch_size=64,
        short_len=None,
        learning_rate=1e-3,
        decay_steps=1000,
    )
