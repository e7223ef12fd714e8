"""Writes each notebook's .ipynb from its text form (percent cells, as jupytext reads).

    python notebooks/build.py

The text is what is edited and tested; tests/test_notebooks.py keeps the two together.
"""

import json
import pathlib
import re

# Where the badge points: the repository's own address, once it has one.
REPOSITORY = "OWNER/pdecode"
FOLDER = pathlib.Path(__file__).parent


def cells(text: str) -> list[tuple[str, str]]:
    """("markdown" | "code", source) of each cell."""
    found = []
    for part in re.split(r"^# %%", text, flags=re.M)[1:]:
        head, _, body = part.partition("\n")
        body = body.strip("\n")
        if head.strip() == "[markdown]":
            lines = [re.sub(r"^# ?", "", line) for line in body.split("\n")]
            found.append(("markdown", "\n".join(lines)))
        else:
            found.append(("code", body))
    return found


def notebook(path: pathlib.Path) -> str:
    """The .ipynb of a text form; its first cell gets the badge."""
    link = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks"
    badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link}/{path.stem}.ipynb)"
    made = []
    for index, (kind, source) in enumerate(cells(path.read_text())):
        if index == 0:
            source = f"{badge}\n\n{source}"
        cell = {
            "cell_type": kind,
            "id": f"{path.stem[:2]}-{index:02}",
            "metadata": {},
            "source": source.splitlines(keepends=True),
        }
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        made.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": made,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1) + "\n"


def texts() -> list[pathlib.Path]:
    """The text forms, in order."""
    return sorted(FOLDER.glob("[0-9]*.py"))


if __name__ == "__main__":
    for path in texts():
        path.with_suffix(".ipynb").write_text(notebook(path))
        print(f"written: {path.with_suffix('.ipynb').name}")
