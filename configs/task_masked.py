r"""The embedded masked model of the tasks of ParallelBench.

    pdecode train --config configs/task_masked.py
    pdecode train --config configs/task_masked.py --out results/task_masked_2 \
        --set start_from=results/task_masked --set seed=1 --set learning_rate=4e-3 \
        --set steps=4000 --set decay_steps=2500
    python -m pdecode.evals.parallelbench.embed results/task_masked_2 task_masked

Data: instances of pdecode.data.parallelbench in their compact form, one a row, made
when the run begins. Expected accuracy, task by task: see
pdecode/models/weights/task_masked.json. Hardware as in byte_target.py.
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
            width=96,
            num_layers=4,
            num_heads=4,
            mlp_width=256,
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
        steps=8000,
        row_len=ROW_LEN,
        batch_size=64,
        optimizer="muon",
        learning_rate=5e-3,
        schedule="stable",
        warmup_steps=50,
        decay_steps=1500,
        forward="plain",
        matmul_dtype="bfloat16",
        checkpoint_every=200,
        eval_every=500,
        eval_rows=64,
    )
