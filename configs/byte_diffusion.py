"""The embedded masked diffusion model: the target's size, seeing both ways.

    pdecode train --config configs/byte_diffusion.py

It starts from the embedded target's parameters, as AR2Diff (arXiv:2401.17181) and Dream
(arXiv:2508.15487) do, but without a shift: every position predicts itself. Data and
hardware as in byte_target.py. Expected: bits per byte of the evidence bound, see
pdecode/models/weights/diffusion.json.
"""

from pdecode.models.bytes import EOS_ID, MASK_ID, VOCAB_SIZE
from pdecode.models.config import Config
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="byte_diffusion",
        objective="masked_diffusion",
        start_from="target",
        model=Config(
            vocab_size=VOCAB_SIZE,
            width=192,
            num_layers=4,
            num_heads=3,
            num_kv_heads=1,
            mlp_width=384,
            tied=True,
            max_positions=512,
            attention="bidirectional",
            predicts="masked",
            mask_id=MASK_ID,
            eos_ids=(EOS_ID,),
            name="diffusion",
        ),
        options={"weighting": "llada", "eos_fill": 0.5},
        steps=6000,
        row_len=512,
        batch_size=8,
        short_len=256,
        long_steps=600,
        optimizer="muon",
        learning_rate=5e-3,
        schedule="stable",
        warmup_steps=50,
        decay_steps=1200,
        forward="plain",
        matmul_dtype="bfloat16",
        checkpoint_every=100,
        eval_every=250,
        eval_rows=32,
    )
