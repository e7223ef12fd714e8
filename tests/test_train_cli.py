"""pdecode train on the command line: what it prints, stores and exits with."""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys

import pytest
import tiny
from tiny import quiet

from pdecode import train as train_module
from pdecode.cli import main as cli
from pdecode.cli import train as train_command
from pdecode.data import packing
from pdecode.train import export, objectives, optimizers, settings, trainer

CONFIG = """
import tiny

def get_config():
    return tiny.dataclasses.replace(tiny.RUN, steps=4, data_dir={folder!r})
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr("pdecode.cli.program_cache.enable", lambda: None)
    for name, tokens in zip(("train", "validation"), tiny.streams()):
        packing.save(tmp_path / f"{name}.npy", tokens)
    file = tmp_path / "a config.py"
    file.write_text(CONFIG.format(folder=str(tmp_path)))
    return file


def run(*arguments):
    return cli.main(["train", *map(str, arguments)])


def test_the_stored_command_is_the_one_that_made_it(config, tmp_path, capsys):
    out = tmp_path / "an out"
    sets = ("--set", "decayed=('matrix', 'head')", "--mesh", "data=2")
    assert run("--config", config, "--out", out, *sets) == 0
    record = json.loads((out / "weights.json").read_text())
    words = shlex.split(record["command"])
    assert words[:2] == ["pdecode", "train"]
    assert record["devices"] == "2 x cpu" and record["mesh"] == {"data": 2}
    before = (out / "weights.safetensors").read_bytes()
    assert cli.main([*words[1:], "--overwrite"]) == 0
    assert (out / "weights.safetensors").read_bytes() == before
    assert run("--config", config, "--out", out, *sets) == 0
    assert "finished already" in capsys.readouterr().out


def test_the_end_of_a_run_says_what_decodes_with_it(config, tmp_path, capsys):
    assert run("--config", config, "--out", tmp_path / "target") == 0
    heads = tmp_path / "heads.py"
    heads.write_text(
        config.read_text().replace(
            "steps=4",
            "steps=4, objective='blockwise_heads', options={'num_heads': 2}, "
            f"frozen={{'target': {str(tmp_path / 'target')!r}}}",
        )
    )
    assert run("--config", heads, "--out", tmp_path / "heads") == 0
    told = [
        line.removeprefix("decode it: ")
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("decode it: ")
    ]
    for line, role in zip(told, ("--model", "--drafter"), strict=True):
        command = shlex.split(line)
        assert command[:2] == ["pdecode", "generate"] and role in command
        assert cli.main([*command[1:], "--max-new-tokens", "4"]) == 0


def test_a_run_without_a_frozen_model_says_what_decodes_too():
    """A drafter of nested sub-models was trained by itself."""
    root = pathlib.Path(__file__).parent.parent / "configs"
    config = settings.load(root / "byte_sorted.py")
    record = {
        "name": config.name, "objective": config.objective, "frozen": {},
        "config": {**export.settings(config), "data": None},
    }  # fmt: skip
    args = argparse.Namespace(out="results/sorted")
    said = shlex.split(train_command._next_command(args, record))
    assert said[-4:-2] == ["--drafter", "results/sorted"] and "--model" not in said


@pytest.mark.parametrize(
    "name, frozen, expected",
    [
        ("task_judge", {"target": {"from": "results/task_causal"}}, [
            "--method", "judge_decoding", "--model", "results/task_causal", "--drafter",
            "DRAFTER,out",
        ]),
        ("byte_set_block", {}, [
            "--method", "set_block", "--set", "block_length=8", "--model", "out",
        ]),
        ("byte_space", {}, [
            "--method", "space", "--set", "num_draft=4", "--model", "out",
        ]),
        ("byte_lud", {"target": {"from": "target"}}, [
            "--method", "lud", "--set", "num_draft=4", "--model", "out",
        ]),
    ],
)  # fmt: skip
def test_a_run_says_the_method_it_was_trained_for(name, frozen, expected):
    root = pathlib.Path(__file__).parent.parent / "configs"
    config = settings.load(root / f"{name}.py")
    record = {
        "name": config.name, "objective": config.objective, "frozen": frozen,
        "config": export.settings(config),
        "holds": objectives.of(config).holds(config),
    }  # fmt: skip
    args = argparse.Namespace(out="out")
    said = shlex.split(train_command._next_command(args, record))
    assert said[: len(expected) + 2] == ["pdecode", "generate", *expected]


def test_a_dry_run_prints_the_groups_and_writes_nothing(config, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--config", config, "--out", out, "--dry-run", "--mesh", "fsdp=8") == 0
    told = capsys.readouterr().out
    for part in (
        "matrix",
        "embedding",
        "norm",
        "adam",
        "bytes on each device of fsdp=8",
        "train text: 4,120 tokens",
        "in bits per byte",
        "learning rate: 0.0015 at step 1",
    ):
        assert part in told, told  # fmt: skip
    assert not out.exists()
    assert run("--config", config, "--dry-run", "--mesh", "tensor=5") == cli.BAD_INPUT
    assert "--mesh tensor=5" in capsys.readouterr().err


def test_a_run_that_diverges_ends_in_one_line(config, tmp_path, monkeypatch, capsys):
    from test_train_folder import exploding

    monkeypatch.setattr(optimizers, "make", lambda config: exploding(2))
    assert run("--config", config, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "step 3 is not finite" in error


def test_a_run_that_is_stopped_says_how_to_go_on(config, tmp_path, monkeypatch, capsys):
    def stopped(*args, **more):
        raise train_module.Interrupted("stopped at step 2; go on with: this")

    monkeypatch.setattr(trainer, "_loop", stopped)
    assert run("--config", config, "--out", tmp_path / "out") == 130
    assert capsys.readouterr().err == "pdecode: stopped at step 2; go on with: this\n"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["eval_every=0"], "eval_every=0 must be at least 1"),
        (["short_len=0"], "short_len=0 must be at least 2"),
        (["steps=1"], "warmup_steps=2 must be in [0, steps=1]"),
        (["weighting=mdlm"], "weighting is an option of masked_diffusion"),
        (["init_from=target"], "unknown field 'init_from'; known: name, model, steps"),
        (["model.attention=bidirectional"], "needs model.attention='causal'"),
    ],
)
def test_bad_settings_are_one_line(config, tmp_path, capsys, sets, message):
    options = [part for each in sets for part in ("--set", each)]
    assert run("--config", config, "--out", tmp_path / "out", *options) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_empty_validation_text_is_told_before_anything(config, tmp_path, capsys):
    packing.save(tmp_path / "validation.npy", tiny.streams()[1][:0])
    assert run("--config", config, "--out", tmp_path / "out") == cli.BAD_INPUT
    assert "the validation text has 0 tokens" in capsys.readouterr().err


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["target", "drafter", "heads", "diffusion"])
def test_every_config_trains_with_the_settings_for_gpus(tmp_path, name):
    root = pathlib.Path(__file__).parent.parent
    config = settings.load(root / "configs" / f"byte_{name}.py")
    config = settings.override(
        config,
        ["forward=transformer", "model.dtype=bfloat16", "steps=2", "warmup_steps=1",
         "decay_steps=0", "long_steps=0", "row_len=32", "short_len=16", "eval_rows=2"],
    )  # fmt: skip
    record = train_module.train(config, tmp_path / "run", **quiet()).record
    assert record["config"]["model"]["dtype"] == "bfloat16"


def test_the_module_runs():
    found = subprocess.run(
        [sys.executable, "-m", "pdecode", "train", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for option in ("--overwrite", "--dry-run", "--mesh", "--set", "--coordinator"):
        assert option in found.stdout
