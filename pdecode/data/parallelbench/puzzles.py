"""Latin squares, 4 x 4 sudoku and addition: what is asked, what is right.

Cells are strings of one symbol, row by row.
"""

import functools
import itertools

import numpy as np

SIZE = 4
SYMBOLS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
NUM_GIVENS = 12
HOLE = "."


def draw_latin(generator: np.random.Generator) -> tuple[str, str]:
    """Four symbols, and a Latin square of them as 16 cells.

    Cyclic shifts with rows and columns shuffled: 144 of the 576 squares.
    """
    chosen = generator.choice(len(SYMBOLS), SIZE, replace=False)
    symbols = "".join(SYMBOLS[i] for i in chosen)
    rows, columns = generator.permutation(SIZE), generator.permutation(SIZE)
    return symbols, "".join(symbols[(r + c) % SIZE] for r in rows for c in columns)


def is_latin(symbols: str, cells: str) -> bool:
    """Whether all rows and columns of the 16 cells are the symbols."""
    if len(cells) != SIZE * SIZE:
        return False
    rows = [cells[i : i + SIZE] for i in range(0, SIZE * SIZE, SIZE)]
    columns = [cells[i::SIZE] for i in range(SIZE)]
    return all(sorted(each) == sorted(symbols) for each in rows + columns)


@functools.cache
def sudokus() -> np.ndarray:
    """All 288 grids: rows, columns and the four 2 x 2 boxes hold 1 to 4; [288, 16]."""
    rows = list(itertools.permutations(range(1, SIZE + 1)))
    grids = np.array(list(itertools.product(rows, repeat=SIZE)))
    full = set(range(1, SIZE + 1))
    boxes = [(0, 0), (0, 2), (2, 0), (2, 2)]
    columns = np.sort(grids, 1) == np.arange(1, SIZE + 1)[None, :, None]
    grids = grids[columns.all((1, 2))]
    keep = [
        all(set(grid[r : r + 2, c : c + 2].ravel()) == full for r, c in boxes)
        for grid in grids
    ]
    return grids[np.array(keep)].reshape(-1, SIZE * SIZE)


def draw_sudoku(generator: np.random.Generator) -> tuple[str, str]:
    """12 of 16 cells with the others as holes, and the only grid that has them."""
    grids = sudokus()
    grid = grids[int(generator.integers(len(grids)))]
    while True:
        given = np.zeros(SIZE * SIZE, bool)
        given[generator.choice(SIZE * SIZE, NUM_GIVENS, replace=False)] = True
        if (grids[:, given] == grid[given]).all(1).sum() == 1:
            break
    shown = "".join(str(v) if g else HOLE for v, g in zip(grid, given))
    return shown, "".join(map(str, grid))


def draw_addition(generator: np.random.Generator) -> tuple[str, str]:
    """Two numbers of one to three digits each, and their sum."""
    first, second = (
        int(generator.integers(10**n)) for n in generator.integers(1, 4, 2)
    )
    return f"{first}+{second}", str(first + second)
