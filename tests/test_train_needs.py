"""What a run refuses: models an objective cannot train, options, ranges, weights."""

import dataclasses
import itertools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.objectives import CANVAS
from tiny import CASES, MODEL, RUN, stored_model

from pdecode.models import embedded, transformer
from pdecode.models.config import ATTENTIONS, PREDICTS, Config, Experts, Rope
from pdecode.train import TrainConfig, export, objectives, settings, sources

SMALL = Config(vocab_size=5, width=8, num_layers=1, num_heads=2, mask_id=4)
LENGTH = 16
BLOCK = 4  # of what has blocks
# What they learn is no token: whether a given one was right, what one is worth,
# numbers, or a velocity.
JUDGES = (
    "block_filter", "frame_diffusion", "film_chunks", "grpo", "judge", "staged_flow",
)  # fmt: skip


def config_of(objective, model, **fields):
    own = objectives.find(objective)
    frozen = {role: "target" for role in own.needs.frozen}
    known = {field.name for field in dataclasses.fields(own.options)}
    options = {"block_length": BLOCK, "prompt_length": 1, "num_features": 8}
    options |= {"pool": 2, "conv": 4, "side": 2, "patch": 1}
    options["slices"] = ((0, 0.5), (0.2, 1))
    # What a glance reveals is told by the answers: here there is none.
    options |= {"reveal_first": 0, "reveal_last": 0}
    return TrainConfig(
        name="x", model=model, objective=objective, steps=9, warmup_steps=0,
        row_len=LENGTH, frozen=frozen,
        data="rows" if own.needs.own_rows else None,
        options={name: value for name, value in options.items() if name in known},
        **fields,
    )  # fmt: skip


def total_of_answers(objective, config):
    """For every scored place: the sum of exp(-nats) over all answers there.

    One, if the prediction at the place stays while its answer changes.
    """
    own = objectives.find(objective)
    model = config.model
    frozen = {
        role: transformer.init(model, jax.random.key(2)) for role in own.needs.frozen
    }
    params = own.start(config, jax.random.key(0), None)
    # Heads start as the target; away from zero they have something to say.
    params = jax.tree.map(lambda p: p + 0.1, params)
    tokens = np.array([[1, 0, 3, 2] * 4], np.int32)
    noise = (lambda batch, key: batch) if own.noise is None else own.noise(config)
    base = noise({"tokens": jnp.asarray(tokens)}, jax.random.key(4))
    if "masked" in base:
        base["masked"] = jnp.asarray([[True, False, True, True] * 4])
    loss = jax.jit(own.loss(config))
    totals = []
    for place in range(LENGTH):
        many = np.repeat(tokens, model.vocab_size, 0)
        many[:, place] = np.arange(model.vocab_size)
        batch = {
            name: jnp.repeat(leaf, model.vocab_size, 0) for name, leaf in base.items()
        } | {"tokens": jnp.asarray(many)}
        _, aux = loss(params, frozen, batch, jax.random.key(5), 0)
        here = np.asarray(aux["places"]) == place
        chances = np.exp(-np.asarray(aux["nats"]))
        totals.extend(chances[:, here & np.asarray(aux["scored"][0])].sum(0))
    return np.array(totals)


def test_every_objective_has_a_case():
    assert set(CASES) == set(objectives.NAMES)


MATRIX = list(itertools.product(objectives.NAMES, ATTENTIONS, PREDICTS, [False, True]))


@pytest.mark.parametrize("objective", objectives.NAMES)
def test_each_pair_is_refused_or_cannot_see_what_it_predicts(objective, monkeypatch):
    # The frozen models of `total_of_answers` are of the model's own size.
    monkeypatch.setattr(sources, "model_of", lambda config, role: config.model)
    num_right = 0
    exits = objectives.find(objective).needs.exits
    for name, attention, predicts, shift in MATRIX:
        if name != objective:
            continue
        block_len = BLOCK if attention == "block_causal" else None
        model = dataclasses.replace(
            SMALL, attention=attention, predicts=predicts, shift=shift,
            block_len=block_len, exits=(1,) if exits and not shift else (),
        )  # fmt: skip
        try:
            config = config_of(objective, model)
        except ValueError as error:
            assert f"objective={objective} needs model." in str(error)
            continue
        num_right += 1
        totals = total_of_answers(objective, config)
        assert len(totals) == 0 if objective in JUDGES else len(totals) >= 3
        np.testing.assert_allclose(totals, 1.0, atol=1e-5)
    needs = objectives.find(objective).needs
    assert num_right == len(needs.attention) * (1 + needs.shift)


