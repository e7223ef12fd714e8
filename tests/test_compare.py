"""The comparison: counting, judging, predicting, and what it prints."""

import csv
import functools
import io
import json
import math
import shlex

import jax
import numpy as np
import pytest
import table

from pdecode import decode, generation, methods, prompts, results
from pdecode import programs as programs_module
from pdecode.cli import arguments, outcome, plot, report
from pdecode.cli import main as cli
from pdecode.cli import table as printed
from pdecode.evals import compare, curve, lineup, quality, tasks
from pdecode.evals import rows as evals_rows
from pdecode.hardware import roofline
from pdecode.methods import variants
from pdecode.models.bytes import tokenizer


@pytest.fixture(autouse=True)
def no_cache_on_disk(monkeypatch):
    monkeypatch.setattr("pdecode.cli.program_cache.enable", lambda: None)


# Measuring.


# Judging.


def test_judge_scores_each_token_given_what_precedes_it():
    model = table.CAUSAL
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
        quality.Judge(model, table.TARGET, 2, 16), [table.ROWS[0]], [row]
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
    identity = functools.partial(quality.identity, near_tie=1e-4)
    assert str(identity(base, base, margins)) == "yes"
    near = identity([[1, 9, 9], [4, 5]], base, margins)
    assert str(near) == "yes except 1 near-tie" and near.near_ties[0]["place"] == 1
    wrong = identity([[1, 9, 9], [7, 5]], base, margins)
    assert str(wrong) == "NO (1 of 2 rows)" and wrong.mismatches[0]["row"] == 1
    # A row that stops early differs where the baseline goes on.
    short = identity([[1, 2], [4, 5]], base, margins)
    assert short.mismatches[0]["place"] == 2
    # A row that goes on differs behind the baseline's end, which nothing excuses.
    long = identity([[1, 2, 3], [4, 5, 6]], base, margins)
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


def entries(wanted=None, overrides=None, *, max_new_tokens=48, **choice):
    return lineup.entries(
        wanted, overrides or {}, lineup.Choice(**choice), max_new_tokens
    )


def test_a_drafter_that_spells_is_timed_by_its_own_weights():
    made, _ = entries(["slem"], max_new_tokens=8)
    model, params = curve.drafter_of(made)
    prompt = prompts.from_rows([[1]], max_new_tokens=1)

    def call(params):
        cache = model.init_cache(prompt, 4)
        return prompts.prefill(model, params, prompt, cache)[0].hidden

    assert jax.eval_shape(call, params).shape[:2] == (1, 1)
    # Beside them, in what the method decodes with, stand spellings of every byte.
    assert made[-1].params["drafter"]["spelling"].shape[0] == model.vocab_size


def test_default_lineup():
    assert len(lineup.defaults(48)) >= 15
    made, notes = entries()
    assert [each.name for each in made] == list(lineup.defaults(48)) and not notes
    assert made[0].name == lineup.BASELINE
    lossless = {each.name for each in made if each.guarantee == "lossless"}
    assert {"autoregressive", "blockwise", "jacobi", "sjd", "specinfer"} <= lossless
    assert not {"relaxed_blockwise", "llada", "mdlm", "any_order"} & lossless
    assert all(each.temperature == 0 for each in made if each.name in lossless)


@pytest.mark.parametrize("max_new_tokens", [1, 2, 13, 24, 47, 72, 100])
def test_the_default_lineup_fits_any_number_of_tokens(max_new_tokens):
    made, notes = entries(max_new_tokens=max_new_tokens)
    assert len(made) == len(lineup.defaults(48)) and not notes


def test_lineup_of_some_methods_begins_with_the_baseline():
    overrides = arguments.overrides(["jacobi.window=2", "specinfer.branching=2,1"])
    made, _ = entries(["specinfer", "jacobi"], overrides, max_new_tokens=16)
    assert [each.name for each in made] == ["autoregressive", "specinfer", "jacobi"]
    assert made[1].settings["branching"] == (2, 1) and made[2].settings["window"] == 2


def test_a_masked_model_races_masked_methods_only():
    made, notes = entries(model="diffusion")
    assert "llada" in [each.name for each in made] and len(notes) >= 5
    assert all(each.models[0].predicts == "masked" for each in made)


@pytest.mark.parametrize(
    "text, value",
    [("0.5", 0.5), ("None", None), ("1", 1.0)],
)
def test_knob_values_are_read_by_their_kind(text, value):
    assert arguments.value(methods.fast_dllm, "threshold", text) == value
    assert arguments.value(methods.fast_dllm, "cache", "none") == "none"
    assert arguments.value(methods.specinfer, "branching", "(3,2)") == (3, 2)
    assert arguments.value(methods.specinfer, "branching", "3") == (3,)


