"""LUD: the embedded target trained on to say lexical units (arXiv:2405.15208).

    pdecode train --config configs/byte_lud.py

Four masks behind eight places of a row, scored as far as the embedded target gives each
token 0.9. What it decodes is not verified: methods.lud is lossy, and the model is
another one than the target. Data as in byte_target.py. Tokens a call are told, in
Python, by

    pdecode.evals.acceptance.measure(method="lud", model="results/byte_lud")

Hardware: made for one accelerator; on a CPU add --set batch_size=8 and fewer steps.
"""

from pdecode.models.bytes import EOS_ID, MASK_ID, VOCAB_SIZE
from pdecode.models.config import Config
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="byte_lud",
        objective="lud",
        start_from="target",
        frozen={"target": "target"},
        model=Config(
            vocab_size=VOCAB_SIZE,
            width=256,
            num_layers=4,
            num_heads=4,
            num_kv_heads=1,
            mlp_width=640,
            tied=True,
            max_positions=512,
            mask_id=MASK_ID,
            eos_ids=(EOS_ID,),
            name="target",
        ),
        options={"num_masks": 4},
        steps=2000,
        row_len=512,
        batch_size=64,
        short_len=256,
        optimizer="adamw",
        learning_rate=3e-4,
        schedule="stable",
        warmup_steps=50,
        decay_steps=600,
        checkpoint_every=1000,
        eval_every=1000,
        eval_rows=16,
    )
