"""`pdecode compare`: the race, a table that grows with it, and what is left on disk."""

import json
import sys
import time

from pdecode.cli import report
from pdecode.evals import compare


def run(
    settings: compare.Settings, folder: str, *, as_json: bool, began: float
) -> bool:
    """Races the methods; prints the table, writes the results to `folder`.

    With `as_json` the results go to standard output and the table to standard error.
    `began` is the `time.perf_counter()` that the total counts from. False if Ctrl-C
    ended it; what was measured until then is printed and written.
    """
    context = compare.prepare(settings)
    out = sys.stderr if as_json else sys.stdout
    print(
        f"{len(context.entries)} methods, {settings.num_prompts} prompts in batches of "
        f"{settings.batch_size}, {settings.max_new_tokens} new tokens\n",
        file=out,
    )
    spent: dict[str, float] = {}
    finished = compare.Finished((), None, None, None)
    is_complete = False
    with report.Table(out) as table:
        table.status("compiling and measuring; Ctrl-C keeps what is there")
        rows = compare.race(context, spent)
        try:
            for row in rows:
                table.add(row)
            table.status("measuring the cost of a call")
            finished = compare.finish(context, table.rows, spent)
            is_complete = True
        except KeyboardInterrupt:
            rows.close()
            finished = finished._replace(rows=tuple(table.rows))
    spent["total"] = time.perf_counter() - began
    spent["processor"] = time.process_time()
    print(report.footer(context, finished, spent), file=out)
    made = report.document(context, finished, spent, is_complete=is_complete)
    for path in report.write(folder, made):
        print(f"written: {path}", file=out)
    if as_json:
        print(json.dumps(made))
    return is_complete