@pytest.mark.parametrize("text, value", [("true", True), ("False", False), ("1", True)])
def test_a_bool_is_read(text, value):
    assert arguments.value(methods.llada, "logits_eos_inf", text) is value
    with pytest.raises(ValueError, match=r"it takes False \| True"):
        arguments.value(methods.llada, "logits_eos_inf", "maybe")


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


def test_a_ratio_is_of_neighbours():
    """A machine that became ten times slower changes no ratio."""
    first = fake_row(num_committed=100)
    timed = evals_rows.Timed([], [], [1.0, 10.0, 2.0], [2.0, 20.0, 1.0])
    found = evals_rows.ratios(timed, 200, first)
    assert found == pytest.approx((2.5, 4.0, 4.0))  # of 4, 4 and 1
    assert evals_rows.ratios(timed, 200, None) == (1, 1, 1)


# Drafters are counted, and priced as wide as they were.


def test_a_chain_of_five_drafts_costs_five_calls_and_six_lanes_a_round():
    """By the definition of `drafters.causal`, for a chain of 5.

    A round's first call stores what the drafter's cache lacks. It holds the drafts that
    it evaluated itself, all but the last: so one committed token is missing after a
    round that did not accept all five (the next token), two after one that did (the
    fifth draft as well). The call is two lanes wide in either case. Each of the other
    four drafts is then one call of one lane: 5 calls, 2 + 4 lanes computed, and asked
    1 + 4 or 2 + 4. Of the first round the root alone is missing: 1 + 4.
    """
    case, prompt = table.CASES["speculative"], table.prompt()
    settings = {"num_draft": 5, "max_new_tokens": 10, "temperature": 0.7}
    made = programs_module.compiled(
        methods.speculative_sampling, case.model, case.params, prompt, **settings
    )
    seen = list(programs_module.steps(made, case.params, prompt, jax.random.key(0)))
    stats = seen[-1].stats
    np.testing.assert_array_equal(stats.num_draft_calls, 5 * stats.num_calls)
    np.testing.assert_array_equal(stats.num_draft_tokens_computed, 6 * stats.num_calls)
    committed = np.stack([each.stats.num_committed for each in seen])
    calls = np.stack([each.stats.num_calls for each in seen])
    is_round = np.diff(calls, axis=0, prepend=0) == 1
    is_whole = is_round & (np.diff(committed, axis=0, prepend=0) == 6)
    # A row that goes on after a whole round has two tokens to store.
    goes_on = np.concatenate([is_round[1:], np.zeros_like(is_round[:1])])
    wanted = 5 * stats.num_calls + (is_whole & goes_on).sum(0)
    np.testing.assert_array_equal(stats.num_draft_tokens, wanted)
    assert (is_whole & goes_on).any() and (~is_whole & is_round).any()
    # The prompt but its root, by the drafter too.
    is_asked = np.asarray(prompt.lengths) > 1
    np.testing.assert_array_equal(stats.num_prefill_draft_calls, is_asked)
    np.testing.assert_array_equal(
        stats.num_prefill_draft_tokens, np.asarray(prompt.lengths) - 1
    )
    # As `compare` says it: a round is a target call.
    decoded = programs_module.Decoded(*seen[-1], prefill_s=0.1, decode_s=0.2)
    counts = evals_rows.counted(evals_rows.Timed([decoded], [0.1], [0.2], []), 8, True)
    assert counts["drafter_calls"] == 5 and counts["drafter_queries_computed"] == 6
    assert 5 < counts["drafter_queries"] < 6
    assert counts["prefill_drafter_calls"] == is_asked.mean() < 1
    row = fake_row(**counts)
    assert curve.drafter_width(row) == pytest.approx(6 / 5)


def test_a_prediction_prices_every_call_at_its_width():
    costs = curve.Costs(
        roofline.Curve((1, 8), (1.0, 2.0)), roofline.Curve((1, 4), (0.1, 0.4)), False
    )
    there = curve.Priced("m", "", lambda queries: 10.0, lambda queries: 1.0 + queries)
    row = fake_row(
        tokens_per_call=3.0, queries_per_call=8.0, drafter_calls=5.0,
        drafter_queries_computed=10.0,
    )  # fmt: skip
    plain, found = curve.predict([fake_row(), row], costs, there)
    # A drafter call of 2 lanes lies halfway between 1 and 4 in the logarithm.
    assert found.predicted_here == pytest.approx(3 / (2 + 5 * 0.2))
    assert found.predicted_there == pytest.approx(3 * 10 / (10 + 5 * 3))
    assert plain.predicted_here == plain.predicted_there == 1
    # Ratios are to the first row, whichever it is.
    first, second = curve.predict([row, fake_row()], costs, there)
    assert first.predicted_here == 1
    assert second.predicted_there == pytest.approx(1 / found.predicted_there)


