"""What a replay shows, as plain data: of one result, or of a comparison's methods."""

import itertools
import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple


class Trace(NamedTuple):
    """One row of one method: its tokens, and when each of them was committed."""

    prompt: int  # index into `Replay.prompts`
    pieces: list[str]  # the text that each token adds
    steps: list[int]  # that committed it, from 0; -1: never
    probs: list[float | None]  # of the token when it was committed
    kinds: list[str]  # filled | accepted | own (the target's, after its drafts)
    calls: int
    seconds: float  # of decoding
    # What else happened: [step, position, piece, probability, filled | revised |
    # reopened]; None: only last commits are known.
    events: list[list] | None = None
    proposed: list[int] | None = None  # drafted, or open and predicted, by step
    values: list[float] | None = None  # in [0, 1], where the row is an image
    grid: tuple[int, int] | None = None  # its height and width


class Run(NamedTuple):
    """One method on some prompts."""

    name: str
    about: str  # model, settings, guarantee
    traces: list[Trace]


class Replay(NamedTuple):
    """What a page shows."""

    title: str
    prompts: list[str]
    runs: list[Run]


def of_result(made: Any, grid: tuple[int, int] | None = None) -> Replay:
    """The replay of a `results.Result`, or of its fields as `--json` prints them."""
    fields = made if isinstance(made, dict) else made._asdict()
    _check_has(fields, ("steps", "pieces", "prompts", "probs", "predicts"))
    recorded = fields.get("recorded") or [None] * len(fields["tokens"])
    traces = []
    for index, tokens in enumerate(fields["tokens"]):
        steps = fields["steps"][index]
        more = recorded[index] or {}
        traces.append(
            Trace(
                prompt=index,
                pieces=fields["pieces"][index],
                steps=steps,
                probs=fields["probs"][index],
                kinds=kinds(steps, is_draft=fields["predicts"] == "next"),
                calls=fields["stats"]["calls"][index],
                seconds=fields["timing"]["decode_s"],
                events=more.get("events"),
                proposed=more.get("proposed"),
                values=_values(tokens, fields["vocab_size"]) if grid else None,
                grid=_fitting(grid, len(tokens)) if grid else None,
            )
        )
    about = f"{fields['model']}{_settings(fields['settings'])}"
    run = Run(fields["method"], about, traces)
    return Replay(
        f"{fields['method']} with {fields['model']}", fields["prompts"], [run]
    )


def of_lines(lines: Sequence[dict[str, Any]], grid=None) -> Replay:
    """The replay of results one a line, as `generate --json` prints several prompts."""
    same = ("timing", "method", "model", "settings", "predicts", "vocab_size")
    for line in lines:
        _check_has(line, ("tokens", "steps", "pieces", "probs", "stats", *same))
    first = lines[0]
    whole: dict[str, Any] = {
        "tokens": [line["tokens"] for line in lines],
        "steps": [line["steps"] for line in lines],
        "pieces": [line["pieces"] for line in lines],
        "probs": [line["probs"] for line in lines],
        "recorded": [line.get("recorded") for line in lines],
        "prompts": [line.get("prompt", "") for line in lines],
        "stats": {"calls": [line["stats"]["calls"] for line in lines]},
    }
    return of_result({**whole, **{name: first[name] for name in same}}, grid)


def of_comparison(made: dict[str, Any]) -> Replay:
    """All methods of a comparison on its prompts, side by side."""
    size = made["settings"]["batch_size"]
    runs = []
    for row in made["rows"]:
        if not row.get("pieces"):
            raise ValueError("the comparison has no pieces: run pdecode compare anew")
        turns = [max(steps, default=0) + 1 for steps in row["commit_steps"]]
        groups = [turns[i : i + size] for i in range(0, len(turns), size)]
        a_turn = statistics.median(row["decode_s"]) / sum(map(max, groups))
        a_call = row["calls_per_row"] * len(turns) / sum(turns)
        traces = [
            Trace(
                prompt=index,
                pieces=pieces,
                steps=steps[: len(pieces)],
                probs=probs[: len(pieces)],
                kinds=kinds(steps, is_draft=row["mean_accepted"] is not None),
                calls=round(a_call * turns[index]),
                seconds=a_turn * turns[index],
            )
            for index, (pieces, steps, probs) in enumerate(
                zip(row["pieces"], row["commit_steps"], row["probs"])
            )
        ]
        about = f"{row['guarantee']}, {row['tokens_per_call']:.2f} tokens a call"
        runs.append(Run(row["name"], about + _settings(row["settings"]), traces))
    prompts = [each["prompt"] for each in made["prompts"]]
    return Replay("methods side by side", prompts, runs)


def of_file(path: str, grid: tuple[int, int] | None = None) -> Replay:
    """What a file holds: a result, a line a result, or a comparison. ValueError."""
    text = pathlib.Path(path).read_text()
    try:
        made = json.loads(text)
    except ValueError:
        try:
            made = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            raise ValueError(f"{path} is no JSON") from None
    if isinstance(made, list) and made and all("tokens" in line for line in made):
        return of_lines(made, grid)
    if isinstance(made, dict) and "rows" in made and "prompts" in made:
        if grid is not None:
            raise ValueError("--grid is for one result, and this is a comparison")
        return of_comparison(made)
    if isinstance(made, dict) and "tokens" in made and "method" in made:
        return of_result(made, grid) if "prompts" in made else of_lines([made], grid)
    raise ValueError(
        f"{path} holds neither a result of pdecode generate --json nor a compare.json"
    )


def _check_has(fields: dict[str, Any], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in fields]
    if missing:
        raise ValueError(
            f"the result has no {missing[0]}: make it anew by pdecode generate --json"
        )


def kinds(steps: Sequence[int], *, is_draft: bool) -> list[str]:
    """What each token was: of drafts, the last one of a step is the target's own.

    Who drafts fills from left to right; a causal model in another order fills too.
    """
    if not is_draft or any(a > b for a, b in itertools.pairwise(steps)):
        return ["filled"] * len(steps)
    last = {step: index for index, step in enumerate(steps)}
    return ["own" if last[s] == i else "accepted" for i, s in enumerate(steps)]


def pieces(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The text that each id adds; bytes of one letter stand with its last."""
    found, begin = [], 0
    for end in range(1, len(ids) + 1):
        before = tokenizer.decode(list(ids[max(0, begin - 4) : begin]))
        now = tokenizer.decode(list(ids[max(0, begin - 4) : end]))
        added = now[len(before) :] if now.startswith(before) else (
            tokenizer.decode(list(ids[begin:end]))
        )  # fmt: skip
        is_part = added.endswith("\N{REPLACEMENT CHARACTER}") and end - begin < 4
        if is_part and end < len(ids):
            found.append("")
            continue
        found.append(added)
        begin = end
    return found


def _values(tokens: Sequence[int], vocab_size: int) -> list[float]:
    return [round(token / max(vocab_size - 1, 1), 4) for token in tokens]


def _fitting(grid: tuple[int, int], size: int) -> tuple[int, int]:
    if grid[0] * grid[1] < size:
        raise ValueError(f"a grid of {grid[0]}x{grid[1]} has no room for {size} tokens")
    return grid


def _settings(settings: dict[str, Any]) -> str:
    shown = [f"{name}={value}" for name, value in settings.items()
             if value is not None and name != "max_new_tokens"]  # fmt: skip
    return "; " + ", ".join(shown) if shown else ""
