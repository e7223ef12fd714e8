"""The suite: areas and intervals in closed form, counts, a run that goes on."""

import dataclasses
import json
import math

import jax
import pytest
import tiny
from cases.objectives import CANVAS

from pdecode import programs
from pdecode.cli import main as cli
from pdecode.data.parallelbench import tasks
from pdecode.evals import quality
from pdecode.evals.parallelbench import bounds, exact, suite, summary
from pdecode.models import embedded, transformer

THRESHOLD = suite.Entry("threshold", "fast_dllm", "threshold", (1.0, 0.0), {})


def test_aup_of_two_points():
    """By hand, in any order; a point more than 5 below the first one does not count."""
    y, z = 80.0, 76.0
    weight = math.exp(-3 * (1 - z / y))
    expected = 1.5 * y + 0.5 * (4.0 - 1.5) * (z * weight + y)
    assert math.isclose(summary.aup([(4.0, z), (1.5, y)]), expected)
    assert math.isclose(summary.aup([(4.0, z), (1.5, y), (9.0, 74.9)]), expected)
    assert summary.aup([(4.0, z), (1.5, y), (9.0, 75.1)]) > expected + 1
    assert summary.aup([(2.0, 50.0)]) == 100.0
    assert summary.aup([(2.0, 0.0)]) == 0.0
    # More accuracy at the fast end raises the best, and so weighs the first point less.
    faster = summary.aup([(1.0, 80.0), (2.0, 100.0)])
    assert math.isclose(faster, 80 + 0.5 * (100 + 80 * math.exp(-3 * 0.2)))
    with pytest.raises(ValueError, match="no points"):
        summary.aup([])


@pytest.mark.parametrize(
    "right, num, low, high",
    [(50, 100, 0.4038, 0.5962), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)],
)
def test_wilson(right, num, low, high):
    found = quality.wilson(right, num)
    assert abs(found[0] - low) < 1e-4 and abs(found[1] - high) < 1e-4
    assert quality.wilson(0, 0) == (0.0, 1.0)


def cell(task, right, tokens, calls):
    return suite.Cell("m", "k", 1.0, task, 10, right, right, tokens, calls, 50, 0)


def test_points_are_sums_of_one_kind():
    made = summary.points(
        [cell("copy", 9, 40, 20), cell("sort", 6, 40, 5), cell("shuffle", 1, 30, 10)]
    )
    assert [point.kind for point in made] == ["one answer", "several answers"]
    assert made[0].accuracy == 75 and made[0].tokens_per_call == 80 / 25
    assert made[0].queries_per_token == 100 / 80 and made[1].accuracy == 10


def test_one_setting_for_all_tasks_and_one_for_each():
    """Careful is right everywhere; fast only where answers do not depend."""

    def at(value, task, right, calls):
        return cell(task, right, 40, calls)._replace(value=value)

    cells = [
        at(1.0, "copy", 10, 40), at(1.0, "shuffle", 10, 40),
        at(2.0, "copy", 10, 5), at(2.0, "shuffle", 4, 5),
    ]  # fmt: skip
    found = summary.speeds(cells)["m"]
    assert found == (80 / 80, 80 / 45)
    assert "1.00        1.78" in summary.table(cells)
    # A knob that fails somewhere at every value has no setting for all.
    cells[0] = at(1.0, "copy", 9, 40)
    assert summary.speeds(cells)["m"] == (None, 80 / 45)
    # The best is that of any method: where one is better, none of these will do.
    cells.append(at(1.0, "shuffle", 10, 40)._replace(name="other"))
    cells[1] = at(1.0, "shuffle", 9, 40)
    assert summary.speeds(cells)["m"] == (None, None)


def test_entries_name_what_is_there():
    names = [entry.name for entry in suite.ENTRIES]
    assert len(set(names)) == len(names) and set(suite.QUICK) <= set(names)
    assert set(suite.SEVERAL) < set(tasks.NAMES)
    shaped = [name for shape in suite.SHAPES for name in shape.tasks]
    assert sorted(shaped) == sorted(tasks.NAMES)
    model = transformer.make_model(CANVAS)
    assert suite.entries(model) == list(suite.ENTRIES)
    for entry in suite.ENTRIES:
        for shape in suite.SHAPES:
            suite.check(entry, model, shape.max_new_tokens)


def test_a_model_in_blocks_has_the_entries_that_fit_them():
    blocks = dataclasses.replace(CANVAS, attention="block_causal", block_len=4)
    model = transformer.make_model(blocks)
    made = suite.entries(model)
    for entry, other in zip(made, suite.ENTRIES, strict=True):
        assert entry.name == other.name and set(entry.values) <= set(other.values)
        for shape in suite.SHAPES:
            suite.check(entry, model, shape.max_new_tokens)
    quotas = {e.values for e in made if e.knob == suite.QUOTA}
    assert quotas == {(1, 2, 4)}
    with pytest.raises(ValueError, match="steps=1 must be a multiple of the 2 blocks"):
        suite.check(suite.ENTRIES[0], model, 8)


