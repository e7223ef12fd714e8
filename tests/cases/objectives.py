"""The objectives: for each the fields of a run that train it as small as can be."""

import dataclasses

from pdecode.models import bytes as text
from pdecode.models.config import Config

MODEL = Config(
    vocab_size=text.VOCAB_SIZE,
    width=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    mlp_width=24,
    tied=True,
    max_positions=64,
    mask_id=text.MASK_ID,
    eos_ids=(text.EOS_ID,),
)
CANVAS = dataclasses.replace(MODEL, attention="bidirectional", predicts="masked")

# Frozen models are named by their role; tests put a folder there.
CASES = {
    "autoregressive": {"model": MODEL},
    "masked_diffusion": {"model": CANVAS},
    "any_order": {"model": dataclasses.replace(MODEL, predicts="masked")},
    "distillation": {"model": MODEL, "frozen": ("target",)},
    "sorted_exits": {
        "model": dataclasses.replace(MODEL, num_layers=2, sliding=(), exits=(1, 2)),
    },
    "blockwise_heads": {
        "model": MODEL,
        "frozen": ("target",),
        "options": {"num_heads": 2, "heads_width": 16},
    },
    "eagle": {"model": MODEL, "frozen": ("target",)},
    "eagle3": {"model": MODEL, "frozen": ("target",), "options": {"num_steps": 2}},
    "medusa": {"model": MODEL, "frozen": ("target",), "options": {"num_heads": 2}},
    "hydra": {"model": MODEL, "frozen": ("target",), "options": {"num_heads": 2}},
    "set_block": {"model": MODEL, "options": {"block_length": 4}},
    "jacobi_denoising": {"model": MODEL, "options": {"levels": 3}},
    "judge": {"model": MODEL, "frozen": ("target",), "data": "rows"},
    "glancing": {"model": CANVAS, "options": {"block_length": 4}},
    "refining": {"model": CANVAS, "options": {"own_errors": 0.5}},
    # Behind a space: places of a canvas of nothing but masks are all alike.
    "grpo": {
        "model": CANVAS,
        "frozen": ("reference",),
        "options": {"group": 2, "prompt_end": 32},
    },
    "certainty": {"model": CANVAS, "options": {"block_length": 4}},
    "block_filter": {
        "model": CANVAS,
        "frozen": ("target",),
        "options": {"block_length": 4},
    },
    "consistency": {
        "model": MODEL,
        "data": "rows",
        "options": {"prompt_length": 1, "block_length": 2},
    },
}
