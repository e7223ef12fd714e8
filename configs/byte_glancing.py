r"""A masked drafter of the embedded target, trained by glancing (arXiv:2203.16487).

    pdecode train --config configs/byte_glancing.py
    pdecode generate --model target --drafter results/byte_glancing --method spec_dec \
        --set num_draft=8 --prompt "def f(n):"

Half the target's width and depth, seeing both ways; it drafts 8 bytes in one call. Data
as in byte_target.py. Hardware: made for one accelerator; on a CPU add --set
batch_size=8 and fewer steps.
"""

from pdecode.models.bytes import EOS_ID, MASK_ID, VOCAB_SIZE
from pdecode.models.config import Config
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="byte_glancing",
        objective="glancing",
        model=Config(
            vocab_size=VOCAB_SIZE,
            width=128,
            num_layers=2,
            num_heads=4,
            num_kv_heads=1,
            mlp_width=320,
            tied=True,
            max_positions=512,
            attention="bidirectional",
            predicts="masked",
            mask_id=MASK_ID,
            eos_ids=(EOS_ID,),
            name="glancing",
        ),
        options={"block_length": 8},
        steps=8000,
        row_len=256,
        batch_size=128,
        short_len=128,
        long_steps=1000,
        optimizer="muon",
        learning_rate=5e-3,
        schedule="stable",
        warmup_steps=50,
        decay_steps=2500,
        checkpoint_every=4000,
        eval_every=4000,
        eval_rows=64,
    )
