"""What a comparison says in words: below its table, and its closing sentences."""

import shlex
import textwrap
from collections.abc import Sequence
from typing import Any

from pdecode import precision
from pdecode.cli.table import number
from pdecode.evals import tasks
from pdecode.evals.compare import Context, Finished
from pdecode.evals.rows import Row
from pdecode.hardware.roofline import WIDTHS

# Near-lossless: bits per byte within this factor of the greedy text's own, or of the
# held-out text's, whichever allows more; no worse at the task by more than this; and
# neither blank nor looping: white space and distinct-4 within these of what the greedy
# and the held-out text have.
BITS_ALLOWANCE, MATCH_ALLOWANCE = 1.1, 0.1
BLANK_ALLOWANCE, DISTINCT_ALLOWANCE = 0.15, 0.8
RULE = (
    f"bits per byte within {BITS_ALLOWANCE - 1:.0%} of the greedy or held-out text's, "
    f"exact match within {MATCH_ALLOWANCE:.0%} of greedy's, neither blank nor looping"
)


def footer(
    context: Context, finished: Finished, spent: dict[str, float], width: int = 149
) -> str:
    """What stands below the table, the two closing sentences last."""
    rows = finished.rows
    lines = ["", *_quality_lines(context, rows), *_timing_lines(context, rows)]
    for row in rows:
        for kind, word in (("near_ties", "near-tie"), ("mismatches", "MISMATCH")):
            for event in row.differences[kind]:
                lines.append(
                    f"{word}: {row.name}, row {event['row']}, token {event['place']}, "
                    f"margin {event['margin']:.1e}"
                )
        if row.num_not_finite:
            lines.append(
                f"NOT FINITE: {row.name}: {row.num_not_finite} rows ended where the "
                "model said what is no number"
            )
    lines += [f"note: {note}" for note in context.notes]
    if finished.costs is not None:
        lines += ["", *_cost_lines(context, finished)]
    lines += [
        "",
        f"seconds: {spent.get('total', 0.0):.0f} in all "
        f"({spent.get('processor', 0.0):.0f} of processor time); compiling "
        f"{spent.get('compile', 0.0):.0f} (two at a time, {spent.get('wait', 0.0):.0f} "
        f"waited for), timing {spent.get('timing', 0.0):.0f}, judging "
        f"{spent.get('judging', 0.0):.0f}, cost curve {spent.get('curve', 0.0):.0f}.",
        "",
        *closing(context, rows),
    ]
    return "\n".join(part for each in lines for part in _wrapped(each, width))


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of `width` columns; a row of numbers and the command stay whole."""
    if len(text) <= width or "  " in text or text.startswith("Try next: "):
        return [text]
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def closing(context: Context, rows: Sequence[Row]) -> list[str]:
    """The best lossless and near-lossless methods here, and the command to try next."""
    if not rows:
        return ["Nothing was measured."]
    first = rows[0]
    lossless = [
        row
        for row in rows[1:]
        if row.guarantee == "lossless"
        and not row.differences["mismatches"]
        and not row.num_not_finite
    ]
    best = max(lossless, key=lambda row: row.ratio, default=None)
    lines, choice = [], first
    if best is None:
        lines.append("No lossless method beside the first was measured.")
    elif best.is_faster:
        lines.append(
            f"Best lossless method here: {best.name}, {best.ratio:.2f} times "
            f"{first.name} (middle half {_range(best)}) at {best.tokens_per_call:.2f} "
            "tokens a call."
        )
        choice = best
    elif best.is_slower:
        lines.append(
            f"Best lossless method here: {first.name} itself; the next, {best.name}, "
            f"reaches {best.ratio:.2f} of its speed."
        )
    else:
        lines.append(
            f"Best lossless method here: none is told from {first.name}; {best.name} "
            f"took {best.ratio:.2f} times its speed, but the timings are spread over "
            f"{_range(best)}."
        )
    lossy = [row for row in rows[1:] if row.guarantee != "lossless"]
    near = [row for row in lossy if is_near_lossless(context, row, first)]
    # Worth naming only where it pays: here, or on the hardware that was named.
    paying = [row for row in near if row.is_faster or (row.predicted_there or 0) > 1]
    found = max(paying, key=lambda row: row.ratio, default=None)
    if found is not None:
        elsewhere = "" if found.is_faster else (
            f", predicted {found.predicted_there:.2f} on {context.settings.hardware}"
        )  # fmt: skip
        lines.append(
            f"Best near-lossless method here ({RULE}): {found.name}, "
            f"{found.ratio:.2f} times {first.name}{elsewhere}."
        )
        if found.is_faster and found.ratio > choice.ratio:
            choice = found
    elif lossy:
        why = "was near-lossless" if not near else "that is near-lossless was faster"
        lines.append(f"No lossy method {why} here ({RULE}).")
    lines.append(f"Try next: {command(context, choice)}")
    return lines


def is_near_lossless(context: Context, row: Row, baseline: Row) -> bool:
    """By the rule above; False without a judge."""
    held = context.held_out
    bits, best = row.bits_per_byte, baseline.bits_per_byte
    if bits is None or best is None or row.num_not_finite:
        return False
    allowed = BITS_ALLOWANCE * max(best, held["bits_per_byte"] or 0.0)
    is_close = bits <= allowed
    if row.exact_match is not None and baseline.exact_match is not None:
        is_close &= row.exact_match >= baseline.exact_match - MATCH_ALLOWANCE
    blanks = [baseline.white_space or 0.0, held["white_space"] or 0.0]
    is_close &= (row.white_space or 0.0) <= max(blanks) + BLANK_ALLOWANCE
    # The lesser of the two: greedy text of a small model loops by itself.
    known = [x for x in (baseline.distinct_4, held["distinct_4"]) if x is not None]
    if known:
        is_close &= (row.distinct_4 or 0.0) >= DISTINCT_ALLOWANCE * min(known)
    return is_close


def command(context: Context, row: Row) -> str:
    """The command that decodes as `row` did."""
    settings = context.settings
    words = ["pdecode", "generate"]
    for name in ("model", "dtype"):
        if getattr(settings, name):
            words += [f"--{name}", getattr(settings, name)]
    if settings.fused is not None:
        words.append("--fused" if settings.fused else "--no-fused")
    if precision.level() in precision.LEVELS:
        words += ["--precision", str(precision.level())]
    entry = next((each for each in context.entries if each.name == row.name), None)
    if settings.drafter and entry and settings.drafter in entry.model_names[1:]:
        words += ["--drafter", settings.drafter]
    words += ["--method", row.name]
    for name, value in row.settings.items():
        if name != "temperature":
            words += ["--set", f"{name}={_spelled(value)}"]
    if row.settings.get("temperature") is not None:
        words += ["--temperature", f"{row.settings['temperature']:g}"]
    words += ["--prompt", "def fib(n):"]
    words += ["--max-new-tokens", str(settings.max_new_tokens), "--watch"]
    return shlex.join(words)


def _range(row: Row) -> str:
    return f"{row.ratio_half[0]:.2f} to {row.ratio_half[1]:.2f}"


def _quality_lines(context: Context, rows: Sequence[Row]) -> list[str]:
    held, lines = context.held_out, []
    if context.judge is not None and rows:
        told = f"bits per byte under {context.judge_name}"
        if held["bits_per_byte"] is not None:
            told += (
                f": the first row's text {number(rows[0].bits_per_byte, 2)}, the "
                f"held-out text itself {held['bits_per_byte']:.2f} (its distinct-4: "
                f"{number(held['distinct_4'], 2)}, white space "
                f"{number(held['white_space'], 2)})"
            )
        lines += [
            f"{told}.",
            "Below that is no praise: repetition and blanks are cheap; read it with "
            "distinct-4 and white space.",
        ]
    if any(row.exact_match is not None for row in rows):
        lines.append(
            f"exact match: {tasks.TASK}, the first word of each continuation "
            f"({context.settings.num_prompts} prompts)."
        )
    return lines


def _timing_lines(context: Context, rows: Sequence[Row]) -> list[str]:
    settings = context.settings
    lines = [
        "tokens are counted up to EOS; prefill, compiling and warm-up are apart. comp. "
        "*: from the cache on disk.",
        "times: medians of "
        f"{min((len(row.decode_s) for row in rows), default=0)} or more repeats, the "
        "first method timed anew beside each; middle half: without the slowest and "
        "fastest quarters.",
        "drafter/call: calls of the drafter's own model a target call, and its queries "
        "asked for and computed.",
    ]
    if rows:
        batches = settings.num_prompts // settings.batch_size
        seconds = sorted(row.prefill_s / batches for row in rows if row.prefill_s)
        lines.append(
            f"prefill: {1e3 * rows[0].prefill_s / batches:.1f} ms a batch of "
            f"{settings.batch_size} prompts up to {context.width} tokens "
            f"({1e3 * seconds[0]:.1f} to {1e3 * seconds[-1]:.1f} over the methods)."
        )
    return lines


def _cost_lines(context: Context, finished: Finished) -> list[str]:
    rows, costs, there = finished
    assert costs is not None and there is not None, "`finish` measured both"
    batch, target = context.settings.batch_size, costs.target
    one = target.at(1)
    relative = ", ".join(f"{w}: {target.at(w) / one:.2f}" for w in WIDTHS)
    wide = target.widths[-1]
    lines = [
        f"A call of W queries over a call of one, here, batch {batch}: {relative}, "
        f"whole canvas of {wide}: {target.at(wide) / one:.1f} "
        f"(one query: {1e3 * one:.2f} ms"
        f"{', kept from an earlier comparison' if costs.is_kept else ''}).",
    ]
    if costs.drafter is not None:
        narrow = ", ".join(
            f"{w}: {costs.drafter.at(w) / one:.2f}" for w in costs.drafter.widths
        )
        lines.append(f"A call of the drafter over one of the target's: {narrow}.")
    lines += [
        "Predicted: tokens a call over the cost of a round, one target call and the "
        "drafter's calls as wide as they were.",
        f"{there.name}: {there.about}.",
        "",
        f"{'method':20}  {'measured':>8}  {'predicted here':>14}  "
        f"{'predicted ' + there.name:>14}",
    ]
    lines += [
        f"{row.name.rpartition(':')[2]:20}  {row.ratio:8.2f}  "
        f"{number(row.predicted_here, 2):>14}  {number(row.predicted_there, 2):>14}"
        for row in rows
    ]
    return lines


def _spelled(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
