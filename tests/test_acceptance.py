"""Acceptance by depth: counted by hand, by decoding, and by the command."""

import json

import jax
import numpy as np
import pytest

from pdecode import generation
from pdecode.cli import eval_drafter
from pdecode.cli import main as cli
from pdecode.evals import acceptance, quality


def test_depths_are_counted_as_by_hand():
    """Two rows: 3 tokens, 1, then 2 at the end; 4, then 1 at the end."""
    committed = np.array([[3, 4], [1, 1], [2, 0], [0, 0]])
    found = acceptance.by_depth(committed, 3)
    # Depth 1: accepted in 3, 4, 2; refused in the 1 that is not a last round.
    # Depth 2: accepted in 3, 4; the last 2 says nothing of it. Depth 3: 4 yes, 3 no.
    counts = [(each.depth, each.reached, each.accepted) for each in found]
    assert counts == [(1, 4, 3), (2, 2, 2), (3, 2, 1)]
    for each in found:
        assert (each.low, each.high) == quality.wilson(each.accepted, each.reached)
        assert each.low <= each.rate <= each.high


def test_cut_rounds_do_not_change_the_rate():
    """Rows of a known rate, cut at every length, against the naive count."""
    rate, gen = 0.7, np.random.default_rng(0)
    rows, steps = 4000, 12
    lengths = np.minimum(gen.geometric(1 - rate, (steps, rows)), 5)  # 4 drafted and 1
    room = np.full(rows, 12)
    committed = np.zeros_like(lengths)
    for step in range(steps):
        committed[step] = np.minimum(lengths[step], room)
        room -= committed[step]
    for each in acceptance.by_depth(committed, 4):
        assert abs(each.rate - rate) < 4 * np.sqrt(rate * (1 - rate) / each.reached)
    # The control: cut rounds taken as refusals.
    naive = (committed > 1).sum() / (committed > 0).sum()
    assert abs(naive - rate) > 4 * np.sqrt(rate * (1 - rate) / (committed > 0).sum())


def test_a_chain_of_embedded_heads_is_measured_as_it_decodes(capsys):
    command = "eval-drafter heads --num-prompts 2 --max-new-tokens 24 --json"
    assert cli.main([*command.split(), "--method", "blockwise"]) == 0
    found = json.loads(capsys.readouterr().out)
    from pdecode.data import snippets

    prompts = [each.prompt for each in snippets.prompts(2)]
    made = generation.generate(prompts, method="blockwise", max_new_tokens=24)
    calls, tokens = (np.asarray(made.stats[name]) for name in ("calls", "committed"))
    assert found["num_rounds"] == calls.sum()
    np.testing.assert_allclose(found["tokens_per_call"], tokens.sum() / calls.sum())
    assert len(found["depths"]) == 3 and found["model"] == "target"
    assert found["depths"][0]["reached"] > 0


def test_the_table_says_what_was_counted():
    depths = acceptance.by_depth(np.array([[3, 4], [1, 1], [2, 0], [0, 0]]), 2)
    found = acceptance.Acceptance(
        "eagle", "target", "results/eagle", 5, depths, 1.5, 2.2, (1.75, 2.5)
    )
    lines = eval_drafter.text(found).splitlines()
    assert lines[0] == "eagle: results/eagle drafts for target"
    assert lines[3].split()[:4] == ["1", "4", "3", "0.750"]
    assert lines[-1] == (
        "accepted length 1.50; tokens a call 2.20 (1.75-2.50) in 5 rounds"
    )


def test_a_record_names_its_method_and_target():
    method, model, sizes = acceptance._of_record("heads", None, None, {})
    assert (method, model, sizes) == ("blockwise", None, {"num_draft": 6})
    given = acceptance._of_record("heads", "medusa", "target", {"a": 1})
    assert given == ("medusa", "target", {"a": 1})
    assert acceptance._of_record("drafter", None, None, {})[0] == "speculative_sampling"


def test_what_drafts_nothing_is_refused(capsys):
    assert cli.main("eval-drafter heads --set num_draft=2".split()) == cli.BAD_INPUT
    assert "name the --method" in capsys.readouterr().err
    with pytest.raises(ValueError, match="autoregressive has no drafts to accept"):
        acceptance.measure(method="autoregressive", num_prompts=1)
    with pytest.raises(ValueError, match="name the method that takes it"):
        acceptance.measure(drafter=None)
    jax.clear_caches()
