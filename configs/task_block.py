"""The embedded block-diffusion model of the tasks of ParallelBench.

    pdecode train --config configs/task_block.py
    python -m pdecode.evals.parallelbench.embed results/task_block task_block

As task_masked.py, but block-causal (BD3-LM, arXiv:2503.09573): a block sees itself and
what stands before it. Expected accuracy, task by task: see
pdecode/models/weights/task_block.json. Hardware: one H200, 220 seconds beside other
runs.
"""

from pdecode.data.parallelbench.rows import END_ID, ROW_LEN
from pdecode.models.bytes import EOS_ID, MASK_ID, VOCAB_SIZE
from pdecode.models.config import Config
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="task_block",
        objective="masked_diffusion",
        model=Config(
            vocab_size=VOCAB_SIZE,
            width=128,
            num_layers=6,
            num_heads=4,
            mlp_width=320,
            tied=True,
            max_positions=64,
            attention="block_causal",
            block_len=4,
            predicts="masked",
            mask_id=MASK_ID,
            eos_ids=(EOS_ID,),
            name="task_block",
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
        decay_steps=2500,
        checkpoint_every=10000,
        eval_every=2500,
        eval_rows=64,
    )
