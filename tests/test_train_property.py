"""Any config trains and reads back as what was trained, or is refused by its field."""

import dataclasses
import json
import pathlib
import tempfile

import jax
import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import MODEL, RUN, quiet

from pdecode.data.texts import Text
from pdecode.models import embedded
from pdecode.models.config import ATTENTIONS, PREDICTS, Experts
from pdecode.train import config as configs
from pdecode.train import export, objectives, train

SIZES = st.fixed_dictionaries(
    {
        "width": st.sampled_from([8, 16, 24]),
        "num_layers": st.sampled_from([1, 2]),
        "num_heads": st.sampled_from([1, 2, 4]),
        "num_kv_heads": st.sampled_from([0, 1, 2]),
        "mlp_width": st.sampled_from([0, 24, 30]),
        "tied": st.booleans(),
        "qk_norm": st.booleans(),
        "experts": st.sampled_from([None, Experts(2, 1, 8)]),
        "window": st.sampled_from([None, 8]),
        "dtype": st.sampled_from(["float32", "bfloat16"]),
    }
)
KIND = st.fixed_dictionaries(
    {
        # Half of the draws fit their objective, or nothing would ever be trained.
        "fits": st.booleans(),
        "objective": st.sampled_from(objectives.NAMES),
        "attention": st.sampled_from(ATTENTIONS),
        "predicts": st.sampled_from(PREDICTS),
        "shift": st.booleans(),
    }
)
RUNS = st.fixed_dictionaries(
    {
        "optimizer": st.sampled_from(configs.OPTIMIZERS),
        "schedule": st.sampled_from(configs.SCHEDULES),
        "warmup_steps": st.sampled_from([0, 1, 2]),
        "decay_steps": st.sampled_from([0, 0, 1]),
        "final_fraction": st.sampled_from([0.0, 0.5]),
        "batch_size": st.sampled_from([4, 8, 8, 6]),
        "accumulate": st.sampled_from([1, 1, 2]),
        "short_len": st.sampled_from([None, 8]),
        "long_steps": st.sampled_from([0, 0, 1]),
        "forward": st.sampled_from(configs.FORWARDS),
        "remat": st.booleans(),
        "matmul_dtype": st.sampled_from(configs.DTYPES),
        "ema_decay": st.sampled_from([0.0, 0.5]),
        "row_len": st.sampled_from([16, 16, 128]),
    }
)
MESHES = st.sampled_from(
    [
        None,
        {"data": 1},
        {"data": 2},
        {"fsdp": 8},
        {"data": 2, "tensor": 2},
        {"tensor": 3},
    ]
)
NAMED = (
    "model.", "shift", "num_heads", "num_kv_heads", "decay_steps", "warmup_steps",
    "batch_size", "long_steps", "remat", "--mesh", "row_len", "forward",
)  # fmt: skip


def model_of(kind, sizes):
    """The drawn model; ValueError for sizes that no model has."""
    fields = dict(kind)
    fits, objective = fields.pop("fits"), fields.pop("objective")
    if fits:
        needs = objectives.find(objective).needs
        fields |= {"attention": needs.attention[0], "predicts": needs.predicts[0]}
        fields["shift"] = fields["shift"] and needs.shift
    fields["block_len"] = 4 if fields["attention"] == "block_causal" else None
    return dataclasses.replace(MODEL, head_dim=0, sliding=(), **fields, **sizes)


def attempt(kind, sizes, run, axes):
    """Trains three steps and reads back; True, or False where it was refused."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        try:
            model = model_of(kind, sizes)
            frozen = {}
            if kind["objective"] == "blockwise_heads":
                if model.attention == "causal" and model.predicts == "next":
                    stored_target(root / "target", model)
                frozen = {"target": str(root / "target")}
            config = dataclasses.replace(
                RUN, model=model, objective=kind["objective"], frozen=frozen, steps=3,
                eval_every=3, checkpoint_every=3, eval_rows=2, **run,
            )  # fmt: skip
            result = train(config, root / "run", mesh=axes, **quiet())
        except ValueError as error:
            message = str(error)
            assert "\n" not in message and any(name in message for name in NAMED)
            return False
        params, record = embedded.read_from(root / "run")
        frozen = {
            role: embedded.read_from(path)[0] for role, path in config.frozen.items()
        }
    assert embedded.transformer_config(record) == model
    jax.tree.map(np.testing.assert_array_equal, params, result.params)
    validation = tiny.streams()[1]
    text = Text(validation, "validation", config.scored_unit, config.given_ids)
    figures = export.figures(config, params, frozen, text)
    assert set(figures) == set(record["validation"])
    # A moved sum in bfloat16 is worth more than one in float32.
    rtol = 1e-5 if model.dtype == "float32" else 2e-3
    for name, value in figures.items():
        np.testing.assert_allclose(record["validation"][name], value, rtol=rtol)
    assert json.dumps(record, allow_nan=False)
    return True


def stored_target(folder, model):
    from pdecode.models import transformer

    folder.mkdir()
    params = transformer.init(model, jax.random.key(0))
    config = dataclasses.replace(RUN, model=model)
    record = export.describe(config, params)
    export.write(folder, "weights", params, record, dtype=np.float32)


QUIET = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}


@settings(max_examples=8, **QUIET)
@given(KIND, SIZES, RUNS, MESHES)
def test_a_config_trains_or_is_refused(kind, sizes, run, axes):
    attempt(kind, sizes, run, axes)


@pytest.mark.thorough
def test_many_configs_train_or_are_refused():
    trained = []

    @settings(max_examples=60, **QUIET)
    @given(KIND, SIZES, RUNS, MESHES)
    def tried(kind, sizes, run, axes):
        if attempt(kind, sizes, run, axes):
            trained.append(kind["objective"])

    tried()
    assert set(trained) == set(objectives.NAMES)
