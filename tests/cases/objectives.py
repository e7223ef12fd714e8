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
    "space": {"model": MODEL, "options": {"num_masks": 2, "num_places": 4}},
    "lud": {
        "model": MODEL,
        "frozen": ("target",),
        "options": {"num_masks": 2, "num_places": 4, "unit_threshold": 0.001},
    },
    "blockwise_heads": {
        "model": MODEL,
        "frozen": ("target",),
        "options": {"num_heads": 2, "heads_width": 16},
    },
    "eagle": {"model": MODEL, "frozen": ("target",)},
    "eagle3": {"model": MODEL, "frozen": ("target",), "options": {"num_steps": 2}},
    "falcon": {"model": MODEL, "frozen": ("target",), "options": {"num_recurrent": 1}},
    "jakiro": {"model": MODEL, "frozen": ("target",)},
    "medusa": {"model": MODEL, "frozen": ("target",), "options": {"num_heads": 2}},
    "medusa2": {
        "model": MODEL,
        "frozen": ("target",),
        "options": {"num_heads": 2, "heads_steps": 1},
    },
    "hydra": {"model": MODEL, "frozen": ("target",), "options": {"num_heads": 2}},
    "set_block": {"model": MODEL, "options": {"block_length": 4}},
    "jacobi_denoising": {"model": MODEL, "options": {"levels": 3}},
    "ppd": {
        "model": MODEL,
        "frozen": ("target",),
        "options": {"num_tokens": 2, "num_places": 4},
    },
    "mtp": {"model": MODEL, "frozen": ("target",), "options": {"num_modules": 2}},
    "clover": {
        "model": MODEL,
        "frozen": ("target",),
        "options": {"num_heads": 2, "num_layers": 1},
    },
    "amphista": {"model": MODEL, "frozen": ("target",), "options": {"num_heads": 2}},
    "judge": {"model": MODEL, "frozen": ("target",), "data": "rows"},
    "glancing": {"model": CANVAS, "options": {"block_length": 4}},
    "hidden_transfer": {
        "model": dataclasses.replace(MODEL, num_layers=2, sliding=()),
        "frozen": ("target",),
        "options": {"layers": (1, 0), "num_places": 4},
    },
    "koala": {
        "model": MODEL,
        "frozen": ("target",),
        "options": {"num_heads": 2, "discriminator_width": 8},
    },
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
    "spec_vlm": {
        "model": MODEL,
        "frozen": ("target",),
        "options": {"num_features": 8, "num_question": 2, "pool": 2, "conv": 4},
    },
    "flash": {
        "model": MODEL,
        "frozen": ("target",),
        "options": {"num_features": 8, "num_question": 2, "num_latents": 3},
    },
    "dream_vlm": {"model": MODEL, "frozen": ("target",), "options": {"num_given": 3}},
    "consistency": {
        "model": MODEL,
        "data": "rows",
        "options": {"prompt_length": 1, "block_length": 2},
    },
    "staged_flow": {
        "model": dataclasses.replace(CANVAS, predicts="uniform"),
        "options": {
            "side": 2,
            "levels": text.VOCAB_SIZE,
            "patch": 1,
            "draws": 2,
            "slices": ((0.0, 0.5), (0.2, 1.0)),
        },
    },
    "distilled_decoding": {
        "model": CANVAS,
        "data": "rows",
        "options": {"codes": ((-1.0, 0.0), (1.0, 0.5), (0.0, 2.0)), "starts": (0, 3)},
    },
    "frame_diffusion": {
        "model": dataclasses.replace(
            MODEL, attention="block_causal", block_len=4, predicts="values"
        ),
        "data": "rows",
        "options": {"patch": 2, "num_levels": 256},
    },
    "film_chunks": {
        "model": dataclasses.replace(
            MODEL, attention="block_causal", block_len=4, predicts="values"
        ),
        "data": "rows",
        "options": {"patch": 2, "num_levels": 256},
    },
}
