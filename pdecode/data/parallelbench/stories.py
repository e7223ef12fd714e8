"""ParallelBench's form of the tasks: names, questions, one worked example, lists.

The questions are our own words for the same ten operations.
"""

import re

from pdecode.data.parallelbench.lines import Line, Output
from pdecode.data.parallelbench.puzzles import SIZE

_FIRST = """Ada Ben Cora Dan Ella Finn Gina Hugo Ida Jack Kate Liam Mia Noah Olga Paul
Rosa Sam Tara Ugo Vera Will Xena Yuri Zoe Amir Beth Carl Dora Emil Faye Gus""".split()
_LAST = """Abbott Baker Carter Diaz Ellis Fisher Garcia Hughes Ivanov Jensen Klein
Lopez Meyer Novak Olsen Parker Quinn Rossi Silva Turner Usher Vogel Weber Xu Young
Zhang Adler Brandt Chen Dubois Evans Fuchs Grant Haas Irving Jones Kaya Lang Moreau
Nagy Okafor Petrov Rivera Sato Tanaka Ueda Varga Walsh Yilmaz Zimmer""".split()
NAMES = tuple(f"{first} {last}" for first in _FIRST for last in _LAST)

_QUESTIONS = {
    "copy": "Write down the line as it is.",
    "reverse": "The line turns round. Write it down from its end.",
    "sort": "Sort the line by the alphabet.",
    "shuffle": "Shuffle the line: it must not stay as it is.",
    "insert_index": "{new} joins the line at position {index}, counted from 0.",
    "insert_random": "{new} joins the line at a position of your choice.",
    "remove_index": "Whoever stands at position {index}, counted from 0, leaves.",
    "remove_random": "One person of your choice leaves the line.",
    "replace_index": "{new} takes the place at position {index}, counted from 0.",
    "replace_random": "{new} takes the place of one person of your choice.",
}
_LIST = re.compile(r'\["[^"]*"(?:, "[^"]*")*\]|\[\]')
_ITEM = re.compile(r'"([^"]*)"')


def listed(items: Output) -> str:
    """`["a", "b"]`."""
    return "[" + ", ".join(f'"{item}"' for item in items) + "]"


def of_line(task: str, asked: Line, shown: tuple[Line, Output]) -> str:
    """The question about a line, behind the same question about `shown`, answered."""
    ask = _QUESTIONS[task]
    return (
        "You keep the waiting line of a customer desk. Give only the final list.\n\n"
        f"Line: {listed(shown[0].items)}\n{_filled(ask, shown[0])}\n"
        f"{listed(shown[1])}\n\n"
        f"Line: {listed(asked.items)}\n{_filled(ask, asked)}\n"
    )


def _filled(question: str, line: Line) -> str:
    return question.format(new=line.new, index=line.index)


def read_list(text: str, is_strict: bool) -> Output | None:
    """The items of a list; None where there is none. See `tasks.is_right`."""
    if is_strict:
        text = text.strip()
        return tuple(_ITEM.findall(text)) if _LIST.fullmatch(text) else None
    begin = text.rfind("[")
    end = text.find("]", begin)
    if begin < 0 or end < 0:
        return None
    parts = (
        part.strip().strip("\"'").strip() for part in text[begin + 1 : end].split(",")
    )
    return tuple(part for part in parts if part)


def grid(cells: str) -> str:
    """16 cells as four CSV lines; a hole is 0."""
    cells = cells.replace(".", "0")
    return "\n".join(",".join(cells[i : i + SIZE]) for i in range(0, SIZE**2, SIZE))


def of_grid(task: str, asked: str) -> str:
    """The question about symbols or a grid with holes."""
    if task == "sudoku":
        return (
            "Solve this 4x4 sudoku; 0 is an empty cell. Give only the grid, as CSV.\n"
            f"{grid(asked)}\n"
        )
    return (
        f"Write a Latin square of the symbols {', '.join(asked)}. Give only the grid, "
        "as four lines of CSV.\n"
    )


def read_grid(text: str, is_strict: bool) -> str:
    """16 cells of the first four lines that are rows; "" where there are no four."""
    rows = [line.strip().replace(" ", "") for line in text.strip().splitlines()]
    is_row = [re.fullmatch(r"[A-Z0-9](,[A-Z0-9]){3}", row) is not None for row in rows]
    if is_strict and (len(rows) != SIZE or not all(is_row)):
        return ""
    kept = [row for row, good in zip(rows, is_row) if good][:SIZE]
    return "".join(kept).replace(",", "") if len(kept) == SIZE else ""
