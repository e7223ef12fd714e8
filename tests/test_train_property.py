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
from tiny import MODEL, RUN, quiet, stored_model

from pdecode.data.texts import Text
from pdecode.models import embedded
from pdecode.models.config import ATTENTIONS, PREDICTS, Experts
from pdecode.train import config as configs
from pdecode.train import export, objectives, train

SIZES = st.fixed_dictionaries(
    {
        "width": st.sampled_from([8, 16, 24]),
        "num_layers": st.sampled_from([1, 2]),
        "num_heads": st.sampled_from([1, 2]),
        "num_kv_heads": st.sampled_from([0, 1]),
        "mlp_width": st.sampled_from([0, 24]),
        "tied": st.booleans(),
        "qk_norm": st.booleans(),
    }
)
KIND = st.fixed_dictionaries(
    {
        "objective": st.sampled_from(objectives.NAMES),
        "shift": st.booleans(),
    }
)
RUNS = st.fixed_dictionaries(
    {
        "optimizer": st.sampled_from(configs.OPTIMIZERS),
        "warmup_steps": st.sampled_from([0, 1, 2]),
        "final_fraction": st.sampled_from([0.0, 0.5]),
        "accumulate": st.sampled_from([1, 2]),
        "short_len": st.sampled_from([None, 8]),
        "matmul_dtype": st.sampled_from(configs.DTYPES),
        "ema_decay": st.sampled_from([0.0, 0.5]),
        "row_len": st.just(16),
    }
)
# At most three fields that may not go with the others, or with each other.
ODD = st.dictionaries(
    st.sampled_from(
        ["model.attention", "model.predicts", "model.num_heads", "model.experts",
         "model.window", "model.dtype", "schedule", "decay_steps", "batch_size",
         "long_steps", "forward", "remat", "row_len", "accumulate"]
    ),
    st.integers(0, 5),
    max_size=3,
)  # fmt: skip
CHOICES = {
    "model.attention": ATTENTIONS,
    "model.predicts": PREDICTS,
    "model.num_heads": (3, 4),
    "model.experts": (Experts(2, 1, 8),),
    "model.window": (8,),
    "model.dtype": ("bfloat16",),
    "schedule": ("stable",),
    "decay_steps": (1, 3),
    "batch_size": (4, 6, 16),
    "long_steps": (1,),
    "forward": ("plain",),
    "remat": (True,),
    "row_len": (12, 128),
    "accumulate": (3, 4),
}
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
    "model.", "num_heads", "decay_steps", "warmup_steps", "batch_size", "accumulate",
    "long_steps", "short_len", "remat", "--mesh", "row_len", "steps=3",
)  # fmt: skip


def fields_of(kind, sizes, run, odd):
    """The drawn fields of a model and of a run."""
    needs = objectives.find(kind["objective"]).needs
    model = {
        **sizes,
        "attention": needs.attention[0],
        "predicts": needs.predicts[0],
        "shift": kind["shift"] and needs.shift,
        "exits": (sizes["num_layers"],) if needs.exits else (),
    }
    own = tiny.CASES[kind["objective"]]
    run = {"objective": kind["objective"], "data": own.get("data"), **run}
    if "options" in own:
        run["options"] = own["options"]
    for name, number in odd.items():
        value = CHOICES[name][number % len(CHOICES[name])]
        part, _, field = name.rpartition(".")
        (model if part else run)[field] = value
    model["block_len"] = 4 if model["attention"] == "block_causal" else None
    return model, run


def attempt(kind, sizes, run, odd, axes):
    """Trains three steps and reads back; True, or False where it was refused."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        try:
            fields, run = fields_of(kind, sizes, run, odd)
            model = dataclasses.replace(MODEL, head_dim=0, sliding=(), **fields)
            roles = objectives.find(kind["objective"]).needs.frozen
            frozen = {role: str(root / role) for role in roles}
            needs = objectives.find(kind["objective"]).needs
            if (model.attention, model.predicts) == (
                needs.attention[0], needs.predicts[0]
            ):  # fmt: skip
                for role in roles:
                    stored_model(root / role, model)
            config = dataclasses.replace(
                RUN, model=model, frozen=frozen, steps=3, eval_every=3,
                checkpoint_every=3, eval_rows=2, **run,
            )  # fmt: skip
            result = train(config, root / "run", mesh=axes, **quiet(config.objective))
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
    validation = tiny.streams(config.objective)[1]
    text = Text(
        validation, "validation", config.scored_unit, config.given_ids, config.own_rows
    )
    figures = export.figures(config, params, frozen, text)
    assert set(figures) == set(record["validation"])
    # A moved sum in bfloat16 is worth more than one in float32.
    rtol = 1e-5 if model.dtype == "float32" else 2e-3
    for name, value in figures.items():
        np.testing.assert_allclose(record["validation"][name], value, rtol=rtol)
    assert json.dumps(record, allow_nan=False)
    return True


QUIET = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}


@settings(max_examples=4, **QUIET)
@given(KIND, SIZES, RUNS, ODD, MESHES)
def test_a_config_trains_or_is_refused(kind, sizes, run, odd, axes):
    attempt(kind, sizes, run, odd, axes)


@pytest.mark.thorough
def test_many_configs_train_or_are_refused():
    trained = []

    @settings(max_examples=60, **QUIET)
    @given(KIND, SIZES, RUNS, ODD, MESHES)
    def tried(kind, sizes, run, odd, axes):
        if attempt(kind, sizes, run, odd, axes):
            trained.append(kind["objective"])

    tried()
    assert set(trained) == set(objectives.NAMES)
