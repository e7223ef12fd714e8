"""Digits as values from coarse to fine: three stages, each a slice of a flow.

    pdecode train --config configs/digits_staged.py
    python -m pdecode.evals.staged_digits results/digits_staged digits.png

Data: the 1,797 handwritten digits that scikit-learn ships (the extra `images`), each as
values behind its class. Stages of 2, 4 and 8 pixels a side in patches of 2 x 2: 1, 4
and 16 lanes. Hardware: an accelerator, under a minute.
"""

from pdecode.models.config import Config
from pdecode.models.digits import MASK_ID, NUM_LEVELS, RECORD, SIDE, VOCAB_SIZE
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="digits_staged",
        objective="staged_flow",
        options={"side": SIDE, "levels": NUM_LEVELS, "patch": 2, "draws": 8},
        data="digits",
        model=Config(
            vocab_size=VOCAB_SIZE,
            width=128,
            num_layers=3,
            num_heads=4,
            mlp_width=320,
            rope=None,
            tied=True,
            max_positions=RECORD,
            attention="bidirectional",
            predicts="uniform",
            mask_id=MASK_ID,
            name="digits_staged",
        ),
        steps=4000,
        row_len=RECORD,
        batch_size=128,
        learning_rate=2e-3,
        weight_decay=0.05,
        ema_decay=0.999,
        checkpoint_every=4000,
        eval_every=1000,
        eval_rows=64,
    )