def test_the_cost_of_calls_is_kept_by_device_and_model(tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "WIDTHS", (1,))
    made, _ = entries(["prompt_lookup"], max_new_tokens=8)
    place = curve.Place(1, 8, 4)
    first = curve.measure(made, [fake_row()], place, tmp_path)
    again = curve.measure(made, [fake_row()], place, tmp_path)
    assert not first.is_kept and again == first._replace(is_kept=True)
    (path,) = tmp_path.iterdir()
    path.write_text("{")
    assert not curve.measure(made, [fake_row()], place, tmp_path).is_kept
    other = curve.measure(made, [fake_row()], place._replace(batch=2), tmp_path)
    assert not other.is_kept and len(list(tmp_path.iterdir())) == 2


def test_a_measured_machine_prices_calls_by_its_own_curve():
    made, _ = entries(["prompt_lookup"], max_new_tokens=8)
    there = curve.priced("h200", made, curve.Place(1, 8, 16))
    assert there.target(8) == 1 and there.target(16) == pytest.approx(1.16)
    assert there.target(32) == pytest.approx(1.61) and "1.3 million" in there.about
    with pytest.raises(ValueError, match="known: cpu, h100, v5e, h200"):
        curve.priced("abacus", made, curve.Place(1, 8, 16))


# The whole command.


def fake_row(**changed) -> evals_rows.Row:
    row = evals_rows.Row(
        name="autoregressive", settings={}, guarantee="lossless", temperature=0.0,
        tokens_per_call=1.0, calls_per_row=48.0, queries_per_token=1.0,
        queries_per_token_computed=1.0, num_committed=384, mean_accepted=0.0,
        tokens_per_s=1000.0, ratio=1.0, prefill_s=0.1, decode_s=(0.1,),
        compile_s=2.0, num_cached=0,
        identical="yes", differences={"near_ties": [], "mismatches": []},
        bits_per_byte=1.0, distinct_4=0.5, exact_match=0.5, white_space=0.2,
    )  # fmt: skip
    row = row._replace(**changed)
    return row if "ratio_half" in changed else row._replace(ratio_half=(row.ratio,) * 2)


def fake_context(**changed) -> compare.Context:
    context = compare.Context(
        settings=compare.Settings(), entries=[], completions=[], rows=[], batches=[],
        width=90, judge=None, judge_name="target", tokenizer=tokenizer,
        held_out={"bits_per_byte": 2.0, "distinct_4": 0.9, "white_space": 0.24},
        notes=[],
    )  # fmt: skip
    return context._replace(**changed)


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
    assert "No lossy method was near-lossless" in lines[1]
    assert "--method blockwise --set num_draft=3" in lines[2]
    lines = report.closing(fake_context(), [base, fake_row(name="sjd", ratio=0.5)])
    assert "autoregressive itself; the next, sjd, reaches 0.50" in lines[0]
    assert report.closing(fake_context(), []) == ["Nothing was measured."]


def test_a_verdict_needs_timings_that_allow_one():
    close = fake_row(name="jacobi", ratio=1.1, ratio_half=(0.9, 1.3))
    lines = report.closing(fake_context(), [fake_row(), close])
    assert "none is told from autoregressive" in lines[0]
    assert "0.90 to 1.30" in lines[0] and "--method autoregressive" in lines[-1]


def test_a_lossy_method_that_pays_nowhere_is_not_recommended():
    slow = fake_row(name="llada", ratio=0.5, guarantee="lossy", predicted_there=0.9)
    lines = report.closing(fake_context(), [fake_row(), slow])
    assert not any("Best near-lossless" in line for line in lines)
    assert any("near-lossless was faster" in line for line in lines)
    there = slow._replace(predicted_there=1.8)
    lines = report.closing(fake_context(), [fake_row(), there])
    assert any("llada, 0.50" in line and "1.80 on h200" in line for line in lines)
    assert "--method autoregressive" in lines[-1]


@pytest.mark.parametrize(
    "changed", [{"white_space": 0.74}, {"distinct_4": 0.1}, {"num_not_finite": 1}]
)
def test_blank_looping_and_broken_text_is_never_near_lossless(changed):
    good = fake_row(name="llada", guarantee="lossy", bits_per_byte=0.5)
    assert report.is_near_lossless(fake_context(), good, fake_row())
    bad = good._replace(**changed)
    assert not report.is_near_lossless(fake_context(), bad, fake_row())


def test_white_space_is_a_share_of_characters():
    assert quality.white_space(["a b\n", "    "]) == pytest.approx(6 / 8)
    assert quality.white_space(["", ""]) is None


def test_table_prints_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    out = io.StringIO()
    with printed.Table(out) as shown:
        shown.status("compiling jacobi (2 of 3)")
        shown.add(fake_row())
        shown.add(fake_row(name="llada", identical=None, num_not_finite=2))
    lines = out.getvalue().splitlines()
    assert len(lines) == 5 and lines[3].startswith("autoregressive")
    assert lines[4].startswith("llada !")
    assert all(len(line) <= printed.WIDTH for line in lines)
    assert capsys.readouterr().err == "compiling jacobi (2 of 3)\n"