@pytest.mark.parametrize(
    ("objective", "attention"),
    [
        ("autoregressive", "bidirectional"),
        ("autoregressive", "block_causal"),
        ("blockwise_heads", "bidirectional"),
    ],
)
def test_what_is_refused_would_see_its_answers(objective, attention):
    """The control: without the check these train on what they predict."""
    block_len = 2 if attention == "block_causal" else None
    config = config_of(objective, SMALL)
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    fields["model"] = dataclasses.replace(
        SMALL, attention=attention, block_len=block_len
    )
    blind = types.SimpleNamespace(**fields, given_ids=())
    assert np.abs(total_of_answers(objective, blind) - 1).max() > 1e-3


HEADS = {"objective": "blockwise_heads", "frozen": {"target": "target"}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "diffusion"}, "unknown objective 'diffusion'; known: autoregr"),
        ({"model": dataclasses.replace(CANVAS, mask_id=None),
          "objective": "masked_diffusion"}, r"needs model\.mask_id"),
        ({"options": {"weighting": "mdlm"}}, "weighting is no option of object"),
        ({"options": {"num_heads": 0}, **HEADS}, "num_heads=0 must be at least 1"),
        ({"options": {"eos_fill": 1.5}, "model": CANVAS,
          "objective": "masked_diffusion"}, "eos_fill=1.5 must be at least 0"),
        ({"objective": "blockwise_heads"}, r"needs frozen\.target"),
        ({"frozen": {"teacher": "target"}}, "has no frozen model 'teacher'"),
        ({"start_from": "target", **HEADS}, "start_from='target'.*begins by itself"),
        ({"decay_steps": 2}, "decay_steps=2 is of schedule='stable'"),
        ({"schedule": "stable", "steps": 10, "warmup_steps": 8, "decay_steps": 6},
         "warmup_steps=8 and decay_steps=6 overlap in steps=10"),
        ({"warmup_steps": 7}, r"warmup_steps=7 must be in \[0, steps=6\]"),
        ({"eval_every": 0}, "eval_every=0 must be at least 1"),
        ({"eval_rows": 0}, "eval_rows=0 must be at least 1"),
        ({"short_len": 0}, "short_len=0 must be at least 2"),
        ({"short_len": 5}, "short_len=5 must divide row_len=32"),
        ({"long_steps": 2}, "long_steps=2 needs a short_len"),
        ({"seed": 2**64}, "seed=18446744073709551616 must be at least 0 and at most"),
        ({"seed": 2**32}, "seed=4294967296 must be at least 0 and at most 4294967295"),
        ({"seed": -1}, "seed=-1"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0 and finite"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"clip_norm": float("inf")}, "clip_norm=inf"),
        ({"b2": 1.0}, "b2=1.0 must be at least 0"),
        ({"accumulate": 3}, "accumulate=3 must divide batch_size=8"),
        ({"decayed": ("matrices",)}, "unknown role 'matrices' in decayed"),
        ({"skip_steps": (6,)}, r"skip_steps=6 must be in \[0, steps=6\)"),
        ({"remat": True, "forward": "plain"}, "remat=True is of forward='transformer'"),
        ({"model": dataclasses.replace(MODEL, dtype="float16")},
         r"unknown model\.dtype 'float16'"),
        ({"model": dataclasses.replace(MODEL, vocab_size=64, mask_id=None, eos_ids=()),
          "unit": "byte"}, "unit='byte' needs model.vocab_size=64 to be at least 260"),
        ({"frozen": 5}, "frozen=5 must name a folder"),
        ({"frozen": {"target": 5}}, "must name a folder"),
        ({"model": dataclasses.replace(MODEL, window=0)}, r"model\.window=0 must be"),
        ({"model": dataclasses.replace(MODEL, eos_ids=(260,))},
         r"model\.eos_ids=260 is no id"),
        ({"model": dataclasses.replace(MODEL, experts=Experts(2, 0, 8))},
         r"model\.experts\.top_k=0 must be at least 1 and at most 2"),
        ({"row_len": 128}, r"row_len=128 exceeds model\.max_positions=64"),
    ],
)  # fmt: skip
def test_refused_in_one_line_that_names_the_field(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        dataclasses.replace(RUN, **fields)
    assert "\n" not in str(caught.value)


def test_more_experts_than_there_are_is_refused():
    with pytest.raises(ValueError, match="top_k=3 is more than the 2 experts"):
        Experts(2, 3, 8)


ROOT = export.pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("name", "sets", "message"),
    [
        ("target", ["schedule=cosine"], "decay_steps=285 is of schedule='stable'"),
        (
            "target",
            ["weighting=mdlm"],
            "weighting is an option of masked_diffusion, not",
        ),
        ("target", ["num_heads=2"], "num_heads is an option of blockwise_heads"),
        ("heads", ["steps=20"], r"warmup_steps=50 must be in \[0, steps=20\]"),
        ("heads", ["options.heads=2"], r"unknown field options\.heads; known: num_hea"),
        ("heads", ["frozen.teacher=x"], "no frozen model 'teacher'; known: target"),
        ("target", ["model.width=193"], "num_heads=4 must divide width=193"),
        ("target", ["row_len=64.5"], "row_len is of type int .* got 64.5"),
        ("target", ["short_len=x"], "short_len is of type int or NoneType"),
        ("target", ["remat=1"], "remat is of type bool"),
        ("target", ["seed=18446744073709551616"], "seed=18446744073709551616 must be"),
        ("target", ["options=3"], "options=3: set one by one"),
        ("target", ["frozen=target"], "frozen='target' must name a folder or model"),
        ("target", ["model.experts.top_k=2"], r"model\.experts: .*missing"),
        ("target", ["model=3"], "model is of type Config"),
        ("target", ["model.attention=bidirectional"], "needs model.attention='causal'"),
    ],
)
def test_settings_of_the_shipped_configs_that_are_refused(name, sets, message):
    config = settings.load(ROOT / "configs" / f"byte_{name}.py")
    with pytest.raises(ValueError, match=message) as caught:
        settings.override(config, sets)
    assert "\n" not in str(caught.value)


