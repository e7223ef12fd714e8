"""The tasks of ParallelBench: what is right, how texts are read, what theory allows."""

import itertools
import math

import numpy as np
import pytest

from pdecode.data.parallelbench import lines, puzzles, rows, stories, tasks
from pdecode.evals.parallelbench import bounds
from pdecode.models import bytes as text

LINES = tuple(lines.OPERATIONS)


def law(task, n, identity=False):
    """A line's outputs as strings of small ids, equally likely; the new item is n."""
    items = tuple(chr(97 + i) for i in range(n))
    line = lines.Line(items, chr(97 + n), n // 2)
    right = lines.OPERATIONS[task].right(line)
    if identity:
        right = [*right, items]
    strings = np.array([[ord(c) - 97 for c in out] for out in right])
    return strings, np.full(len(right), 1 / len(right))


def whole(strings):
    return [list(range(strings.shape[1]))]


# C and one-step accuracy for n = 3 .. 6, from the paper's closed forms and enumeration.
GOLDEN = {
    ("replace_random", False): (
        (0.8109, 0.8630, 0.8926, 0.9116),
        (0.4444, 0.4219, 0.4096, 0.4019),
    ),
    ("shuffle", True): (
        (1.5041, 2.3671, 3.2597, 4.1713),
        (0.2222, 0.09375, 0.0384, 0.01543),
    ),
    ("shuffle", False): (
        (1.5553, 2.3980, 3.2674, 4.1727),
        (0.2240, 0.0919, 0.0381, 0.0154),
    ),
    ("insert_random", False): (
        (1.8178, 2.3468, 2.8673, 3.3826),
        (0.1875, 0.1229, 0.0823, 0.0560),
    ),
    ("remove_random", False): (
        (0.1744, 0.4315, 0.7374, 1.0755),
        (0.8889, 0.7500, 0.6144, 0.4938),
    ),
}
CLOSED = {
    ("replace_random", False): bounds.replace_accuracy,
    ("shuffle", True): bounds.shuffle_accuracy,
    ("insert_random", False): bounds.insert_accuracy,
    ("remove_random", False): bounds.remove_accuracy,
}


@pytest.mark.parametrize("case", GOLDEN, ids=str)
def test_one_step_bounds(case):
    for n, nats, chance in zip(lines.LENGTHS, *GOLDEN[case]):
        strings, probs = law(case[0], n, case[1])
        assert abs(bounds.total_correlation(strings, probs) - nats) < 1e-4
        assert abs(bounds.accuracy(strings, probs, whole(strings)) - chance) < 1e-4
        if case in CLOSED:
            exact = bounds.accuracy(strings, probs, whole(strings))
            assert abs(CLOSED[case](n) - exact) < 1e-12
    assert abs(bounds.replace_correlation(4) - 0.8630) < 1e-4
    assert abs(bounds.shuffle_correlation(4) - 2.3671) < 1e-4
    assert abs(bounds.latin_correlation() - 15.8246) < 1e-4


# Left-to-right groups: n, identity allowed, sizes of the groups, accuracy.
GROUPED = [
    ("shuffle", 4, (2, 2), 0.37500),
    ("replace_random", 4, (2, 2), 0.65625),
    ("insert_random", 4, (2, 3), 0.34222),
    ("remove_random", 4, (2, 1), 0.87500),
    ("shuffle", 6, (3, 3), 0.12346),
    ("replace_random", 6, (3, 3), 0.60442),
    ("insert_random", 6, (3, 4), 0.19388),
    ("remove_random", 6, (3, 2), 0.69136),
    ("shuffle", 6, (2, 2, 2), 0.31250),
    ("replace_random", 6, (2, 2, 2), 0.73351),
    ("insert_random", 6, (2, 2, 3), 0.35238),
    ("remove_random", 6, (2, 2, 1), 0.81944),
]


def grouped(sizes):
    ends = np.cumsum(sizes)
    return [list(range(end - size, end)) for end, size in zip(ends, sizes)]


@pytest.mark.parametrize("task, n, sizes, chance", GROUPED)
def test_bounds_of_groups(task, n, sizes, chance):
    strings, probs = law(task, n, identity=task == "shuffle")
    groups = grouped(sizes)
    assert abs(bounds.accuracy(strings, probs, groups) - chance) < 1e-5
    if task == "shuffle":
        assert abs(bounds.shuffle_accuracy(n, sizes) - chance) < 1e-5
    if task == "replace_random":
        assert abs(bounds.replace_accuracy(n, sizes) - chance) < 1e-5


@pytest.mark.parametrize("task", ["shuffle", "insert_random", "replace_random"])
def test_simulation_meets_the_bounds(task):
    num = 100_000
    strings, probs = law(task, 4)
    for groups in (whole(strings), grouped((2, strings.shape[1] - 2))):
        exact = bounds.accuracy(strings, probs, groups)
        found = bounds.simulated(strings, probs, groups, num, seed=2**40).mean()
        error = math.sqrt(exact * (1 - exact) / num)
        assert abs(found - exact) < 3 * error
        # Negative control: the accuracy of one step is not that of two.
        other = bounds.accuracy(strings, probs, [[i] for i in range(3)] + groups[3:])
        assert abs(found - other) > 3 * error


def test_more_steps_lose_less_and_one_token_a_step_nothing():
    for task in ("shuffle", "insert_random", "remove_random", "replace_random"):
        strings, probs = law(task, 5)
        length = strings.shape[1]
        found = [
            bounds.loss(strings, probs, [list(each) for each in groups])
            for groups in (
                np.array_split(np.arange(length), steps)
                for steps in range(1, length + 1)
            )
        ]
        assert abs(found[0] - bounds.total_correlation(strings, probs)) < 1e-12
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise(found))
        assert abs(found[-1]) < 1e-12
    for task in ("copy", "reverse", "sort", "insert_index"):
        assert bounds.total_correlation(*law(task, 5)) == 0


