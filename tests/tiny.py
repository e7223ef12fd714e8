"""A model, a run and two texts, as small as they can be: what training tests share."""

import dataclasses

import jax
import numpy as np
from cases.objectives import CASES, MODEL

from pdecode.data import packing
from pdecode.models import transformer
from pdecode.train import TrainConfig, export

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


def streams(name="autoregressive"):
    """Texts of an objective."""
    source = [b"def f(x):\n    return x + 1\n" * 3, b"class A:\n    pass\n"] * 40
    tokens = packing.stream(source)
    if CASES[name].get("data") is None:
        return tokens, tokens[:600]
    # Whole rows, all parts of which begin with the same token.
    tokens = np.resize(tokens, 3840)
    tokens[::4] = 97
    if name == "judge":  # half of a row are labels, of 32 tokens or of 16
        tokens.reshape(-1, 32)[:, 8:] %= 3
    return tokens, tokens[:1920]


def quiet(name="autoregressive", **more):
    """Arguments of `train` besides the config and the folder."""
    return {"streams": streams(name), "log": lambda line: None, **more}


def stored_model(workdir, model=MODEL, seed=0):
    """A folder as a run leaves it, with random weights of `model`."""
    names = {"next": "autoregressive", "masked": "masked_diffusion"}
    config = dataclasses.replace(RUN, model=model, objective=names[model.predicts])
    params = transformer.init(model, jax.random.key(seed))
    workdir.mkdir(parents=True, exist_ok=True)
    record = export.describe(config, params)
    export.write(workdir, "weights", params, record, dtype=np.float32)
    return str(workdir)


def case(name, root, **fields):
    """The config of an objective's case; frozen models lie under `root`."""
    own = dict(CASES[name])
    roles = own.pop("frozen", ())
    frozen = {role: stored_model(root / role, own["model"]) for role in roles}
    return dataclasses.replace(RUN, objective=name, frozen=frozen, **own, **fields)