def test_derived_fields_follow_and_given_ones_stay():
    config = settings.load(ROOT / "configs" / "byte_target.py")
    model = settings.override(config, ["model.num_heads=8"]).model
    assert (model.head_dim, model.num_kv_heads, model.mlp_width) == (32, 1, 640)
    model = settings.override(config, ["model.width=96", "model.num_heads=2"]).model
    assert (model.head_dim, model.mlp_width) == (48, 640)
    model = settings.override(config, ["model.num_layers=2"]).model
    assert (model.num_layers, model.sliding) == (2, (False, False))
    model = settings.override(
        config, ["model.window=8", "model.num_layers=3", "forward=transformer"]
    ).model
    assert model.sliding == (True, True, True)
    model = settings.override(config, ["model.head_dim=32"]).model
    assert (model.head_dim, model.num_heads) == (32, 4)


def test_options_follow_the_objective():
    config = settings.load(ROOT / "configs" / "byte_heads.py")
    assert settings.override(config, ["num_heads=3"]).options.num_heads == 3
    config = settings.load(ROOT / "configs" / "byte_diffusion.py")
    found = settings.override(config, ["weighting=mdlm", "options.eos_fill=0"])
    assert (found.options.weighting, found.options.eos_fill) == ("mdlm", 0.0)
    assert settings.override(found, ["eos_fill=0.25"]).options.weighting == "mdlm"


DRAFTING = (
    "heads", "eagle", "eagle3", "medusa", "hydra", "mtp", "hydra_plus", "clover",
    "amphista", "koala", "medusa2",
)  # fmt: skip


@pytest.mark.parametrize("name", ["target", "drafter", "diffusion", *DRAFTING])
def test_the_settings_for_gpus_are_settings_of_every_config(name):
    config = settings.load(ROOT / "configs" / f"byte_{name}.py")
    sets = ["forward=transformer", "model.dtype=bfloat16"]
    found = settings.override(config, sets)
    weights = sources.read(found, None)
    expected = {role: {"frozen.target"} for role in DRAFTING}
    expected["diffusion"] = {"start_from"}
    expected["clover"] = expected["medusa2"] = {"frozen.target", "start_from"}
    assert set(weights) == expected.get(name, set())


