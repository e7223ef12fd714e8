"""A benchmark beside an earlier one, and a file of them."""

import json

import pytest

from pdecode.cli import bench, suites
from pdecode.cli import main as cli
from pdecode.evals.bench import history, loop

LINE = {"name": "autoregressive", "batch_size": 1, "ratio": 1.02, "loop_ms": 0.5}
DEVICE = {"kind": "cpu"}


def document(**changes):
    cases = [{**LINE, **changes}, {**LINE, "name": "new"}]
    return {"suite": "loop", "device": DEVICE, "versions": {}, "cases": cases}


def test_figures_before_and_now():
    before = document()
    before["cases"] = [{**LINE, "ratio": 1.04}, {**LINE, "name": "old"}]
    table = history.table(document(ratio=1.3), before)
    (row,) = [each for each in table.splitlines() if each.startswith("autoregressive")]
    assert row.split() == "autoregressive 1 1.04 > 1.3 +25.0 % 0.5 > 0.5 +0.0 %".split()
    assert "only now: new 1" in table and "only before: old 1" in table
    assert "device" not in table


def test_another_device_is_told():
    before = document() | {"device": {"kind": "NVIDIA H200"}}
    table = history.table(document(), before)
    assert "H200" in table and "compare only where these are equal" in table


def test_a_history_grows_line_by_line(tmp_path):
    path = str(tmp_path / "loop.jsonl")
    history.append(path, document())
    history.append(path, {"suite": "visual"})
    history.append(path, document(ratio=9.0))
    assert len(open(path).read().splitlines()) == 3
    assert (
        history.read(path, "loop")["cases"][0]["ratio"] == 9.0
    )  # the last of its kind


def test_the_command_compares_and_appends(tmp_path, monkeypatch, capsys):
    old = tmp_path / "old.json"
    old.write_text(json.dumps(document(ratio=1.04)))
    monkeypatch.setattr(bench, "_loop", lambda *_: {"cases": document()["cases"]})
    path = tmp_path / "h.jsonl"
    command = ["bench", "--against", str(old), "--history", str(path)]
    assert cli.main(command) == 0
    assert "autoregressive 1" in capsys.readouterr().out
    assert json.loads(path.read_text())["cases"] == document()["cases"]
    assert cli.main(["bench", "--against", str(path)]) == 0


@pytest.mark.parametrize(
    "option, message",
    [
        ("--against nowhere.json", "No such file"),
        ("--against bad.json", "damaged"),
        ("--against other.json", "no run of the suite loop"),
        ("--history h.json", "must end in .jsonl"),
        ("--history none/h.jsonl", "lies in no folder"),
        ("--suite parallelbench --against bad.json", "--against is for --suite loop"),
    ],
)
def test_errors_come_before_work(option, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "other.json").write_text('{"suite": "visual"}')
    monkeypatch.setattr(bench, "run", lambda *_: pytest.fail("measured"))
    assert cli.main(["bench", *option.split()]) != 0
    assert message in capsys.readouterr().err


def test_a_suite_of_two_lists():
    decode = {"case": "window", "weights": "fused", "shape": "llada-8b"}
    before = {"suite": "hotpath", "decodes": [{**decode, "ms": 6.0, "share": 0.5}]}
    made = {"suite": "hotpath", "decodes": [{**decode, "ms": 5.0, "share": 0.6}]}
    table = history.table(made, before)
    assert "window fused llada-8b None" in table and "6 > 5" in table


def test_every_suite_that_is_compared_has_its_figures():
    taking = {name for name, takes in suites.TAKES.items() if "against" in takes}
    assert taking == set(history.KINDS)
    assert set(history.KINDS["loop"][0].figures) <= set(loop.Overhead._fields)
