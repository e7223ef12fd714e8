"""Step-level speculation at its limits, and between them."""

import jax
import numpy as np
import pytest
import table
from cases import LENGTH

from pdecode import methods
from pdecode.decode import run
from pdecode.models import toy

FAR = toy.mixed(table.TARGET, toy.chain(1, table.VOCAB, LENGTH), 0.65)


def decode(threshold, delimiters=(2,)):
    out, stats = run(
        methods.specreason,
        (table.CAUSAL, table.CAUSAL),
        {"model": table.TARGET, "drafter": FAR},
        table.prompt(),
        jax.random.key(0),
        knobs={"temperature": 0.0, "threshold": threshold},
        max_new_tokens=table.MAX_NEW,
        num_draft=4,
        delimiters=delimiters,
    )
    return jax.tree.map(np.asarray, (out, stats))


def plain(params):
    out, _ = run(
        methods.autoregressive, table.CAUSAL, params, table.prompt(),
        jax.random.key(0), knobs={"temperature": 0.0}, max_new_tokens=table.MAX_NEW,
    )  # fmt: skip
    return jax.tree.map(np.asarray, out)


def test_the_limits_are_the_two_models():
    target, drafter = plain(table.TARGET), plain(FAR)
    assert table.rows_of(target) != table.rows_of(drafter)
    never, stats = decode(1.0)
    assert table.rows_of(never) == table.rows_of(target)
    np.testing.assert_array_equal(stats.num_calls, stats.num_committed)
    always, stats = decode(-1e9)
    assert table.rows_of(always) == table.rows_of(drafter)
    assert stats.num_calls.sum() < stats.num_committed.sum() * 0.7


def test_fewer_steps_are_kept_as_the_threshold_rises():
    per_call = []
    for threshold in (-1e9, -2.0, -1.2, -0.8, -0.4, 1.0):
        _, stats = decode(threshold)
        per_call.append(stats.num_committed.sum() / stats.num_calls.sum())
    assert per_call == sorted(per_call, reverse=True) and len(set(per_call)) > 3


def law(params, text):
    """Of the next token; behind the last position anything may follow."""
    here = len(text)
    uniform = np.full(table.VOCAB, 1 / table.VOCAB)
    return uniform if here >= LENGTH else np.asarray(params.moves)[here, here, text[-1]]


def score(text, step):
    """Mean raw log-probability of `step` behind `text` under the target."""
    total = 0.0
    for token in step:
        total += np.log(law(table.TARGET, text)[token])
        text = [*text, token]
    return total / len(step)


def best(params, text):
    return int(np.argmax(law(params, text)))


@pytest.mark.parametrize("threshold", [-1.0, -1.1])
def test_a_refused_step_is_rewritten_to_its_end(threshold):
    """Greedy, row by row in Python; at -1.1 what lies behind EOS would decide."""
    out, _ = decode(threshold)
    num_refused = num_kept = 0
    for b, row in enumerate(table.ROWS):
        text, end, is_rewritten = list(row), len(row) + table.NEW[b], False
        while len(text) < end and table.EOS not in text[len(row) :]:
            draft = list(text)
            for _ in range(4):
                draft.append(best(FAR, draft))
            draft = draft[len(text) :]
            step = draft[:3]
            ends = [nth for nth, token in enumerate(step) if token in (2, table.EOS)]
            step = step[: ends[0] + 1] if ends else step
            if not is_rewritten and score(text, step) >= threshold:
                text += draft[: len(step) + 1]
                num_kept += 1
            else:
                num_refused += not is_rewritten
                is_rewritten = True
                text.append(best(table.TARGET, text))
            is_rewritten &= text[-1] != 2
        made = text[len(row) : end]
        if table.EOS in made:
            made = made[: made.index(table.EOS)]
        assert table.rows_of(out)[b] == made, b
    assert num_kept > 3 and num_refused > 3