EVERY_FIELD = {
    "num_kv_heads": 1, "head_dim": 6, "mlp_width": 20,
    "rope": Rope(theta=99.0, columns=3, before=1),
    "rope_sliding": Rope(fraction=0.5), "max_positions": 33, "embed_scale": 2.0,
    "norm": "layer", "norm_eps": 1e-3, "norm_offset": 1.0, "post_norms": True,
    "activation": "gelu", "gated": False, "mlp_bias": True,
    "experts": Experts(3, 2, 8), "qkv_bias": True, "out_bias": True, "qk_norm": True,
    "query_scale": 0.5, "attention_soft_cap": 9.0, "window": 4, "tied": True,
    "logit_scale": 0.5, "logit_soft_cap": 9.0, "attention": "bidirectional",
    "predicts": "masked", "shift": True, "mask_id": 3, "eos_ids": (1, 2),
    "taps": ("embed",), "exits": (1, 2), "dtype": "bfloat16", "name": "other",
}  # fmt: skip


# Fields that stand with another one only.
TOGETHER = {
    "sliding": {"window": 4, "sliding": (True, False)},
    "block_len": {"attention": "block_causal", "block_len": 3},
    "dense_layers": {"experts": Experts(3, 2, 8), "dense_layers": 1},
}


@pytest.mark.parametrize("field", [*EVERY_FIELD, "rope_none", *TOGETHER])
def test_what_is_stored_reads_back_as_the_model(field):
    others = TOGETHER | {"rope_none": {"rope": None, "max_positions": 9}}
    changes = others.get(field) or {field: EVERY_FIELD[field]}
    model = Config(vocab_size=11, width=8, num_layers=2, num_heads=2, **changes)
    stored = json.loads(json.dumps(export.model_settings(model)))
    assert embedded.transformer_config({"config": {"model": stored}}) == model
    # A width that the heads do not divide needs its head_dim.
    odd = Config(vocab_size=11, width=9, num_layers=2, num_heads=2, head_dim=2)
    stored = json.loads(json.dumps(export.model_settings(odd)))
    assert embedded.transformer_config({"config": {"model": stored}}) == odd


def test_every_field_of_a_model_is_tried():
    sizes = {"vocab_size", "width", "num_layers", "num_heads"}
    tried = {*EVERY_FIELD, *TOGETHER, *sizes}
    assert tried == {field.name for field in dataclasses.fields(Config)}


def test_other_weights_than_the_model_are_named_with_both_values(tmp_path):
    wide = dataclasses.replace(MODEL, mlp_width=40, qk_norm=True)
    origin = stored_model(tmp_path / "wide", wide)
    config = dataclasses.replace(RUN, start_from=origin)
    with pytest.raises(ValueError) as caught:
        sources.read(config, None)
    for part in ("start_from", "model.mlp_width=24 here, 40 there", "qk_norm=False"):
        assert part in str(caught.value)
    # What a decoder reads may change where one begins, the compute dtype anywhere.
    origin = stored_model(tmp_path / "half", dataclasses.replace(CANVAS, name="half"))
    found = sources.read(dataclasses.replace(RUN, start_from=origin), None)
    assert len(found["start_from"].sha256) == 64
    half = dataclasses.replace(MODEL, dtype="bfloat16")
    config = dataclasses.replace(
        RUN, model=half, **{**HEADS, "frozen": {"target": stored_model(tmp_path / "t")}}
    )
    assert set(sources.read(config, None)) == {"frozen.target"}
    with pytest.raises(ValueError, match=r"model\.attention='causal' here, 'bidirec"):
        frozen = {"target": origin}
        sources.read(dataclasses.replace(config, frozen=frozen), None)
    with pytest.raises(ValueError, match=r"frozen\.target=heads holds draft_heads"):
        sources.read(dataclasses.replace(config, frozen={"target": "heads"}), None)
    with pytest.raises(ValueError, match=r"start_from=nowhere: unknown embedded model"):
        sources.read(dataclasses.replace(RUN, start_from="nowhere"), None)
