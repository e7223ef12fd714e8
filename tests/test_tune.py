"""`pdecode tune`: the search on measurements that are given, and a short real one."""

import json
import shlex
import types

import pytest

from pdecode.cli import main as cli
from pdecode.cli import tune as tune_cli
from pdecode.evals import compare, tune

SETTINGS = compare.Settings(
    methods=("prompt_lookup", "jacobi", "fast_dllm_threshold"), num_prompts=4,
    max_new_tokens=8,
)  # fmt: skip


class Given:
    """Measures nothing: a trial's ratio is a function of its candidate."""

    calls: list = []

    def __init__(self, ratio, kind="lossless"):
        self.ratio, self.kind = ratio, kind

    def __call__(self, bench, candidate, count):
        Given.calls.append((candidate.name, count))
        ratio = self.ratio(candidate)
        return tune.Trial(candidate, count, self.kind, ratio, (ratio, ratio), ratio,
                          1.0, 100.0, 1.0)  # fmt: skip


@pytest.fixture
def given(monkeypatch):
    Given.calls = []

    def use(ratio):
        made = Given(ratio)
        monkeypatch.setattr(
            tune._Bench, "measured", lambda bench, *args: made(bench, *args)
        )

    return use


def width(candidate):
    return candidate.settings.get("num_draft", candidate.settings.get("window", 100))


def test_candidates_are_settings_and_their_neighbours():
    found = tune.candidates(compare.prepare(SETTINGS).entries)
    names = [each.name for each in found]
    assert len(set(names)) == len(names)
    assert {width(each) for each in found if each.method == "prompt_lookup"} == {
        2, 3, 4, 8
    }  # fmt: skip
    assert not any(each.settings.get("temperature") for each in found)


def test_halving_ends_with_the_best_on_all_prompts(given):
    given(lambda each: 10.0 - abs(width(each) - 3))
    found = tune.tune(SETTINGS, minutes=5)
    best = found.best("lossless")
    assert found.is_complete and best.num_prompts == 4
    assert best.ratio == 10 and width(best.candidate) == 3
    counts = [count for _, count in Given.calls]
    sizes = [counts.count(each) for each in (1, 2, 4)]
    assert sizes[0] > sizes[1] > sizes[2] >= tune.LEAST
    assert sizes[1] == -(-sizes[0] // 2)


def test_a_search_goes_on_where_it_was(given, tmp_path):
    log = tmp_path / "trials.jsonl"
    given(lambda each: float(width(each)))
    whole = tune.tune(SETTINGS, minutes=5, log=log)
    count = len(Given.calls)
    again = tune.tune(SETTINGS, minutes=5, log=log)
    assert len(Given.calls) == count and again == whole
    # Cut short: what was measured is kept, what was not is.
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    third = tune.tune(SETTINGS, minutes=5, log=log)
    assert len(Given.calls) == 2 * count - 3 and third == whole


def test_time_is_kept(given, monkeypatch):
    now = iter(range(0, 100000, 40))
    clock = types.SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr(tune, "time", clock)
    given(lambda each: 1.0)
    found = tune.tune(SETTINGS, minutes=2)
    assert not found.is_complete and len(found.trials) == 3


def test_classes():
    assert tune.classed("lossless", 9.0, 1.0) == "lossless"
    assert tune.classed("lossy", 1.01, 1.0) == "near"
    assert tune.classed("lossy", 1.1, 1.0) == "lossy"
    assert tune.classed("exact", None, None) == "lossy"


def test_what_it_says(given, tmp_path, capsys):
    given(lambda each: 2.0 if width(each) == 3 else 0.5)
    args = ["tune", "--methods", "prompt_lookup", "--max-new-tokens", "8",
            "--num-prompts", "2", "--out", str(tmp_path)]  # fmt: skip
    assert cli.main(args) == 0
    told = capsys.readouterr().out
    assert "lossless (the text of plain decoding): prompt_lookup(num_draft=3" in told
    assert "pdecode generate --method prompt_lookup --set num_draft=3" in told
    assert (tmp_path / "frontier.png").stat().st_size > 5000
    assert cli.main([*args, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["lossless"]["ratio"] == 2.0 and made["near"] is None
    assert cli.main([*args, "--seed", "1"]) == 2
    assert "holds another search" in capsys.readouterr().err
    assert cli.main([*args, "--minutes", "0"]) == 2
    assert "minutes=0.0 must be above 0" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_real_search():
    settings = SETTINGS._replace(methods=("prompt_lookup",), num_prompts=1)
    found = tune.tune(settings, minutes=5)
    best = found.best("lossless")
    assert found.is_complete and best.tokens_per_call > 1
    assert best.ratio == max(trial.ratio for trial in found.trials)


def test_its_command_is_what_was_measured():
    args = types.SimpleNamespace(
        model=None, drafter=None, dtype=None, max_new_tokens=48
    )
    line = tune_cli.command(tune.Candidate("remdm", {"top_p": None, "steps": 24}), args)
    words = shlex.split(line)
    assert "top_p=none" in words and words[words.index("--max-new-tokens") + 1] == "48"
