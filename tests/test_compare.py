"""The comparison: counting, judging, predicting, and what it prints."""

import io
import json
import math

import jax
import numpy as np
import pytest
import table

from pdecode import decode, generation, methods, prompts
from pdecode import programs as programs_module
from pdecode.cli import main as cli
from pdecode.cli import report
from pdecode.evals import compare, lineup, quality, tasks
from pdecode.hardware import roofline
from pdecode.methods import variants
from pdecode.models import toy
from pdecode.models.bytes import tokenizer


@pytest.fixture(autouse=True)
def no_cache_on_disk(monkeypatch):
    monkeypatch.setattr("pdecode.cli.program_cache.enable", lambda: None)


# Measuring.


# Judging.


def test_judge_scores_each_token_given_what_precedes_it():
    model = toy.make_model(table.VOCAB, table.LENGTH, eos_ids=(table.EOS,))
    rows, made = [[0, 1], [2, 0, 1]], [[1, 2, 0], [2]]
    judged = quality.judge(quality.Judge(model, table.TARGET, 3, 8), rows, made)
    assert [len(each.log_probs) for each in judged] == [3, 1]
    # Row 0's last token again, with its context as a prompt of its own.
    alone = quality.judge(
        quality.Judge(model, table.TARGET, 3, 8), [[0, 1, 1, 2]], [[0]]
    )
    np.testing.assert_allclose(judged[0].log_probs[2], alone[0].log_probs[0], 1e-5)
    np.testing.assert_allclose(judged[0].margins[2], alone[0].margins[0], 1e-5)
    # The greedy continuation's log-probabilities are what decoding recorded.
    wanted, _ = table.base("autoregressive", 0.0)
    start, length = int(wanted.start[0]), int(wanted.lengths[0])
    row = wanted.tokens[0, start : start + length].tolist()
    found = quality.judge(
        quality.Judge(model, table.TARGET, 2, table.LENGTH), [table.ROWS[0]], [row]
    )
    np.testing.assert_allclose(
        found[0].log_probs, wanted.log_probs[0, start : start + length], atol=1e-5
    )


def test_bits_per_byte_counts_bytes_of_text():
    half = np.full(3, -math.log(2), np.float32)
    judged = [quality.Judged(half, half)]
    assert quality.bits_per_byte(judged, [[65, 66, 67]], tokenizer) == pytest.approx(1)
    assert quality.bits_per_byte(judged, [[65, 66, 258]], tokenizer) == pytest.approx(
        1.5
    )
    assert quality.bits_per_byte(judged, [[258, 258, 258]], tokenizer) is None


def test_distinct_4():
    assert quality.distinct([[1, 2, 3, 4, 5]]) == 1
    assert quality.distinct([[1] * 8]) == pytest.approx(1 / 5)
    assert quality.distinct([[1, 2], []]) is None
    assert quality.distinct([[1] * 8, [1, 2, 3, 4]]) == pytest.approx(0.6)


def test_identity_tells_near_ties_from_mismatches():
    base, margins = (
        [[1, 2, 3], [4, 5]],
        [np.array([0.5, 5e-5, 0.5]), np.array([0.9, 1])],
    )
    assert str(quality.identity(base, base, margins)) == "yes"
    near = quality.identity([[1, 9, 9], [4, 5]], base, margins)
    assert str(near) == "yes except 1 near-tie" and near.near_ties[0]["place"] == 1
    wrong = quality.identity([[1, 9, 9], [7, 5]], base, margins)
    assert str(wrong) == "NO (1 of 2 rows)" and wrong.mismatches[0]["row"] == 1
    # A row that stops early differs where the baseline goes on.
    short = quality.identity([[1, 2], [4, 5]], base, margins)
    assert short.mismatches[0]["place"] == 2
    # A row that goes on differs behind the baseline's end, which nothing excuses.
    long = quality.identity([[1, 2, 3], [4, 5, 6]], base, margins)
    assert long.mismatches == [{"row": 1, "place": 2, "margin": math.inf}]


# Prompts.


def test_completions_have_one_answer():
    found = tasks.completions(40, max_prompt=96, min_reference=48)
    assert [each.name for each in found[:8]] == [
        each.name for each in tasks.completions(8, max_prompt=96, min_reference=48)
    ]
    assert len({each.name for each in found}) == 40
    assert len({each.name.split(":")[0] for each in found[:12]}) == 12
    for each in found:
        shown = each.prompt[-tasks.NUM_SHOWN :]
        assert 48 <= len(each.prompt) <= 96 and len(each.reference) >= 48
        assert shown + each.answer in each.prompt
        assert tasks.is_completed(each.answer, each.reference)
        assert not tasks.is_completed(each.answer, each.answer + "x")
        assert not tasks.is_completed(each.answer, each.answer[:-1])


# The lineup.


