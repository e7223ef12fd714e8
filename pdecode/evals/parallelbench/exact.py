"""A perfect model of the waiting lines: every answer's exact law, served as a model.

What goes wrong here is the decoder's alone, whatever a network is. Rows are sampled at
temperature 1 from laws in which every right answer is equally likely, then EOS and what
fills the canvas: EOS.
"""

import jax.numpy as jnp
import numpy as np

from pdecode import prompts
from pdecode.contracts import Model
from pdecode.data.parallelbench import lines
from pdecode.evals.parallelbench.suite import Batch, Source
from pdecode.models import toy

MAX_NEW = 8
_LETTERS = "abcdefg"  # six items, and the highest id: the new one
EOS_ID, _START_ID, _NUM_IDS = 7, 8, 9
_NUM_STRINGS = 720  # of every law, so that all have one shape: 6! or fewer


def model() -> Model:
    """The model; its mask is in no law."""
    return toy.make_model(
        _NUM_IDS, 1 + MAX_NEW, predicts="masked", eos_ids=(EOS_ID,),
        mask_logit=toy.IMPOSSIBLE,
    )  # fmt: skip


def source(num: int) -> Source:
    """`num` draws of each of the ten operations at each length."""
    made = model()
    batches = [
        _batch(name, length, num, made)
        for name in lines.OPERATIONS
        for length in lines.LENGTHS
    ]
    return Source(made, batches, {"temperature": 1.0})


def law(line: lines.Line, task: str) -> toy.Table:
    """Each right answer equally likely, behind a start; the params of `model`."""
    right = lines.OPERATIONS[task].right(line)
    strings = np.full((_NUM_STRINGS, 1 + MAX_NEW), EOS_ID, np.int32)
    strings[:, 0] = _START_ID
    for row, output in zip(strings, right):
        row[1 : 1 + len(output)] = [_LETTERS.index(item) for item in output]
    strings[len(right) :] = strings[0]
    # Whole numbers for weights, so that equal chances are equal to the bit.
    weight = np.where(np.arange(_NUM_STRINGS) < len(right), 0.0, toy.IMPOSSIBLE)
    return toy.Table(jnp.asarray(strings), jnp.asarray(weight))


def _batch(task: str, length: int, num: int, made: Model) -> Batch:
    line = lines.Line(tuple(_LETTERS[:length]), _LETTERS[-1], length // 2)
    # Sorting sorts what is sorted, reversing does not: which items does not matter.
    first = num * (length + 10 * list(lines.OPERATIONS).index(task))
    prompt = prompts.from_rows(
        [[_START_ID]] * num,
        max_new_tokens=MAX_NEW,
        row_ids=range(first, first + num),
        model=made,
    )

    def is_right(row: int, ids: list[int], is_strict: bool) -> bool:
        del row, is_strict
        if any(i >= len(_LETTERS) for i in ids):
            return False
        output = tuple(_LETTERS[i] for i in ids)
        return lines.OPERATIONS[task].is_right(line, output)

    return Batch(MAX_NEW, prompt, law(line, task), [task] * num, is_right)