@pytest.mark.parametrize("task", LINES)
def test_what_is_right_is_what_enumeration_says(task):
    """All lists over the items, the new one and a stranger, of every length."""
    line = lines.Line(("b", "a", "c"), "x", 1)
    right = set(lines.OPERATIONS[task].right(line))
    assert right
    for length in range(5):
        for out in itertools.product("abcxz", repeat=length):
            assert lines.OPERATIONS[task].is_right(line, out) == (out in right), out


@pytest.mark.parametrize("task", tasks.NAMES)
def test_instances_are_a_function_of_the_seed(task):
    seed = 2**64 - 1
    found = tasks.generate(task, seed, 12)
    assert found == tasks.generate(task, seed, 12)
    assert found != tasks.generate(task, seed - 2**32, 12)
    assert all(tasks.is_right(each, each.answer) for each in found)
    assert all(tasks.is_heldout(each.prompt) for each in found)
    train = tasks.generate(task, seed, 12, split="train")
    assert not any(tasks.is_heldout(each.prompt) for each in train)
    if task in LINES:
        counts = [sum(len(e.asked.items) == n for e in found) for n in lines.LENGTHS]
        assert counts == [3, 3, 3, 3]
    for each in found:
        assert len(text.tokenizer.encode(each.prompt + each.answer)) < rows.ROW_LEN
    if task != "addition":
        for each in tasks.generate(task, seed, 8, form="story"):
            assert tasks.is_right(each, each.answer)
            assert tasks.is_right(each, each.answer, is_strict=False)
            assert not tasks.is_right(each, each.answer[1:])


def test_generate_refuses():
    for given, match in (
        (("dance", 0, 1), "unknown 'dance'"),
        (("copy", -1, 1), "seed=-1"),
        (("copy", 2**64, 1), "seed="),
        (("copy", 0, 0), "n=0"),
    ):
        with pytest.raises(ValueError, match=match):
            tasks.generate(*given)
    with pytest.raises(ValueError, match="no story"):
        tasks.generate("addition", 0, 1, form="story")
    with pytest.raises(ValueError, match="unknown split"):
        rows.stream("test")


READ = [
    ('["a b", "c d"]', ("a b", "c d"), ("a b", "c d")),
    (' \n["a b", "c d"]\n', ("a b", "c d"), ("a b", "c d")),
    ("[]", (), ()),
    ('["a b","c d"]', None, ("a b", "c d")),
    ("[a b, c d]", None, ("a b", "c d")),
    ('Sure: ["a b", "c d"]!', None, ("a b", "c d")),
    ('["x"] no, ["a b", "c d"]', None, ("a b", "c d")),
    ('["a b", "c d"', None, None),
    ("a b, c d]", None, None),
    ("", None, None),
    ("][", None, None),
    ('[["a"]]', None, ("a",)),
    ('["a", ]', None, ("a",)),
    ("[\x00\udcff]", None, ("\x00\udcff",)),
    ("[" * 10_000, None, None),
    ('["' + "a" * 100_000, None, None),
]


@pytest.mark.parametrize("given, strict, lenient", READ, ids=range(len(READ)))
def test_lists_are_read_strictly_or_leniently(given, strict, lenient):
    assert stories.read_list(given, True) == strict
    assert stories.read_list(given, False) == lenient


HOSTILE = ["", "\x00", "�" * 40, "=" * 9, "abc=abc", "²³", "é" * 16, "9" * 5000]


@pytest.mark.parametrize("task", tasks.NAMES)
def test_any_text_is_scored(task):
    (instance,) = tasks.generate(task, 5, 1)
    for given in HOSTILE:
        assert not tasks.is_right(instance, given)
        assert not tasks.is_right(instance, given, is_strict=False)
    assert tasks.is_right(instance, f" {instance.answer}\n")
    loose = f"{instance.answer} and so on"
    assert not tasks.is_right(instance, loose)
    assert tasks.is_right(instance, loose, is_strict=False)


def test_grids():
    grids = puzzles.sudokus()
    assert grids.shape == (288, 16)
    draw = np.random.default_rng(0)
    for _ in range(20):
        shown, solved = puzzles.draw_sudoku(draw)
        assert shown.count(puzzles.HOLE) == 4
        fits = [all(s in (".", str(v)) for s, v in zip(shown, grid)) for grid in grids]
        assert sum(fits) == 1 and "".join(map(str, grids[np.argmax(fits)])) == solved
        symbols, square = puzzles.draw_latin(draw)
        assert puzzles.is_latin(symbols, square)
        assert not puzzles.is_latin(symbols, square[1:] + square[0])
    assert stories.read_grid("1,2,3,4\nno\n3,4,1,2\n2,1,4,3\n4,3,2,1", True) == ""
    loose = stories.read_grid("1,2,3,4\nno\n3,4,1,2\n2,1,4,3\n4,3,2,1", False)
    assert loose == "1234341221434321"


def test_rows_hold_one_instance_each():
    made = rows.stream("train", 64).reshape(-1, rows.ROW_LEN)
    held = rows.stream("validation", 64).reshape(-1, rows.ROW_LEN)
    for some, is_held in ((made, False), (held, True)):
        for row in some.tolist():
            assert row[0] == text.BOS_ID and row[-1] == text.EOS_ID
            prompt = text.tokenizer.decode(row[: row.index(rows.END_ID) + 1])
            assert tasks.is_heldout(prompt) == is_held
    codes = {chr(row[1]) for row in rows.stream("train", 400).reshape(-1, 36)}
    assert codes == set(tasks.CODES.values())
