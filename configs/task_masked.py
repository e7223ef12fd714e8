"""The embedded masked model of the tasks of ParallelBench.

    pdecode train --config configs/task_masked.py
    python -m pdecode.evals.parallelbench.embed results/task_masked task_masked

Data: instances of pdecode.data.parallelbench in their compact form, one a row, made
when the run begins. Expected accuracy, task by task: see
pdecode/models/weights/task_masked.json. Hardware: one H200, 218 seconds beside other
runs.
"""

from pdecode.data.parallelbench.rows import END_ID, ROW_LEN
from pdecode.models.bytes import EOS_ID, MASK_ID, VOCAB_SIZE
from pdecode.models.config import Config
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="task_masked",
        objective="masked_diffusion",
        model=Config(
            vocab_size=VOCAB_SIZE,
            width=128,
            num_layers=6,
            num_heads=4,
            mlp_width=320,
            tied=True,
            max_positions=64,
            attention="bidirectional",
            predicts="masked",
            mask_id=MASK_ID,
            eos_ids=(EOS_ID,),
            name="task_masked",
        ),
        options={"weighting": "llada", "eos_fill": 0.0, "prompt_end": END_ID},
        data="tasks",
        steps=10000,
        row_len=ROW_LEN,
        batch_size=256,
        optimizer="muon",
        learning_rate=5e-3,
        schedule="stable",
        warmup_steps=50,
        decay_steps=3500,
        checkpoint_every=10000,
        eval_every=2500,
        eval_rows=64,
    )
