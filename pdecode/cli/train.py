"""pdecode train: the options of the command, and what it prints when a run ends."""

import shlex
import sys
from typing import TextIO

DIVERGED, STOPPED = 1, 130


def options(made) -> None:
    """Adds the options of the command to its parser."""
    made.add_argument("--config", required=True, help="configs/NAME.py")
    made.add_argument("--out", help="folder (default: results/NAME)")
    made.add_argument("--mesh", help="split over devices: axes, as data=2,fsdp=4")
    made.add_argument(
        "--overwrite", action="store_true", help="give up what --out holds"
    )
    made.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything and say what would be trained, and how",
    )


def run(args, out: TextIO | None) -> int:
    """Trains, or says what it would do; the exit code. Errors as `trainer.train`."""
    from pdecode import train
    from pdecode.cli import arguments

    def log(line: str) -> None:
        if out is not None:
            print(line, file=out, flush=True)

    axes = arguments.mesh(args.mesh)
    if args.dry_run:
        log(train.dry_run(args.config, args.set, axes))
        return 0
    try:
        made = train.run_config(
            args.config,
            args.set,
            args.out,
            mesh=axes,
            overwrite=args.overwrite,
            log=log,
        )
    except FloatingPointError as error:
        return _say(f"error: {error}", out, DIVERGED)
    except train.Interrupted as stop:
        return _say(str(stop), out, STOPPED)
    log(f"decode it: {_next_command(args, made.record)}")
    return 0


def _next_command(args, record: dict) -> str:
    """What decodes with the result of a run."""
    from pdecode import knobs, recipes
    from pdecode.models import bytes as byte_model
    from pdecode.models import digits, embedded
    from pdecode.train import objectives

    out = args.out or f"results/{record['name']}"
    kind = embedded.holds(record)["kind"]
    if kind == "denoiser":
        return shlex.join(
            ["python", "-m", "pdecode.evals.bench.films", "--denoiser", out]
        )
    if kind == "staged":
        module = "pdecode.evals.staged_digits"
        return shlex.join(["python", "-m", module, out, "digits.png"])
    parts = ["pdecode", "generate"]
    config = record["config"]
    objective = objectives.find(record["objective"])
    told, method = objective.decoded_by or objective.decoded_as, None
    if told is not None:
        method, sizes = told(config["options"])
        parts += ["--method", method]
        for name, value in sizes.items():
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            parts += ["--set", f"{name}={text}"]
    if method is None or objective.decoded_by is None:
        parts += ["--model", out]
    else:
        # Without one the method takes the model that it does by default.
        for target in record["frozen"].values():
            parts += ["--model", target["from"]]
        beside = knobs.roles(recipes.find(method).method)[1:]
        named = [out if role == kind else role.upper() for role in beside]
        parts += ["--drafter", ",".join(named) if kind in beside else out]
    if embedded.tokenizer_of(record) is digits.tokenizer:
        return shlex.join([*parts, "--class", "7"])
    if config.get("data") == "frames":
        return shlex.join([*parts, "--prompt", "7 >>>.vv^"])
    is_text = config["model"]["vocab_size"] == byte_model.VOCAB_SIZE
    # Python's library is the text that a run has by default.
    text = "def f(n):" if config.get("data") is None else "YOUR PROMPT"
    parts += ["--prompt", text] if is_text else ["--prompt-ids", "[[1, 2]]"]
    return shlex.join(parts)


def _say(line: str, out: TextIO | None, code: int) -> int:
    if out is not None:
        print(f"pdecode: {line}", file=sys.stderr, flush=True)
    return code
