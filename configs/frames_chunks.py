"""Clips of moved digits, denoised as whole films in chunks that an interface joins.

    pdecode train --config configs/frames_chunks.py

Data: clips of the 1,797 handwritten digits that scikit-learn ships (the extra
`images`), each moved by seven actions. A lane is a square of 2 x 2 pixels. Expected:
see `python -m pdecode.evals.bench.films`. Hardware: one H200, under a minute.
"""

from pdecode.models.config import Config, Rope
from pdecode.models.frames import FRAME, MASK_ID, RECORD, VOCAB_SIZE
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="frames_chunks",
        objective="film_chunks",
        options={"patch": 2, "chunk": 4, "overlap": 2},
        data="frames",
        model=Config(
            vocab_size=VOCAB_SIZE,
            width=96,
            num_layers=4,
            num_heads=4,
            mlp_width=256,
            rope=Rope(theta=100.0),
            attention="block_causal",
            block_len=FRAME,
            predicts="values",
            mask_id=MASK_ID,
            name="frames_chunks",
        ),
        steps=3000,
        row_len=RECORD,
        batch_size=64,
        optimizer="muon",
        learning_rate=5e-3,
        schedule="stable",
        decay_steps=1000,
        ema_decay=0.995,
        checkpoint_every=3000,
        eval_every=1000,
        eval_rows=64,
    )
