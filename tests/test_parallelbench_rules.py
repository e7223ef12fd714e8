"""The golden table: what commit rules do on exact laws of ParallelBench's tasks.

Temperature 0, the whole list one block. Values such as 1/2 lie on the thresholds, so
knobs are moved by a slack that is far below any difference of the table.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import decode, methods, prompts
from pdecode.data.parallelbench import lines
from pdecode.models import toy

SLACK = 1e-5
MAX_NEW = 7
LENGTH = 1 + MAX_NEW  # a prompt of one token, the list, and what no row fills
VOCAB = 9  # six items, the new one, one that fills, and the mask
FILL = 7
RULES = (
    ("fast_dllm", "threshold", 0.9),
    ("fast_dllm", "threshold", 0.5),
    ("fast_dllm", "factor", 1.0),
    ("fast_dllm", "factor", 1.9),
    ("eb_sampler", "gamma", 0.0),
    ("eb_sampler", "gamma", 0.1),
    ("eb_sampler", "gamma", 1.0),
    ("eb_sampler", "gamma", 2.0),
)
# Calls, and whether the list is right; "off": what was decided first already fits no
# right list, so that calls mean nothing.
TABLE = {
    (4, "copy"): "1/1 1/1 1/1 1/1 1/1 1/1 1/1 1/1",
    (4, "replace_random"): "4/1 1/0 3/1 1/0 4/1 4/1 2/0 1/0",
    (4, "shuffle or same"): "4/1 3/0 4/1 3/0 4/1 4/1 3/0 1/off",
    (4, "shuffle"): "4/1 3/0 4/1 3/0 4/1 4/1 3/0 2/0",
    (4, "insert_random"): "5/1 2/1 4/1 2/0 5/1 5/1 3/1 2/1",
    (4, "remove_random"): "3/1 1/1 2/1 2/1 3/1 3/1 2/1 1/1",
    (6, "replace_random"): "6/1 1/0 3/1 1/0 6/1 6/1 3/1 2/1",
    (6, "shuffle or same"): "6/1 5/0 6/1 5/0 6/1 6/1 5/0 1/off",
    (6, "shuffle"): "6/1 5/0 6/1 5/0 6/1 6/1 5/0 2/off",
    (6, "insert_random"): "7/1 2/1 5/1 3/1 7/1 7/1 3/0 2/0",
    (6, "remove_random"): "5/1 1/1 3/1 2/1 5/1 5/1 2/1 2/1",
}


def law(n, task):
    """The right lists behind their prompt, as the toy's params."""
    items = tuple("abcdef"[:n])
    line = lines.Line(items, "g", 0)
    right = lines.OPERATIONS[task.removesuffix(" or same")].right(line)
    if task.endswith("same"):
        right = [*right, items]
    # The new item has the highest id of all.
    strings = np.array(
        [["abcdef".find(c) if c != "g" else 6 for c in r] for r in right]
    )
    whole = np.full((len(right), LENGTH), FILL, np.int32)
    whole[:, 1 : 1 + strings.shape[1]] = strings
    # Whole numbers for weights: equal chances are equal to the bit. All laws have one
    # shape; what is added has no weight.
    padded = np.concatenate([whole, np.repeat(whole[:1], 720 - len(whole), 0)])
    weight = np.where(np.arange(720) < len(whole), 0.0, toy.IMPOSSIBLE)
    return toy.Table(jnp.asarray(padded), jnp.asarray(weight)), strings


MODEL = toy.make_model(VOCAB - 1, LENGTH, predicts="masked", mask_logit=-1e9)


@functools.partial(jax.jit, static_argnames=("name", "knob"))
def run(params, prompt, value, *, name, knob):
    method = getattr(methods, name)
    decoder = method(MODEL, max_new_tokens=MAX_NEW, **{knob: value})
    return decode.decode(decoder, params, prompt, jax.random.key(0))


def decoded(n, task, name, knob, value):
    """Calls, and whether the list is right."""
    params, right = law(n, task)
    length = right.shape[1]
    prompt = prompts.from_rows([[FILL]], max_new_tokens=length, model=MODEL)
    shift = SLACK if name == "eb_sampler" else -SLACK
    made, stats = run(params, prompt, jnp.float32(value + shift), name=name, knob=knob)
    found = np.asarray(made.tokens[0, 1 : 1 + length])
    return int(stats.num_calls[0]), bool((right == found).all(1).any())


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_golden_table(case):
    for rule, entry in zip(RULES, TABLE[case].split(), strict=True):
        calls, is_right = decoded(*case, *rule)
        wanted, validity = entry.split("/")
        assert is_right == (validity == "1"), (rule, entry, calls)
        if validity != "off":
            assert calls == int(wanted), (rule, entry)


def test_a_threshold_that_is_not_reached_is_another_table():
    """Negative control: the slack on the wrong side changes what 1/2 decides."""
    assert decoded(4, "remove_random", "fast_dllm", "threshold", 0.5) == (1, True)
    moved = decoded(4, "remove_random", "fast_dllm", "threshold", 0.5 + 2 * SLACK)
    assert moved[0] > 1
