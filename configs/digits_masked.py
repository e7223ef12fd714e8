"""Digits as a canvas of masks that is read both ways.

    pdecode train --config configs/digits_masked.py

Data: the 1,797 handwritten digits that scikit-learn ships (the extra `images`), one
token a pixel behind the class; a tenth of the classes is hidden, for guidance.
Expected: see pdecode/models/weights/digits_masked.json. Hardware: one H200, 97 seconds
beside other runs.
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
        steps=8000,
        row_len=RECORD,
        batch_size=64,
        optimizer="muon",
        learning_rate=5e-3,
        schedule="stable",
        decay_steps=2000,
        ema_decay=0.999,
        checkpoint_every=8000,
        eval_every=1000,
        eval_rows=64,
    )
