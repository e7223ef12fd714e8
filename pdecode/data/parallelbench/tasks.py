"""Instances of all tasks as text, and the score of a text.

Two forms. "story" is ParallelBench's: names, a question and one worked example, lists
as `["a", "b"]`, grids as CSV. "compact" is for models of a million parameters: a letter
for the task, items of one letter, the new item, the place, "=" and the answer, as
`Sdbca....=abcd` and `Iabc...x1=axbc`. Each has its place, so that what is to be copied
is as far away in every prompt; with prompts as long as they need be, half a million
parameters learned in 1800 steps which letters an answer has, and not their order.

Instances are a function of (task, seed, n, form, split), the seed of 64 bits. The
splits share no prompt, because a prompt's hash says which one it belongs to.
"""

import hashlib
import itertools
from typing import NamedTuple

import numpy as np

from pdecode.data.parallelbench import lines, puzzles, stories
from pdecode.data.parallelbench.lines import LENGTHS, Line

CODES = {
    "copy": "C",
    "reverse": "R",
    "sort": "S",
    "shuffle": "H",
    "insert_index": "I",
    "insert_random": "J",
    "remove_index": "D",
    "remove_random": "E",
    "replace_index": "P",
    "replace_random": "Q",
    "latin_square": "L",
    "sudoku": "U",
    "addition": "A",
}
NAMES = tuple(CODES)
FORMS = ("compact", "story")
SPLITS = ("train", "heldout")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
END, BLANK = "=", "."  # of a compact prompt
WIDTH = LENGTHS[-1] + 2  # between the letter and END; a sudoku is wider
_HELDOUT = 8  # one prompt in so many
_PUZZLES = {
    "latin_square": puzzles.draw_latin,
    "sudoku": puzzles.draw_sudoku,
    "addition": puzzles.draw_addition,
}


class Instance(NamedTuple):
    """A prompt, what it asks, and an answer that is right, if not the only one."""

    task: str
    form: str
    asked: Line | str  # a line; or symbols, a grid with holes, a sum
    prompt: str
    answer: str


def generate(
    task: str, seed: int, n: int, *, form: str = "compact", split: str = "heldout"
) -> list[Instance]:
    """`n` instances; lines are ordered by length, each length equally often.

    Raises ValueError for unknown names, and for a seed or n out of range.
    """
    for value, known in ((task, NAMES), (form, FORMS), (split, SPLITS)):
        if value not in known:
            raise ValueError(f"unknown {value!r}; known: {', '.join(known)}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed} must be in [0, 2**64)")
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    if task == "addition" and form == "story":
        raise ValueError("addition has no story; use form='compact'")
    name = hashlib.sha256(f"{task} {form} {split}".encode()).digest()
    key = np.array([seed, int.from_bytes(name[:8], "big")], np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    found = []
    while len(found) < n:
        length = LENGTHS[len(LENGTHS) * len(found) // n]
        made = _drawn(task, form, length, generator)
        if is_heldout(made.prompt) == (split == "heldout"):
            found.append(made)
    return found


def is_heldout(prompt: str) -> bool:
    """Whether a prompt belongs to the held-out split, by its hash."""
    return hashlib.blake2b(prompt.encode(), digest_size=1).digest()[0] % _HELDOUT == 0


def is_right(instance: Instance, text: str, *, is_strict: bool = True) -> bool:
    """Whether a text answers the instance; any text may come.

    Strict: the text is one answer in its form, with white-space around it at most.
    Lenient: a story's list is what lies between the last "[" and the next "]", its
    grid the first four lines that are rows; a compact answer ends where a character
    comes that no answer has.
    """
    if isinstance(instance.asked, Line):
        found = _line(instance.form, text, is_strict)
        right = lines.OPERATIONS[instance.task].is_right
        return found is not None and right(instance.asked, found)
    found = _cells(instance.form, text, is_strict)
    if instance.task == "latin_square":
        return puzzles.is_latin(instance.asked, found)
    return found == _cells(instance.form, instance.answer, True)


def _drawn(task: str, form: str, length: int, generator) -> Instance:
    make = _compact if form == "compact" else _story
    return make(task, length, generator)


def _compact(task: str, length: int, generator) -> Instance:
    if task in _PUZZLES:
        asked, answer = _PUZZLES[task](generator)
        shown = asked
    else:
        asked, output = lines.draw(task, length, LETTERS, generator)
        answer = "".join(output)
        index = None if asked.index is None else str(asked.index)
        items = "".join(asked.items).ljust(LENGTHS[-1], BLANK)
        shown = items + (asked.new or BLANK) + (index or BLANK)
    prompt = CODES[task] + shown.ljust(WIDTH, BLANK) + END
    return Instance(task, "compact", asked, prompt, answer)


def _story(task: str, length: int, generator) -> Instance:
    if task in _PUZZLES:
        asked, cells = _PUZZLES[task](generator)
        prompt = stories.of_grid(task, asked)
        return Instance(task, "story", asked, prompt, stories.grid(cells))
    asked, output = lines.draw(task, length, stories.NAMES, generator)
    other = int(generator.choice(LENGTHS))
    shown = lines.draw(task, other, stories.NAMES, generator)
    prompt = stories.of_line(task, asked, shown)
    return Instance(task, "story", asked, prompt, stories.listed(output))


def _line(form: str, text: str, is_strict: bool) -> lines.Output | None:
    if form == "story":
        return stories.read_list(text, is_strict)
    letters = _leading(text.strip(), LETTERS)
    return None if is_strict and letters != text.strip() else tuple(letters)


def _cells(form: str, text: str, is_strict: bool) -> str:
    """Cells or digits in order; "" where there are none."""
    if form == "story":
        return stories.read_grid(text, is_strict)
    cells = _leading(text.strip(), puzzles.SYMBOLS)
    return "" if is_strict and cells != text.strip() else cells


def _leading(text: str, allowed: str) -> str:
    return "".join(itertools.takewhile(lambda each: each in allowed, text))
