"""`pdecode tune`: the search, what it found, and the command that uses it."""

import json
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from pdecode.cli import arguments, program_cache


def options(made: Any) -> None:
    """The options of `pdecode tune`."""
    made.add_argument("--model", help="folder or embedded name in place of the target")
    made.add_argument("--drafter", help="the same, for methods that take one")
    made.add_argument("--judge", help="a causal model that judges the text")
    made.add_argument("--dtype", help="of checkpoint folders (default: their own)")
    made.add_argument("--methods", help="names, by commas (default: those of compare)")
    made.add_argument("--minutes", type=float, default=5.0, help="to search for")
    made.add_argument("--num-prompts", type=int, default=8)
    made.add_argument("--batch-size", type=int, default=1)
    made.add_argument("--max-new-tokens", type=int, default=48)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--out", help="folder; one that holds trials goes on (default: results/tune)"
    )
    made.add_argument("--json", action="store_true", help="one JSON object")


def run(args) -> int:
    """Searches, prints the best of each class and the command; the exit code."""
    program_cache.enable()
    from pdecode.evals import compare, tune

    settings = compare.Settings(
        methods=None
        if args.methods is None
        else tuple(arguments.names(args.methods, "--methods")),
        model=args.model,
        drafter=args.drafter,
        judge=args.judge,
        dtype=args.dtype,
        batch_size=args.batch_size,
        num_prompts=args.num_prompts,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
    )
    folder = pathlib.Path(args.out or "results/tune")
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "trials.jsonl"
    _same_search(folder / "search.json", settings._asdict())
    found = tune.tune(
        settings, minutes=args.minutes, log=log,
        say=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    picture = plot(found.trials, folder / "frontier.png")
    best = {kind: found.best(kind) for kind in tune.CLASSES}
    if args.json:
        made: dict[str, Any] = {
            kind: None if trial is None else _data(trial, args)
            for kind, trial in best.items()
        }
        more = {"is_complete": found.is_complete, "num_trials": len(found.trials)}
        print(json.dumps({**made, **more, "log": str(log), "plot": str(picture)}))
        return 0
    print("\n".join(lines(found, best, args)))
    print(f"written: {log}\nwritten: {picture}")
    return 0


def lines(found: Any, best: dict[str, Any], args) -> list[str]:
    """The report."""
    about = {
        "lossless": "the text of plain decoding",
        "near": "another text, whose bits a byte are near plain decoding's",
        "lossy": "another text",
    }
    told = [f"{len(found.trials)} trials"]
    if not found.is_complete:
        told = [f"{told[0]}; time was up before all rounds: the same command goes on"]
    for kind, trial in best.items():
        if trial is None:
            continue
        low, high = trial.ratio_half
        bits = "" if trial.bits_per_byte is None else (
            f", {trial.bits_per_byte:.2f} bits a byte"
        )  # fmt: skip
        told += [
            "",
            f"{kind} ({about[kind]}): {trial.candidate.name}",
            f"  {trial.ratio:.2f} times {found.reference} (middle half {low:.2f} to "
            f"{high:.2f}), {trial.tokens_per_call:.2f} tokens a call, "
            f"{trial.tokens_per_s:.0f} a second{bits}",
            f"  {command(trial.candidate, args)}",
        ]
    lossless = best["lossless"]
    if lossless is not None and lossless.ratio_half[1] < 1:
        told += ["", f"nothing lossless is faster than {found.reference} here"]
    return told


def command(candidate: Any, args) -> str:
    """`pdecode generate` with these settings."""
    words = ["pdecode", "generate", "--method", candidate.method]
    for name in ("model", "drafter", "dtype"):
        value = getattr(args, name)
        words += [f"--{name}", value] if value is not None else []
    for name, value in candidate.settings.items():
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        words += ["--set", f"{name}={'none' if value is None else shown}"]
    # What was measured: other lengths may not fit the settings.
    words += ["--max-new-tokens", str(args.max_new_tokens)]
    return shlex.join([*words, "--prompt", "..."])


def plot(trials: Sequence[Any], path: pathlib.Path) -> pathlib.Path:
    """Every trial of the last round it came to: bits a byte over speed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    last = {trial.candidate.name: trial for trial in trials}
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, marker in (("lossless", "o"), ("near", "D"), ("lossy", "s")):
        some = [trial for trial in last.values() if trial.kind == kind]
        places = [(trial.ratio, trial.bits_per_byte or 0.0) for trial in some]
        if places:
            axes.scatter(*zip(*places), marker=marker, label=kind)
        for trial, place in zip(some, places):
            axes.annotate(trial.candidate.method, place, size=6)
    axes.axvline(1.0, ls=":", color="grey")
    axes.set_xlabel("speed over plain decoding")
    axes.set_ylabel("bits a byte (lower is likelier)")
    axes.legend()
    figure.savefig(path, dpi=130)
    return path


def _data(trial: Any, args) -> dict[str, Any]:
    made = {**trial._asdict(), "candidate": trial.candidate._asdict()}
    return {**made, "command": command(trial.candidate, args)}


def _same_search(path: pathlib.Path, settings: dict[str, Any]) -> None:
    """Refuses to mix two searches in one folder."""
    now = json.loads(json.dumps(settings, default=str))
    is_begun = path.exists() and path.with_name("trials.jsonl").exists()
    if is_begun and json.loads(path.read_text()) != now:
        raise ValueError(
            f"{path.parent} holds another search: give --out another folder"
        )
    path.write_text(json.dumps(now) + "\n")