def test_measuring_counts_and_compiles_once():
    model = transformer.make_model(CANVAS)
    params = transformer.init(CANVAS, jax.random.key(0))
    source = suite.trained(model, params, 4, 7)
    made = {}
    for value in THRESHOLD.values:
        made[value] = suite.measure(THRESHOLD, value, source, 0)
        known = len(programs._kept)
        if value == THRESHOLD.values[0]:
            before = known
    assert known == before  # a threshold is a tracer
    for careful, fast in zip(made[1.0], made[0.0], strict=True):
        assert careful.task == fast.task and careful.num == fast.num == 4
        assert fast.calls == 4  # all positions of a row at once
        assert careful.calls >= careful.tokens >= careful.num
        assert not careful.not_finished
    assert [each.task for each in made[1.0]] == [
        name for shape in suite.SHAPES for name in shape.tasks
    ]


def test_one_step_on_exact_laws_is_what_theory_says():
    """The decoder meets the closed forms; one token a step is always right."""
    num = 200
    names = ("copy", "replace_random", "insert_random", "remove_random")
    source = exact.source(num)
    some = [each for each in source.batches if each.tasks[0] in names]
    source = source._replace(batches=some)
    entry = suite.Entry("m", "llada", suite.QUOTA, (1, 8), {"order": "random"})
    careful, fast = (suite.measure(entry, value, source, 3) for value in (1, 8))
    assert all(cell.right == cell.num == 4 * num for cell in careful)
    lengths = (3, 4, 5, 6)
    for name, chance in (
        ("replace_random", bounds.replace_accuracy),
        ("insert_random", bounds.insert_accuracy),
        ("remove_random", bounds.remove_accuracy),
    ):
        (cell,) = (each for each in fast if each.task == name)
        each = [chance(n) for n in lengths]
        error = math.sqrt(sum(p * (1 - p) for p in each) * num)
        assert abs(cell.right - num * sum(each)) < 3 * error
    (copied,) = (each for each in fast if each.task == "copy")
    assert copied.right == copied.num and copied.calls == copied.num


def test_a_run_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    model = tiny.stored_model(tmp_path / "model", CANVAS)
    out = tmp_path / "found.json"
    monkeypatch.setattr(suite, "ENTRIES", (THRESHOLD,))
    monkeypatch.setattr(suite, "QUICK", ("threshold",))
    command = ["bench", "--suite", "parallelbench", "--quick", "--model", model]
    command += ["--out", str(out)]
    measure, seen = suite.measure, []

    def stops(entry, value, *rest):
        if seen:
            raise KeyboardInterrupt
        seen.append(value)
        return measure(entry, value, *rest)

    monkeypatch.setattr(suite, "measure", stops)
    assert cli.main(command) == 130
    half = json.loads(out.read_text())["cells"]
    assert {suite.Cell(*each).value for each in half} == {1.0}

    def counted(entry, value, *rest):
        seen.append(value)
        return measure(entry, value, *rest)

    monkeypatch.setattr(suite, "measure", counted)
    assert cli.main(command) == 0
    assert seen == [1.0, 0.0]
    document = json.loads(out.read_text())
    assert document["cells"][: len(half)] == half
    assert document["aup"].keys() == {"threshold"}
    assert out.with_suffix(".png").stat().st_size < 150_000
    assert "several answers" in capsys.readouterr().out
    # All of it is there: nothing is measured again.
    assert cli.main(command) == 0 and seen == [1.0, 0.0]
    # Another run's file is refused.
    assert cli.main([part for part in command if part != "--quick"]) == 2
    assert "instances=25, not 50" in capsys.readouterr().err


def test_options_of_other_suites_are_refused(capsys):
    for given in (
        "--suite loop --quick",
        "--suite hotpath --model x",
        "--suite loop --instances 3",
        "--suite parallelbench --instances 0 --model exact",
        "--suite parallelbench --repeats 3",
        "--suite parallelbench --dtype float32",
        "--suite parallelbench --model target",
    ):
        assert cli.main(["bench", *given.split()]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", embedded.TASKS)
def test_the_embedded_models_are_as_good_as_their_records_say(name):
    """With other held-out instances, within what so few may differ."""
    _, record = embedded.read(name)
    model, params, _ = embedded.load(name)
    num, order = 16, "low_confidence"
    source = suite.trained(model, params, num, seed=11)
    entry = suite.Entry(order, "llada", suite.QUOTA, (1,), {"order": order})
    told = record["accuracy"][order]
    variance, total = 0.0, 0.0
    for cell in suite.measure(entry, 1, source, seed=0):
        share = told[cell.task]["right"] / told[cell.task]["of"]
        total += cell.right - num * share
        variance += num * max(share * (1 - share), 0.01)
    assert abs(total) < 4 * math.sqrt(variance)
    assert told["copy"]["percent"] > 95 and told["sudoku"]["percent"] > 95
