"""What a run wrote decodes as it is, with the weights it was made for and no others."""

import dataclasses
import json

import numpy as np
import pytest
from tiny import MODEL, RUN, quiet

from pdecode import generation
from pdecode.cli import main as cli
from pdecode.train import train

SHORT = dataclasses.replace(RUN, steps=2, warmup_steps=1, eval_every=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A target, another of the same size, and heads of the first."""
    root = tmp_path_factory.mktemp("runs")
    for name, seed in (("target", 0), ("other", 1)):
        train(dataclasses.replace(SHORT, seed=seed), root / name, **quiet())
    heads = dataclasses.replace(
        SHORT, objective="blockwise_heads", frozen={"target": str(root / "target")},
        options={"num_heads": 2, "heads_width": 8},
    )  # fmt: skip
    train(heads, root / "heads", **quiet())
    return root


def test_a_runs_folder_decodes_as_it_is(runs):
    alone = generation.generate(
        [[97, 98]], model=str(runs / "target"), max_new_tokens=6
    )
    assert alone.lengths[0] <= 6
    ahead = generation.generate(
        [[97, 98]], model=str(runs / "target"), drafter=str(runs / "heads"),
        method="blockwise", num_draft=2, max_new_tokens=6,
    )  # fmt: skip
    assert ahead.tokens == alone.tokens  # greedy, so lossless token for token


def test_heads_of_other_weights_are_refused(runs, tmp_path):
    options = {"drafter": str(runs / "heads"), "method": "blockwise"}
    with pytest.raises(
        ValueError, match=r"heads was trained on .*target \(.* but .*other"
    ):
        generation.prepare("x", model=str(runs / "other"), **options)
    # The same weights under a new path are the same weights.
    moved = tmp_path / "moved"
    moved.symlink_to(runs / "target")
    generation.prepare("x", model=str(moved), **options)


def test_heads_of_another_width_are_refused_in_one_line(capsys):
    command = "generate --model drafter --drafter heads --method blockwise --prompt x"
    assert cli.main(command.split()) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert (
        "heads was trained on a model of width" in error
        and "drafter has width" in error
    )


def test_a_record_names_what_it_was_made_with(runs):
    record = json.loads((runs / "heads" / "weights.json").read_text())
    target = json.loads((runs / "target" / "weights.json").read_text())
    assert record["frozen"]["target"] == {
        "from": str(runs / "target"), "sha256": target["sha256"],
    }  # fmt: skip
    assert record["config"]["model"]["width"] == MODEL.width


def test_a_run_on_other_tokens_than_bytes_decodes_ids(tmp_path):
    model = dataclasses.replace(MODEL, vocab_size=300, mask_id=None, eos_ids=())
    tokens = np.resize([257, 299, 3], 2000)
    config = dataclasses.replace(SHORT, model=model)
    train(config, tmp_path, **quiet(streams=(tokens, tokens[:50])))
    found = generation.generate([[257, 299]], model=str(tmp_path), max_new_tokens=4)
    assert len(found.tokens[0]) == 4
    with pytest.raises(ValueError, match="give the prompt as token ids"):
        generation.prepare("x", model=str(tmp_path), max_new_tokens=4)
