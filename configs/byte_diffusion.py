r"""The embedded masked diffusion model: the target's size, seeing both ways.

    pdecode train --config configs/byte_diffusion.py
    pdecode train --config configs/byte_diffusion.py --out results/byte_diffusion_2 \
        --set start_from=results/byte_diffusion --set seed=1 --set steps=7000 \
        --set learning_rate=3e-3 --set decay_steps=5000 --set long_steps=1400 \
        --set checkpoint_every=7000 --set eval_every=3500

The first run starts from the embedded target's parameters, as AR2Diff
(arXiv:2401.17181) and Dream (arXiv:2508.15487) do, but without a shift: every position
predicts itself. It reaches 1.61 bits a byte of the evidence bound; the second, from the
first one's weights, what pdecode/models/weights/diffusion.json says. Data as in
byte_target.py. Hardware: one H200, 293 and 157 seconds beside other runs; on a CPU as
byte_target.py says.
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
            width=256,
            num_layers=4,
            num_heads=4,
            num_kv_heads=1,
            mlp_width=640,
            tied=True,
            max_positions=512,
            attention="bidirectional",
            predicts="masked",
            mask_id=MASK_ID,
            eos_ids=(EOS_ID,),
            dtype="bfloat16",
            name="diffusion",
        ),
        options={"weighting": "llada", "eos_fill": 0.5},
        steps=9000,
        row_len=512,
        batch_size=128,
        short_len=256,
        long_steps=1800,
        optimizer="muon",
        learning_rate=5e-3,
        schedule="stable",
        warmup_steps=50,
        decay_steps=2700,
        checkpoint_every=9000,
        eval_every=4500,
        eval_rows=64,
    )
