"""`pdecode bench`: the options of its suites, and which of them each takes."""

from typing import Any

# By suite: what it takes besides --out; anything else is refused.
TAKES = {
    "loop": ("batch_size", "repeats", "against", "history"),
    "hotpath": (
        "batch_size",
        "repeats",
        "shapes",
        "dtype",
        "decodes",
        "weights",
        "prompt_len",
        "max_new_tokens",
        "quick",
        "against",
        "history",
    ),
    "speculative": ("batch_size", "repeats", "quick", "against", "history"),
    "parallelbench": ("model", "instances", "quick"),
    "visual": ("against", "history"),
}


def options(made: Any) -> None:
    """Adds the options of the command to its parser."""
    made.add_argument("--suite", choices=tuple(TAKES), default="loop")
    made.add_argument(
        "--batch-size", type=int, help="default: 1; speculative, not quick: 1, then 8"
    )
    made.add_argument(
        "--repeats", type=int, help="default: 51 for loop, else 5, 3 if quick"
    )
    made.add_argument(
        "--shapes",
        help="hotpath: whose calls and kernels, of 3m, 30m, 130m, qwen3-8b, llada-8b "
        "(default on CPU: 3m,30m)",
    )
    made.add_argument(
        "--decodes",
        help="hotpath: whole decodes of 8B shapes, of autoregressive, window, "
        "window_of_8, lookup, canvas; their batch sizes are their own (default on "
        "accelerators: all)",
    )
    made.add_argument(
        "--weights", help="hotpath: how --decodes hold them (default: separate,fused)"
    )
    made.add_argument(
        "--prompt-len", type=int, help="hotpath: of --decodes (default: 128, 16 quick)"
    )
    made.add_argument(
        "--max-new-tokens", type=int, help="hotpath: the same (default: 256, 32 quick)"
    )
    made.add_argument(
        "--dtype", help="hotpath: default float32 on CPU, bfloat16 elsewhere"
    )
    made.add_argument(
        "--quick",
        action="store_true",
        help="speculative, parallelbench: less of it, in some minutes; hotpath: "
        "--decodes of two narrow layers",
    )
    made.add_argument("--model", help="parallelbench: a masked model of its tasks")
    made.add_argument(
        "--instances",
        type=int,
        help="parallelbench: of each task (default: 50, 25 if quick)",
    )
    made.add_argument(
        "--out",
        help="JSON file for the results, that of hotpath whole after every line; "
        "speculative and parallelbench go on where it ended",
    )
    made.add_argument(
        "--against",
        metavar="FILE",
        help="compare with an earlier --out or --history",
    )
    made.add_argument("--history", metavar="FILE", help="JSONL that gets a line more")


def run(args: Any) -> int:
    """Runs a suite; ValueError for an option that it would drop."""
    _check(args)
    if args.suite == "parallelbench":
        from pdecode.cli import parallelbench

        parallelbench.run(args.model, args.out, num=args.instances, is_quick=args.quick)
        return 0
    from pdecode.evals.bench import history

    # Read before anything is measured.
    before = None
    if args.against is not None:
        before = history.read(args.against, args.suite)
    if args.history is not None:
        history.check(args.history)
    made = _measured(args)
    if before is not None:
        print(history.table(made, before))
    if args.history is not None:
        history.append(args.history, made)
    return 0


def _measured(args: Any) -> dict[str, Any]:
    if args.suite == "visual":
        from pdecode.cli import visual

        return visual.run(args.out)
    if args.suite == "hotpath":
        from pdecode.cli import hotpath

        return hotpath.run(args)
    from pdecode.cli import bench

    return bench.run(args.suite, args.batch_size, args.repeats, args.out, args.quick)


def _check(args: Any) -> None:
    every = {name for taken in TAKES.values() for name in taken}
    for name in sorted(every - set(TAKES[args.suite])):
        value = getattr(args, name)
        if value is not None and value is not False:
            option = "--" + name.replace("_", "-")
            takers = [suite for suite, taken in TAKES.items() if name in taken]
            raise ValueError(f"{option} is for --suite {' or '.join(takers)}")
