"""A model, a run and two texts, as small as they can be: what training tests share."""

import dataclasses

from pdecode.data import packing
from pdecode.models import bytes as text
from pdecode.models.config import Config
from pdecode.train import TrainConfig

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
RUN = TrainConfig(
    name="tiny",
    model=MODEL,
    steps=6,
    row_len=32,
    batch_size=8,
    warmup_steps=2,
    checkpoint_every=2,
    eval_every=3,
    eval_rows=4,
)


def streams():
    source = [b"def f(x):\n    return x + 1\n" * 3, b"class A:\n    pass\n"] * 40
    tokens = packing.stream(source)
    return tokens, tokens[:600]


def quiet(**more):
    """Arguments of `train` besides the config and the folder."""
    return {"streams": streams(), "log": lambda line: None, **more}