def test_default_lineup():
    assert len(lineup.DEFAULT) >= 15
    made, notes = lineup.entries(None, {}, None, 48)
    assert [each.name for each in made] == list(lineup.DEFAULT) and not notes
    assert made[0].name == lineup.BASELINE
    lossless = {each.name for each in made if each.is_lossless}
    assert {"autoregressive", "blockwise", "jacobi", "sjd", "specinfer"} <= lossless
    assert not {"relaxed_blockwise", "llada", "mdlm", "any_order"} & lossless
    assert all(each.temperature == 0 for each in made if each.is_lossless)
    calls = {each.name: each.drafter_calls for each in made}
    assert calls["speculative_sampling"] == 3 and calls["specinfer"] == 2
    assert calls["blockwise"] is None and calls["jacobi"] is None


def test_lineup_of_some_methods_begins_with_the_baseline():
    overrides = lineup.parse(["jacobi.window=2", "specinfer.branching=2,1"])
    made, _ = lineup.entries(["specinfer", "jacobi"], overrides, None, 16)
    assert [each.name for each in made] == ["autoregressive", "specinfer", "jacobi"]
    assert made[1].settings["branching"] == (2, 1) and made[2].settings["window"] == 2


def test_a_masked_model_races_masked_methods_only():
    made, notes = lineup.entries(None, {}, "diffusion", 48)
    assert "llada" in [each.name for each in made] and len(notes) >= 5
    assert all(each.models[0].predicts == "masked" for each in made)


@pytest.mark.parametrize(
    "text, value",
    [("0.5", 0.5), ("None", None), ("1", 1.0)],
)
def test_knob_values_are_read_by_their_kind(text, value):
    assert lineup.knobs_value(methods.fast_dllm, "threshold", text) == value
    assert lineup.knobs_value(methods.fast_dllm, "cache", "none") == "none"
    assert lineup.knobs_value(methods.specinfer, "branching", "(3,2)") == (3, 2)
    assert lineup.knobs_value(methods.specinfer, "branching", "3") == (3,)


def test_configurations_fit_their_methods():
    for name, each in methods.VARIANTS.items():
        method, settings = variants.resolve(name)
        assert settings == each.settings and each.method in methods.__all__
        assert name not in methods.__all__ and method.__name__ == each.method


# Costs.


def test_roofline_by_hand():
    machine = roofline.Hardware("m", 1e12, 1e9, 1e6, 2, 100.0, "")
    moved = (2e6 + 4 * 50 * 100) / 1e9
    assert roofline.roofline(machine, 1, batch=4, context=50) == pytest.approx(moved)
    computed = 2 * 1e6 * 4 * 1000 / 1e12
    wide = roofline.roofline(machine, 1000, batch=4, context=50)
    assert wide == pytest.approx(computed) and computed > moved
    half = roofline.roofline(machine, 1, batch=4, context=50, scale=0.5)
    assert half == pytest.approx(moved / 2)


def test_curve_is_interpolated_in_logarithms():
    curve = roofline.Curve((1, 4, 16), (1.0, 2.0, 8.0))
    assert curve.at(1) == pytest.approx(1) and curve.at(16) == pytest.approx(8)
    assert curve.at(2) == pytest.approx(math.sqrt(2))
    assert curve.at(8) == pytest.approx(4)


@pytest.mark.parametrize("is_canvas", [False, True])
def test_repeated_call_runs(is_canvas):
    program, arguments = roofline.repeated_call(
        table.CAUSAL, table.TARGET, 2, 8, 4, 3, is_canvas=is_canvas
    )
    tokens, log_prob, _ = program(*arguments)
    assert tokens.shape == (2, 4)
    # Three log-probabilities a lane: the head was not optimised away.
    assert (np.asarray(log_prob) < 0).all()


# The whole command.


def fake_row(**changed) -> compare.Row:
    row = compare.Row(
        name="autoregressive", settings={}, guarantee="lossless", temperature=0.0,
        tokens_per_call=1.0, calls_per_row=48.0, queries_per_token=1.0,
        queries_per_token_computed=1.0, mean_accepted=0.0, tokens_per_s=1000.0,
        ratio=1.0, prefill_s=0.1, decode_s=(0.1,), compile_s=2.0, num_cached=0,
        identical="yes", differences={"near_ties": [], "mismatches": []},
        bits_per_byte=1.0, distinct_4=0.5, exact_match=0.5,
    )  # fmt: skip
    return row._replace(**changed)


def fake_context() -> compare.Context:
    return compare.Context(
        settings=compare.Settings(), entries=[], completions=[], rows=[], batches=[],
        width=90, judge=None, tokenizer=tokenizer,
        held_out={"bits_per_byte": 2.0, "distinct_4": 0.9}, notes=[],
    )  # fmt: skip


