r"""The embedded target, taught to read past noisy embeddings (SJD2, arXiv:2510.08994).

    pdecode train --config configs/byte_denoising.py
    pdecode generate --model results/byte_denoising --method sjd2 \
        --set window=16 --set levels=4 --set temperature=0.8 --prompt "def f(n):"

Few levels, as a slot is a token no sooner than after as many calls. Data as in
byte_target.py. Hardware: made for one accelerator; on a CPU --set start_from=drafter
with its sizes, and --set batch_size=8.
"""

import dataclasses
import pathlib

from pdecode.train import TrainConfig, settings

HERE = pathlib.Path(__file__).parent


def get_config() -> TrainConfig:
    base = settings.load(HERE / "byte_medusa.py")
    return dataclasses.replace(
        base,
        name="byte_denoising",
        objective="jacobi_denoising",
        start_from="target",
        frozen={},
        options={"levels": 4, "segment_length": 8},
        steps=3000,
        row_len=256,
        batch_size=64,
        short_len=None,
        learning_rate=5e-4,
        decay_steps=1000,
    )
