"""`pdecode compare`: the race, a table that grows with it, and what is left on disk."""

import json
import sys
import threading
import time

from pdecode.cli import (
    arguments,
    interrupt,
    outcome,
    program_cache,
    report,
    see,
    table,
)
from pdecode.cli.interrupt import INTERRUPTED


def run(args) -> int:
    """Races the methods, prints the table, writes the results; the exit code.

    With --json, --csv or --markdown those go to standard output and the table to
    standard error. Ctrl-C ends the race; what was measured until then is printed and
    written.
    """
    program_cache.enable()
    began = time.perf_counter()
    from pdecode.evals import compare

    if args.html is not None:
        see.check_writable(args.html)
    context = compare.prepare(_settings(args))
    folder = outcome.new_folder(args.out)
    kind = next((k for k in ("json", "csv", "markdown") if getattr(args, k)), None)
    out = sys.stdout if kind is None else sys.stderr
    settings = context.settings
    print(
        f"{len(context.entries)} methods, {settings.num_prompts} prompts in batches of "
        f"{settings.batch_size}, {settings.max_new_tokens} new tokens\n",
        file=out,
    )
    spent: dict[str, float] = {}
    finished, is_complete = compare.Finished(()), False
    with table.Table(out, first=context.entries[0].name) as shown:
        rows = compare.race(context, spent, shown.status)
        try:
            for row in rows:
                shown.add(row)
            shown.status("measuring the cost of calls")
            finished = compare.finish(
                context, shown.rows, spent, program_cache.curves()
            )
            is_complete = True
        except KeyboardInterrupt:
            rows.close()
            finished = finished._replace(rows=tuple(shown.rows))
    spent["total"] = time.perf_counter() - began
    spent["processor"] = time.process_time()
    print(report.footer(context, finished, spent, shown.room), file=out)
    made = outcome.document(context, finished, spent, is_complete=is_complete)
    for path in outcome.write(folder, made, finished.rows):
        print(f"written: {path}", file=out)
    if args.html is not None:
        see.comparison(made, args.html)
        print(f"written: {args.html}", file=out)
    if kind is not None:
        text = {
            "json": lambda: json.dumps(made) + "\n",
            "csv": lambda: outcome.as_csv(finished.rows),
            "markdown": lambda: table.markdown(finished.rows),
        }[kind]()
        print(text, end="", flush=True)
    return 0 if is_complete else _interrupted(compare.COMPILER)


def _settings(args):
    from pdecode.evals import compare
    from pdecode.sharding import processes

    methods, prompts = None, None
    if args.methods is not None:
        methods = tuple(arguments.names(args.methods, "--methods"))
    if args.prompts is not None:
        given = arguments.lines(args.prompts)
        wrong = [line for line in given if "prompt" not in line]
        if wrong:
            raise ValueError(f"{args.prompts}: compare takes texts, but has {wrong[0]}")
        prompts = tuple(line["prompt"] for line in given)
        if args.num_prompts is not None:
            prompts = prompts[: args.num_prompts]
    num_prompts = 8 if args.num_prompts is None else args.num_prompts
    axes = arguments.mesh(args.mesh)
    return compare.Settings(
        methods=methods,
        overrides=arguments.overrides(args.set),
        model=args.model,
        drafter=args.drafter,
        judge=args.judge,
        dtype=args.dtype,
        mesh=None if axes is None else processes.make_mesh(**axes),
        fused=args.fused,
        prompts=prompts,
        batch_size=args.batch_size,
        num_prompts=num_prompts if prompts is None else len(prompts),
        max_new_tokens=args.max_new_tokens,
        hardware=args.hardware,
        seed=args.seed,
    )


def _interrupted(compiler: str) -> int:
    print("pdecode: interrupted; the rows above are measured", file=sys.stderr)
    if any(each.name.startswith(compiler) for each in threading.enumerate()):
        # Everything is written, and a compiler cannot be stopped: do not wait for it.
        interrupt.leave()
    return INTERRUPTED
