"""The command line: pdecode compare | generate | methods | train | bench | ...

Whatever a user can get wrong ends in one line on standard error and exit code 2, no
traceback; `--debug` shows it. Heavy imports happen inside the commands.
"""

import argparse
import io
import json
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from pdecode import names
from pdecode.cli import (
    aot,
    arguments,
    datastore,
    eval_drafter,
    program_cache,
    see,
    suites,
    train,
    tune,
)
from pdecode.cli.interrupt import INTERRUPTED
from pdecode.version import __version__

BAD_INPUT = 2
_INT8 = " (default: their own); +int8 behind it: weights, +int8kv: keys, values"
BAD = (ValueError, TypeError, OSError, NotImplementedError, OverflowError, MemoryError)


class _Parser(argparse.ArgumentParser):
    """Argparse prints its usage before an error; here an error is one line."""

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            hint = names.listed(value, action.choices)
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}; {hint}")

    def error(self, message: str) -> NoReturn:
        print(f"pdecode: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(BAD_INPUT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal has no letters for is escaped: no decode is lost to it.
            stream.reconfigure(errors="backslashreplace")
    try:
        args = parser().parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    if args.command is None:
        parser().print_help()
        return 0
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return _run(args)
    except KeyboardInterrupt:
        print("pdecode: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output stopped; nothing is wrong.
        sys.stderr.close()
        return 0
    except BAD as error:
        if args.debug:
            raise
        print(f"pdecode: error: {_one_line(error)}", file=sys.stderr)
        return BAD_INPUT


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = _Parser(prog="pdecode", description="Parallel decoding in JAX.")
    top.add_argument("--version", action="version", version=f"pdecode {__version__}")
    top.set_defaults(command=None)
    commands = top.add_subparsers(metavar="COMMAND")

    def add(name, function, about):
        made = commands.add_parser(name, help=about, description=about)
        made.add_argument("--debug", action="store_true", help="show tracebacks")
        made.set_defaults(command=function)
        return made

    made = add("compare", _compare, "race methods on the same real prompts")
    made.add_argument(
        "--methods", help="names, file.py:name or module:name, separated by commas"
    )
    made.add_argument("--model", help="folder or embedded name in place of the target")
    made.add_argument(
        "--drafter", help="the same, for methods that take one; or made of it: "
        "NAME@group=2, NAME@shared",
    )  # fmt: skip
    made.add_argument("--judge", help="a causal model that judges the text")
    made.add_argument("--dtype", help=f"of checkpoint folders{_INT8}")
    made.add_argument("--mesh", help="split over devices: axes, as data=2,tensor=4")
    _add_fused(made)
    _add_precision(made)
    made.add_argument(
        "--prompts", metavar="FILE", help="a prompt a line, or .jsonl with prompt"
    )
    made.add_argument("--batch-size", type=int, default=1)
    made.add_argument("--num-prompts", type=int, help="default: 8, or all of --prompts")
    made.add_argument("--max-new-tokens", type=int, default=48)
    made.add_argument("--hardware", default="h200", help="h200, h100, v5e or cpu")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", help="folder (default: a new one, results/compare-TIME)")
    printed = made.add_mutually_exclusive_group()
    for kind in ("json", "csv", "markdown"):
        printed.add_argument(
            f"--{kind}", action="store_true", help="results on standard output"
        )
    made.add_argument("--html", metavar="FILE", help="the replay, methods side by side")
    _add_set(made, "METHOD.KNOB=VALUE")

    made = add("generate", _generate, "continue a prompt")
    _add_decode(made)
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", help="text; may be repeated")
    source.add_argument(
        "--prompt-file", help="a file that holds one prompt; - is stdin"
    )
    source.add_argument(
        "--prompts",
        metavar="FILE",
        help="a prompt a line, or .jsonl with prompt or ids",
    )
    source.add_argument("--prompt-ids", help="rows of ids, as [[1,2,3],[4,5]]")
    source.add_argument("--class", dest="classes", help="of image models: 7, or 0,1")
    made.add_argument("--out", help="PNG file for the images of an image model")
    made.add_argument("--chat", action="store_true", help="ask for a reply")
    made.add_argument("--system", metavar="TEXT", help="--chat: what goes before it")
    made.add_argument("--batch-size", type=int, help="rows at a time (default: all)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--row-ids", help="names of the rows' noise, as 7,9 (default: by the prompt)"
    )
    made.add_argument("--watch", action="store_true", help="show every step")
    made.add_argument("--pace", type=float, help="--watch: seconds a step at least")
    made.add_argument("--html", metavar="FILE", help="write the replay, as one page")
    made.add_argument(
        "--quiet", action="store_true", help="no line of counts and times"
    )
    made.add_argument(
        "--json",
        action="store_true",
        help="one JSON object; of several prompts, a line",
    )
    made.add_argument(
        "--allow-not-finite", action="store_true", help="exit 0 where numbers ran out"
    )
    _add_processes(made, "with the devices of all in --mesh")

    made = add("compile", _compile, "compile what generate will run, and keep it")
    _add_decode(made)
    made.add_argument("--prompt-len", type=int, default=64, help="tokens of a row")
    made.add_argument("--batch-size", type=int, default=1)

    made = add("methods", _methods, "list the methods, or explain one")
    made.add_argument("name", nargs="?", help="name, file.py:name or module:name")
    made.add_argument("--json", action="store_true", help="as data")

    made = add("explain", _methods, "explain a method: paper, step, knobs, guarantee")
    made.add_argument("name", help="name, file.py:name or module:name")
    made.add_argument("--json", action="store_true", help="one JSON object")

    see.view_options(add("view", see.view, "show a result's replay: its order"))

    made = add("check", see.check, "try a rule, drafter, decoder or method of your own")
    see.check_options(made)
    _add_set(made, "NAME=VALUE")

    tune.options(add("tune", tune.run, "search for the fastest methods and settings"))

    made = add("eval-drafter", eval_drafter.run, "what of a drafter is accepted")
    eval_drafter.options(made)
    _add_set(made, "KNOB=VALUE")

    made = add("train", _train, "train what a config says")
    train.options(made)
    _add_set(made, "FIELD=VALUE")
    _add_processes(made, "on a folder that all share; a batch is split over them")

    made = add("bench", suites.run, "benchmarks of the framework itself")
    suites.options(made)
    _add_precision(made)

    made = add("aot", aot.run, "what a decode costs on hardware that is not here")
    made.add_argument(
        "--target", default="tpu-v5e-2x4", help="tpu-GENERATION-TOPOLOGY or cuda"
    )
    made.add_argument("--model", default="llada-8b", help="known shape, or a folder")
    made.add_argument("--drafter", help="the same, for the drafter")
    made.add_argument("--method", help="see pdecode methods")
    made.add_argument("--mesh", help="axes and sizes, as fsdp=4,tensor=8")
    made.add_argument("--batch-size", type=int, help="default: one row a device")
    made.add_argument("--prompt-len", type=int, default=512)
    made.add_argument("--max-new-tokens", type=int, default=512)
    made.add_argument("--json", action="store_true", help="one JSON object")
    _add_set(made, "KNOB=VALUE")

    made = add("datastore", datastore.run, "make the texts that methods retrieve from")
    datastore.options(made)

    add("doctor", _doctor, "check this installation with one decode")

    made = add("convert", _convert, "convert a checkpoint to or from orbax")
    made.add_argument("source")
    made.add_argument("target")

    made = add("info", _info, "what a checkpoint is and the memory it needs")
    made.add_argument("path")
    made.add_argument("--mesh", help="axes and sizes, as tensor=4,data=2")
    made.add_argument("--json", action="store_true", help="one JSON object")
    return top


def _run(args) -> int:
    if getattr(args, "precision", None) is None:
        return args.command(args)
    from pdecode import precision

    with precision.at(args.precision):
        return args.command(args)


def _compare(args) -> int:
    from pdecode.cli import compare

    return compare.run(args)


def _generate(args) -> int:
    from pdecode.cli import generate

    return generate.run(args)


def _compile(args) -> int:
    from pdecode.cli import generate

    return generate.compile(args)


def _methods(args) -> int:
    from pdecode import methods, recipes
    from pdecode.methods import describe

    if args.name:
        name, method, settings, _ = recipes.find(args.name)
        about = describe.entry if args.json else describe.text
        found = about(name, method, settings)
        print(json.dumps(found, indent=1) if args.json else found)
        return 0
    if args.json:
        print(json.dumps(describe.entries(), indent=1))
        return 0
    rows = [
        ("method", "group", "arXiv", "guarantee", "models"),
        *describe.listing(),
    ]
    _print_columns(rows)
    named = [
        (name, f"{each.method}: {each.about}")
        for name, each in methods.VARIANTS.items()
    ]
    print()
    _print_columns([("variant", "of"), *named])
    print(
        f"\n{len(rows) - 1} methods, {len(named)} named variants; "
        "pdecode explain NAME explains one"
    )
    return 0


def _train(args) -> int:
    from pdecode.cli import generate

    return train.run(args, generate.join(args))


def _doctor(args) -> int:
    from pdecode.cli import doctor

    program_cache.enable()
    lines, is_well = doctor.check()
    print("\n".join(lines))
    return 0 if is_well else 1


def _convert(args) -> int:
    from pdecode.checkpoints import convert

    convert.convert(args.source, args.target)
    print(f"written: {args.target}")
    return 0


def _info(args) -> int:
    from pdecode.checkpoints import convert

    axes = arguments.mesh(args.mesh)
    facts = convert.info(args.path, axes)
    print(json.dumps(facts) if args.json else convert.text(facts, axes))
    return 0


def _add_decode(made) -> None:
    """The options that say which program decodes."""
    made.add_argument("--model", help="embedded name or checkpoint folder")
    made.add_argument(
        "--drafter", help="the same, for the drafter or the heads; NAME@group=2: two "
        "layers at a time; NAME@shared: another tokenizer's, by the tokens both have",
    )  # fmt: skip
    made.add_argument(
        "--datastore", metavar="FILE", help="texts to retrieve from (pdecode datastore)"
    )
    made.add_argument(
        "--file", action="append", default=[], metavar="ROLE=FILE", help="what else a "
        "method takes: other, table, codes, background, judge (pdecode explain NAME)",
    )  # fmt: skip
    made.add_argument("--method", help="see pdecode methods")
    made.add_argument("--max-new-tokens", type=int, default=64)
    made.add_argument("--temperature", type=float)
    made.add_argument("--dtype", help=f"of weights and activations{_INT8}")
    made.add_argument("--keep-eos-tail", action="store_true", help="decode past EOS")
    made.add_argument("--mesh", help="split over devices: axes, as data=2,tensor=4")
    _add_fused(made)
    _add_precision(made)
    _add_set(made, "KNOB=VALUE")
    arguments.lens_options(made)


def _add_fused(made) -> None:
    made.add_argument(
        "--fused",
        action=argparse.BooleanOptionalAction,
        help="projections of a layer as one product (default: on one GPU)",
    )


def _add_precision(made) -> None:
    made.add_argument(
        "--precision",
        choices=("default", "high", "highest"),
        help="of products of float32 on accelerators: highest is float32 itself",
    )


def _add_processes(made, how: str) -> None:
    group = made.add_argument_group(
        "several processes",
        f"each runs this command with its own --process-id, {how}; process 0 prints. "
        "generate and train run on several, no other command does.",
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="of process 0; auto, alone, on TPU slices and clusters that jax detects",
    )
    group.add_argument("--num-processes", type=int, metavar="N")
    group.add_argument("--process-id", type=int, metavar="I", help="0 to N - 1")


def _add_set(made, form: str) -> None:
    made.add_argument(
        "--set", action="append", default=[], metavar=form, help="may be repeated"
    )


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{c:{w}}" for c, w in zip(row, widths)).rstrip())


def _warn(message, category, filename, lineno, file=None, line=None) -> None:
    del category, filename, lineno, file, line
    if program_cache.mend(str(message)):
        message = "a kept program was damaged: it is compiled again and replaced"
    print(f"pdecode: warning: {message}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'file'}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
