"""The numbers of the speculative suite, from counters made by hand and from a run."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import prompts
from pdecode.cli import bench
from pdecode.contracts import Prefix
from pdecode.decode import Stats
from pdecode.drafters import paced
from pdecode.evals import quality
from pdecode.evals.bench import growth, speculative


def stats(**counts):
    blank = dict.fromkeys(Stats._fields, np.zeros(2, np.int32))
    return Stats(**{**blank, **{name: np.array(x) for name, x in counts.items()}})


def test_a_line_is_what_the_counters_say():
    one = stats(num_calls=[4, 5], num_committed=[10, 10], num_proposed=[8, 10],
                num_draft_calls=[8, 10],
                num_query_tokens_computed=[12, 15])  # fmt: skip
    other = stats(num_calls=[1, 10], num_committed=[10, 10], num_proposed=[2, 20],
                  num_draft_calls=[2, 20],
                  num_query_tokens_computed=[3, 30])  # fmt: skip
    line = speculative._line("x", 2, 2, 0.0, [one, other], 1.5)
    assert line.accepted == 20 / 20 and line.acceptance_rate == 20 / 40
    assert line.target_calls == 20 / 40 and line.draft_calls == 40 / 40
    assert line.queries == 60 / 40
    assert line.accepted_low < 1 < line.accepted_high
    assert "1.00" in speculative.table([line]) and "1.50" in speculative.table([line])


def line(name, size, proposed=1.0, ratio=1.0, batch=1, temperature=0.0):
    return speculative.Line(
        name, size, batch, temperature, 1.0, 0.8, 1.2, 0.5, proposed, 0.5, 0.0, 2.0,
        ratio,
    )  # fmt: skip


def test_a_chosen_length_is_held_against_its_neighbours():
    """The fixed ones around its mean of the same place; none at all is one of them."""
    fixed = [
        line("prompt_lookup", n, ratio=r) for n, r in ((1, 1.1), (2, 1.4), (4, 1.2))
    ]
    elsewhere = [line("prompt_lookup", 2, ratio=9.0, batch=8)]
    (told,) = speculative.verdicts(
        [*fixed, *elsewhere, line("auto_lookup", 8, proposed=1.6, ratio=1.33)]
    )
    assert "fixed 1: 1.10, 2: 1.40; over the better 0.950" in told
    (told,) = speculative.verdicts([*fixed, line("auto_lookup", 8, 0.4, 0.99)])
    assert "fixed 0: 1.00, 1: 1.10; over the better 0.900" in told
    (told,) = speculative.verdicts([*fixed, line("auto_lookup", 8, 6.0, 1.2)])
    assert "4: 1.20, 4: 1.20; over the better 1.000" in told
    assert speculative.verdicts(fixed) == []


def test_a_drafters_call_costs_what_it_adds_to_the_loop():
    """Rounds of 3 ms and 4 lanes at 1 ms more, whose four drafts take 0.5 ms each."""
    target = speculative.roofline.Curve((1, 4, 8), (1e-3, 1.5e-3, 2e-3))
    at_five = target.at(5) - target.at(1)
    plain = speculative.rounds_of(
        [
            stats(num_calls=[7, 10], num_query_tokens_computed=[7, 10]),
            stats(num_calls=[5, 4], num_query_tokens_computed=[5, 4]),
        ],
        15 * 3e-3,
    )
    assert plain == speculative.Rounds(15 * 3e-3, 15, 15, 0)
    drafting = speculative.rounds_of(
        [stats(num_calls=[2, 5], num_query_tokens_computed=[10, 25],
               num_draft_calls=[8, 20])],
        5 * (3e-3 + at_five + 4 * 0.5e-3),
    )  # fmt: skip
    assert drafting[1:] == (5, 25, 20)
    found = speculative.in_loop(plain, drafting, target)
    np.testing.assert_allclose(found, 0.5e-3)
    # Noise makes no call pay for itself, and none that was not made costs.
    assert speculative.in_loop(plain, drafting._replace(seconds=0.0), target) == 0
    assert speculative.in_loop(plain, plain, target) == 0


@pytest.mark.parametrize("name", sorted({*speculative.FIXED} - {"auto sequoia"}))
def test_prices_leave_one_length(name, monkeypatch):
    """What is timed to know the costs never drafts, and drafts PROBE tokens a round."""
    asked = []

    def prepared(name, settings, prompt):
        asked.append(settings)
        return None

    blank = stats(num_calls=[4, 4], num_query_tokens_computed=[4, 4])
    monkeypatch.setattr(speculative, "_prepared", prepared)
    monkeypatch.setattr(speculative, "_timed", lambda *_: ([blank], 4.0))
    curve = speculative.roofline.Curve((1, 32), (1.0, 2.0))
    monkeypatch.setattr(speculative, "_bare", lambda *_: curve)
    batch = prompts.from_rows([[1], [2]], max_new_tokens=4)
    costs, bare = speculative.measured_costs(name, {}, [batch], 1, 0)
    assert costs["call_costs"][0] == 1 and costs["call_costs"][-1] == 2
    assert ("draft_cost" in costs) == (name == "auto_speculation") == (bare > 0)
    prefix = Prefix(None, jnp.ones(1, jnp.int32), jnp.full(1, 99), None)
    chosen = []
    for settings in asked:
        prices = paced.Prices(settings["call_costs"], settings.get("draft_cost", 0.0))
        for rate in (0.0, 0.5, 1.0):
            pace = paced.started((), prefix._replace(length=prefix.length - 1), 8)
            pace = pace._replace(
                kept=pace.kept + 20 * rate,
                tried=pace.tried + 20,
                seen=prefix.length - 1,
            )
            length = paced.chosen(pace, prefix, paced.lengths(8), prices)
            chosen.append((rate, int(length[0])))
    none = [(rate, 0) for rate in (0.0, 0.5, 1.0)]
    assert chosen[:3] == none
    if len(asked) > 1:
        assert chosen[3:] == [(rate, speculative.PROBE) for rate in (0.0, 0.5, 1.0)]


def test_percents_leave_no_tree_or_one_of_at_most_seven():
    """Of a method whose tree is chosen when it is built, by the same two prices."""
    from pdecode import knobs, methods, trees

    takes = knobs.parameters(methods.sequoia)
    found = []
    for wide in (speculative.DEAR, 1.0):
        calls = [1.0, *(wide,) * 3, *(speculative.DEAR,) * 2]
        given = speculative.in_its_words(takes, calls, 0.0)
        knobs.split(methods.sequoia, {"max_new_tokens": 4, **given})
        costs = trees.priced(given["call_percent"], 8)
        tree, _ = trees.sized([0.7, 0.1], costs, 0, max_depth=4)
        found.append(tree.num_nodes)
    assert found[0] == 0 and 1 < found[1] <= 7, found


def test_a_run_that_was_cut_short_goes_on(tmp_path, monkeypatch, capsys):
    out = tmp_path / "found.json"
    every = [line("prompt_lookup", n) for n in (1, 2, 4)]
    asked = []

    def lines(*, known, **_):
        asked.append(list(known))
        for each in every:
            if len(asked) == 1 and each.size == 4:
                raise KeyboardInterrupt
            yield each

    monkeypatch.setattr(speculative, "lines", lines)
    run = ("speculative", 1)
    with pytest.raises(KeyboardInterrupt):
        bench.run(*run, 7, str(out), True)
    kept = json.loads(out.read_text())
    assert not kept["is_ended"] and len(kept["lines"]) == 2
    # Other settings, another run; the same ones go on with what there is.
    bench.run(*run, 6, str(tmp_path / "other.json"), True)
    bench.run(*run, 7, str(out), True)
    assert asked == [[], [], every[:2]]
    made = json.loads(out.read_text())
    assert made["is_ended"] and len(made["lines"]) == 3 and made["suite"] == run[0]
    assert out.with_suffix(".png").stat().st_size > 1000
    assert "prompt_lookup" in capsys.readouterr().out
    # One that was ended is measured again.
    bench.run(*run, 7, str(out), True)
    assert asked[-1] == []


def test_growth_is_told_by_its_worst():
    found = [
        growth.Growth("a", "num_slots", (1, 2, 3), (1.0, 1.0, 1.05), 1.05),
        growth.Growth("b", "buffer", (1, 2, 3), (1.0, 2.0, 3.0), 1.01),
    ]
    assert "worst 1.050, within the limit of 1.15" in growth.table(found)
    slow = found[0]._replace(ratio=1.4)
    assert "worst 1.400, ABOVE the limit" in growth.table([slow, found[1]])


def test_the_interval_covers_the_mean_of_rows():
    """Rows of unequal luck: 95 intervals of 100 hold what 10^5 rows have."""
    draw = np.random.default_rng(0)

    def rows(num):
        luck = draw.beta(2, 2, num)
        calls = np.full(num, 20)
        return draw.binomial(80, luck), calls

    kept, calls = rows(100_000)
    truth = kept.sum() / calls.sum()
    bounds = [quality.interval(*rows(40), seed) for seed in range(200)]
    held = sum(low <= truth <= high for low, high in bounds)
    assert 180 <= held <= 199, held
    # Negative control: calls taken for independent make the interval too narrow.
    narrow = [np.sqrt(0.25 * 4 / 800) * 1.96 * 2 for _ in bounds]
    assert np.mean(narrow) < 0.5 * np.mean([high - low for low, high in bounds])


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of batch size 3"):
        next(speculative.lines(batch_sizes=(3,), num_prompts=8))
    with pytest.raises(ValueError, match="one is 0"):
        next(speculative.lines(repeats=0))


@pytest.mark.thorough
def test_a_short_run_of_one_case():
    found = list(
        speculative.lines(
            cases=[("prompt_lookup", {4: {"num_draft": 4}})],
            batch_sizes=(2,),
            num_prompts=2,
            max_new_tokens=16,
            temperatures=(0.0,),
            repeats=1,
        )
    )
    assert len(found) == 1
    assert 0 <= found[0].accepted <= 4 and found[0].target_calls <= 1
    assert found[0].draft_calls == 0 and found[0].ratio > 0


@pytest.mark.thorough
@pytest.mark.parametrize("name, sizes", speculative.CASES)
def test_every_case_can_be_built(name, sizes):
    from pdecode import assembly, knobs

    method, own = speculative._resolved(name)
    models = [
        assembly.load("target" if role == "model" else role)[0]
        for role in knobs.roles(method)
    ]
    assert name not in speculative.FIXED or "auto" in own.values()
    for size, settings in sizes.items():
        values = {**own, **settings, "max_new_tokens": 8, "temperature": 0.0}
        traced, static = knobs.split(method, values)
        assert method(*models, **static, **traced).guarantee == "lossless", (name, size)


def test_every_table_can_be_built():
    from pdecode import assembly, knobs, methods

    for name, what, sizes, settings in growth.TABLES:
        method = getattr(methods, name)
        models = [
            assembly.load("target" if role == "model" else role)[0]
            for role in knobs.roles(method)
        ]
        for size in sizes:
            values = {**settings, what: size, "max_new_tokens": 8}
            traced, static = knobs.split(method, values)
            assert method(*models, **static, **traced).guarantee == "lossless"
    longest = assembly.load("target")[0].max_positions
    assert max(growth.BUFFERS) + growth.PROMPT_LEN <= longest