def test_closing_names_the_best():
    base = fake_row()
    fast = fake_row(name="blockwise", ratio=1.5, settings={"num_draft": 3})
    wrong = fake_row(
        name="jacobi", ratio=9.0, differences={"near_ties": [], "mismatches": [{}]}
    )
    lossy = fake_row(name="llada", ratio=2.0, guarantee="lossy", identical=None)
    poor = fake_row(name="mdlm", ratio=5.0, guarantee="lossy", bits_per_byte=4.0)
    lines = report.closing(fake_context(), [base, fast, wrong, lossy, poor])
    assert "lossless method here: blockwise, 1.50" in lines[0]
    assert "llada, 2.00" in lines[1] and "--method llada" in lines[2]
    lines = report.closing(fake_context(), [base, fast, poor])
    assert "No lossy method" in lines[1]
    assert "--method blockwise --set num_draft=3" in lines[2]
    lines = report.closing(fake_context(), [base, fake_row(name="sjd", ratio=0.5)])
    assert "autoregressive itself; the next, sjd, reaches 0.50" in lines[0]
    assert report.closing(fake_context(), []) == ["Nothing was measured."]


def test_table_prints_lines_where_there_is_no_terminal():
    out = io.StringIO()
    with report.Table(out) as shown:
        shown.status("compiling")
        shown.add(fake_row())
        shown.add(fake_row(name="llada", identical=None, mean_accepted=None))
    lines = out.getvalue().splitlines()
    assert len(lines) == 5 and lines[3].startswith("autoregressive")
    assert all(len(line) <= report.WIDTH for line in lines)


def test_table_redraws_on_a_wide_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", str(report.WIDTH + 10))
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with report.Table(out) as shown:
        shown.add(fake_row())
        shown.status("compiling")
    assert "autoregressive" in out.getvalue() and "\x1b" in out.getvalue()


SMALL = (
    "compare", "--num-prompts", "2", "--batch-size", "2", "--max-new-tokens", "8",
    "--methods", "prompt_lookup,llada", "--set", "llada.steps=4",
    "--set", "llada.block_length=8",
)  # fmt: skip


def test_compare_measures_judges_and_writes(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "WIDTHS", (1, 4))
    monkeypatch.setattr(report, "WIDTHS", (1, 4))
    code = cli.main([*SMALL, "--out", str(tmp_path), "--json"])
    out, err = capsys.readouterr()
    made = json.loads(out)
    assert code == 0 and made == json.loads((tmp_path / "compare.json").read_text())
    assert (tmp_path / "compare.png").stat().st_size > 1000
    base, lookup, llada = made["rows"]
    assert [row["name"] for row in made["rows"]] == [
        "autoregressive", "prompt_lookup", "llada",
    ]  # fmt: skip
    assert base["tokens_per_call"] == 1 and base["ratio"] == 1
    assert base["queries_per_token"] == 1
    assert lookup["identical"].startswith("yes") and llada["identical"] is None
    assert lookup["bits_per_byte"] == pytest.approx(base["bits_per_byte"])
    assert llada["queries_per_token_computed"] > 8 and llada["mean_accepted"] is None
    for row in made["rows"]:
        assert len(row["decode_s"]) >= compare.MIN_REPEATS
        assert len(row["texts"]) == 2 and row["predicted_here"] > 0
        assert all(step >= 0 for steps in row["commit_steps"] for step in steps)
    assert made["is_complete"] and made["versions"]["jax"] == jax.__version__
    assert "Best lossless method here" in err and "Try next: pdecode generate" in err
    assert "seconds:" in err and "Traceback" not in err


def test_an_interrupt_keeps_the_rows(capsys, tmp_path, monkeypatch):
    def race(context, spent):
        yield fake_row()
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "race", race)
    code = cli.main([*SMALL, "--out", str(tmp_path)])
    out, err = capsys.readouterr()
    made = json.loads((tmp_path / "compare.json").read_text())
    assert code == cli.INTERRUPTED and "interrupted" in err
    assert "autoregressive" in out and not made["is_complete"]
    assert [row["name"] for row in made["rows"]] == ["autoregressive"]


def test_near_ties_are_listed():
    event = {"row": 3, "place": 7, "margin": 5e-5}
    row = fake_row(differences={"near_ties": [event], "mismatches": []})
    finished = compare.Finished((row,), None, None, None)
    text = report.footer(fake_context(), finished, {})
    assert "near-tie: autoregressive, row 3, token 7, margin 5.0e-05" in text


def test_composed_form_is_generate():
    model, params, own = generation.load("target")
    rows = [own.encode("import os")]
    prompt = prompts.from_rows(rows, max_new=6, model=model)
    made, _ = decode.run(
        methods.autoregressive, model, params, prompt, jax.random.key(0),
        max_new_tokens=6,
    )  # fmt: skip
    assert (
        generation.texts(made, own)
        == generation.generate("import os", max_new_tokens=6).text
    )