def test_table_of_eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = io.StringIO()
    with printed.Table(out, io.StringIO(), "masked.py:my_llada") as shown:
        shown.add(fake_row(name="speculative_sampling", ratio_half=(10.11, 12.34)))
    lines = out.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    # Times are called by what they are relative to.
    assert "my_llada" in lines[1] and "10.1-12.3" in lines[3]


def test_table_redraws_on_a_wide_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", str(printed.WIDTH + 10))
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with printed.Table(out) as shown:
        shown.add(fake_row())
        shown.status("compiling")
    assert "autoregressive" in out.getvalue() and "\x1b" in out.getvalue()


def test_results_go_to_a_new_folder_that_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = outcome.new_folder(None), outcome.new_folder(None)
    assert first != second and first.is_dir() and second.is_dir()
    assert first.name.startswith("compare-") and not list(first.iterdir())
    chosen = tmp_path / "mine"
    assert outcome.new_folder(str(chosen)) == chosen
    (chosen / "compare.json").write_text("{}")
    with pytest.raises(ValueError, match="holds results already"):
        outcome.new_folder(str(chosen))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        outcome.new_folder(str(tmp_path / "file"))


def test_csv_and_markdown_have_a_line_a_method():
    rows = [fake_row(), fake_row(name="llada", settings={"steps": 4})]
    heads, *lines = list(csv.reader(io.StringIO(outcome.as_csv(rows))))
    assert [line[0] for line in lines] == ["autoregressive", "llada"]
    found = dict(zip(heads, lines[1]))
    assert found["ratio_half_low"] == "1.0" and json.loads(found["settings"]) == {
        "steps": 4
    }
    text = printed.markdown(rows).splitlines()
    assert len(text) == 4 and all(
        line.count("|") == text[0].count("|") for line in text
    )


def test_the_plot_has_a_panel_for_calls_and_one_for_time(tmp_path):
    made = {
        "rows": [fake_row()._asdict(), fake_row(name="llada", ratio=0.5)._asdict()],
        "judge": "target", "held_out": {"bits_per_byte": 1.2},
        "models": {"autoregressive": ["target"], "llada": ["diffusion"]},
        "device": {"kind": "cpu", "count": 1},
        "settings": {"batch_size": 1, "num_prompts": 8, "max_new_tokens": 48},
    }  # fmt: skip
    (path,) = plot.plot(made, tmp_path / "plot.png")
    assert path.stat().st_size > 1000
    assert plot.title(made).startswith(
        "diffusion, target on cpu (1), batch 1, 8 prompts"
    )
    places = plot.together(made["rows"], "ratio")
    assert [names for names, _ in places] == [["autoregressive"], ["llada"]]


SMALL = (
    "compare", "--num-prompts", "2", "--batch-size", "2", "--max-new-tokens", "8",
    "--methods", "prompt_lookup,llada", "--set", "llada.steps=4",
    "--set", "llada.block_length=8",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_curve_on_disk(monkeypatch):
    monkeypatch.setattr("pdecode.cli.program_cache.curves", lambda: None)


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
    assert lookup["drafter_calls"] == 0 and 0 < base["white_space"] < 1
    low, high = lookup["ratio_half"]
    assert 0 < low <= lookup["ratio"] <= high and made["judge"] == "target"
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
    assert "compiling and measuring autoregressive, prompt_lookup (2 of 3)" in err
    for name in ("csv", "md"):
        assert len((tmp_path / f"compare.{name}").read_text().splitlines()) >= 4
    # What it says to try next runs.
    words = shlex.split(err.split("Try next: ")[1].splitlines()[0])
    assert words[:2] == ["pdecode", "generate"]
    assert cli.main(words[1:]) == 0


def test_an_interrupt_keeps_the_rows(capsys, tmp_path, monkeypatch):
    def race(context, spent, say):
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
    finished = compare.Finished((row,))
    text = report.footer(fake_context(), finished, {}, 80)
    assert all(len(line) <= 80 for line in text.splitlines() if "Try next" not in line)
    text = report.footer(fake_context(), finished, {})
    assert "near-tie: autoregressive, row 3, token 7, margin 5.0e-05" in text


def test_composed_form_is_generate():
    model, params, own = generation.load("target")
    rows = [own.encode("import os")]
    prompt = prompts.from_rows(rows, max_new_tokens=6, model=model)
    made, _ = decode.run(
        methods.autoregressive, model, params, prompt, jax.random.key(0),
        max_new_tokens=6,
    )  # fmt: skip
    assert (
        results.texts(made, own)
        == generation.generate("import os", max_new_tokens=6).text
    )
