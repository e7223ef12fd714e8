"""Digits as a canvas of masks that is read both ways.

    pdecode train --config configs/digits_masked.py

Data: the 1,797 handwritten digits that scikit-learn ships (the extra `images`), one
token a pixel behind the class. Expected: see pdecode/models/weights/digits_masked.json.
Hardware: a CPU core, minutes.
"""

from pdecode.models.config import Config
from pdecode.models.digits import FIRST_CLASS, MASK_ID, RECORD, VOCAB_SIZE
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="digits_masked",
        objective="masked_diffusion",
        options={
            "weighting": "mdlm",
            "prompt_end": tuple(range(FIRST_CLASS, MASK_ID)),
            "prompt_drop": 0.1,
        },
        data="digits",
        model=Config(
            vocab_size=VOCAB_SIZE,
            width=64,
            num_layers=3,
            num_heads=4,
            mlp_width=160,
            rope=None,
            tied=True,
            max_positions=RECORD,
            attention="bidirectional",
            predicts="masked",
            mask_id=MASK_ID,
            name="digits_masked",
        ),
        steps=1200,
        row_len=RECORD,
        batch_size=32,
        optimizer="muon",
        learning_rate=1e-2,
        schedule="stable",
        decay_steps=200,
        ema_decay=0.99,
        checkpoint_every=100,
        eval_every=100,
        eval_rows=64,
    )
