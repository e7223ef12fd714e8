"""`pdecode generate` and `pdecode compile`: the same program, run or kept."""

import json
import os
import sys
from typing import Any, TextIO

from pdecode.cli import agreement, arguments, interrupt, program_cache, see, visual
from pdecode.results import Result

NOT_FINITE = 3  # exit code
DETECTED = "auto"  # for --coordinator: jax detects the cluster


def run(args) -> int:
    """Continues the prompts, a batch at a time; the exit code."""
    from pdecode import generation

    _check(args)
    with interrupt.leaving_at_once():
        out = join(args)
        agreement.check(args)
        program_cache.enable()
        options = arguments.decode(args)
        asked = arguments.chat(args, arguments.prompts(args), options)
        job = generation.prepare(asked.rows, **options)
        _check_images(args, job)
        bad, begin, shown = [], 0, []
        for part in generation.slices(job, args.batch_size):
            made = _decoded(part, args)
            if out is not None:
                _print(made, asked, begin, args, out)
            bad += [str(begin + index) for index in made.not_finite]
            begin += len(part.row_ids)
            if args.html is not None or args.out is not None:
                shown.append(made)
        if args.html is not None and out is not None:
            see.write(shown, args.html)
        if args.out is not None and out is not None:
            visual.save(args.out, [row for made in shown for row in made.tokens])
    if not bad or args.allow_not_finite:
        return 0
    if out is None:  # process 0 says it
        return NOT_FINITE
    print(
        f"pdecode: error: row {', '.join(bad)} ended where the model says what is no "
        "number (not_finite): try another --dtype, check the weights, or take what is "
        "there with --allow-not-finite",
        file=sys.stderr,
    )
    return NOT_FINITE


def _check_images(args, job: Any) -> None:
    """ValueError, before anything is decoded, where images are asked of text."""
    asked = [("--out", args.out), ("--class", args.classes)]
    for option, value in asked:
        if value is not None and not hasattr(job.tokenizer, "pixel"):
            raise ValueError(f"{option} {value}: {job.model_name} draws no images")


def compile(args) -> int:
    """Compiles what `generate` will run, and keeps it on disk."""
    from pdecode import generation, prompts

    for name in ("prompt_len", "batch_size"):
        arguments.check_count(name, getattr(args, name))
    with interrupt.leaving_at_once():
        program_cache.enable(min_seconds=0.0)
        rows = [[0] * args.prompt_len] * args.batch_size
        job = generation.prepare(rows, **arguments.decode(args))
        made = generation.compiled(job)
    sizes = ", ".join(f"{name} {value}" for name, value in job.settings.items())
    what = f"{job.method_name} ({sizes}) for {job.model_name}"
    width = job.prompt.tokens.shape[1]
    least = min(each for each in range(1, width + 1) if prompts.bucket(each) >= width)
    print(f"{what}, batch size {args.batch_size}")
    print(f"batches whose longest prompt has {least} to {width} tokens")
    print(f"2 programs in {made.compile_s:.1f} s, {made.num_cached} kept from before")
    print(f"kept in {program_cache.folder()}")
    return 0


def join(args) -> TextIO | None:
    """Joins the other processes, if any; where this one prints its result."""
    given = (args.coordinator, args.num_processes, args.process_id)
    if given == (None, None, None):
        return sys.stdout
    detected = given == (DETECTED, None, None)
    if not detected and (None in given or given[0] == DETECTED):
        raise ValueError(
            "--coordinator, --num-processes and --process-id go together: give all "
            f"three, or none for one process, or --coordinator {DETECTED} alone on "
            "TPU slices and clusters that jax detects"
        )
    import jax

    from pdecode.sharding import processes

    processes.start_detected() if detected else processes.start(*given)
    # Gloo reports its connections on standard output, which is for the result.
    out = os.fdopen(os.dup(1), "w", errors="backslashreplace")
    os.dup2(2, 1)
    return out if jax.process_index() == 0 else None


def _check(args) -> None:
    if args.coordinator is not None and args.mesh is None:
        raise ValueError(
            f"--coordinator {args.coordinator} needs --mesh: axes that hold the "
            "devices of all processes, as data=2,tensor=4"
        )
    if args.coordinator is not None and args.watch:
        raise ValueError("--watch shows one process: leave out --coordinator")
    if args.watch and args.html is not None:
        raise ValueError("--watch and --html: give one of them, each runs every step")
    if args.html is not None:
        see.check_writable(args.html)
    if args.batch_size is not None:
        arguments.check_count("batch_size", args.batch_size)
    if args.out is not None:
        visual.check(args.out)
    if args.pace is not None and not args.watch:
        raise ValueError(f"--pace {args.pace} is for --watch: give both or neither")
    if args.pace is not None and not 0 <= args.pace <= 60:
        raise ValueError(f"--pace {args.pace} must lie in [0, 60]: seconds a step")


def _decoded(job: Any, args) -> Result:
    from pdecode import generation
    from pdecode.cli import watch

    kept = args.keep_eos_tail
    if args.html is not None:
        return generation.recorded(job, seed=args.seed, keep_eos_tail=kept)
    if not args.watch:
        return generation.decoded(job, seed=args.seed, keep_eos_tail=kept)
    return watch.watch(
        job,
        seed=args.seed,
        keep_eos_tail=kept,
        file=sys.stderr if args.json else sys.stdout,
        pace=args.pace or 0.0,
    )


def _print(made: Result, asked: arguments.Asked, begin: int, args, out) -> None:
    if not args.json:
        # Rows stand apart by an empty line, those of two batches too.
        print(f"\n{made}" if begin else made, file=out, flush=True)
    elif not asked.is_batch:
        print(json.dumps({**made._asdict(), "seed": args.seed}), file=out, flush=True)
    else:
        for index, line in enumerate(_lines(made)):
            given = asked.given[begin + index]
            line = {**given, **line, "seed": args.seed}
            print(json.dumps(line), file=out, flush=True)
    if not args.quiet and not args.json:
        dim = ("\x1b[2m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
        print(made.summary.join(dim), file=sys.stderr, flush=True)


def _lines(made: Result) -> list[dict[str, Any]]:
    """One object a row."""
    found = []
    for index in range(len(made.text)):
        line: dict[str, Any] = {
            "text": made.text[index],
            "tokens": made.tokens[index],
            "length": made.lengths[index],
            "stopped_by": made.stopped_by[index],
            "row_id": made.row_ids[index],
            "steps": made.steps[index],
            "probs": made.probs[index],
            "pieces": made.pieces[index],
            "stats": {
                name: value[index] if isinstance(value, list) else value
                for name, value in made.stats.items()
            },
        }
        if made.recorded is not None:
            line["recorded"] = made.recorded[index]
        whole = ("timing", "method", "model", "drafter", "settings", "predicts")
        whole += ("vocab_size",)
        found.append(line | {name: getattr(made, name) for name in whole})
    return found
