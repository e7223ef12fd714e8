"""Jacobi tokens a call and the quality of plain decoding, before and after CLLM.

    python experiments/diffusion/jacobi.py --consistency results/byte_consistency \
        --out experiments/diffusion/jacobi.json

Prompts are 32 tokens of validation text, which no run was trained on. Tokens a call are
of the same prompts before and after; their intervals, and that of the ratio, are
bootstrap's over prompts (95 %, 1000 resamples). Bits per byte are of rows spread over
the validation text.
"""

import argparse
import dataclasses
import json
import pathlib

import numpy as np

from pdecode import decode, methods, prompts, rng
from pdecode.data import packing
from pdecode.data.texts import Text
from pdecode.models import embedded
from pdecode.train import export, settings, trajectories

HERE = pathlib.Path(__file__).parent
SETTINGS = ((8, "repeat"), (16, "text"))  # window (and block), how guesses begin
SEED = 77


def decoded(model, params, rows, window, start, max_new):
    """Of each row, int [N]: tokens, calls, and how often on end one token comes."""
    prompt = prompts.from_rows(rows.tolist(), max_new_tokens=max_new, model=model)
    made, stats = decode.run(
        methods.jacobi, model, params, prompt, rng.key(0), max_new_tokens=max_new,
        window=window, block_length=window, start=start,
    )  # fmt: skip
    starts, lengths = np.asarray(made.start), np.asarray(made.lengths)
    runs = [
        trajectories.longest_run(np.asarray(row)[start : start + length])
        for row, start, length in zip(made.tokens, starts, lengths)
    ]
    return np.asarray(stats.num_committed), np.asarray(stats.num_calls), np.array(runs)


def interval(values):
    return np.quantile(values, [0.025, 0.975]).tolist()


def bits(origin, params, max_rows):
    """Bits per byte of the next-token loss on validation text."""
    config = settings.load(HERE.parent.parent / "configs" / "byte_drafter.py")
    _, record = embedded.read_from(origin)
    config = dataclasses.replace(config, model=embedded.transformer_config(record))
    text = Text(
        packing.load_split("validation"), "validation", "byte", config.given_ids
    )
    return export.figures(config, params, {}, text, max_rows=max_rows)


def main():
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--model", default="drafter")
    made.add_argument("--consistency", required=True)
    made.add_argument("--prompts", type=int, default=96)
    made.add_argument("--max-new-tokens", type=int, default=96)
    made.add_argument("--eval-rows", type=int, default=64)
    made.add_argument("--out", type=pathlib.Path, required=True)
    args = made.parse_args()
    validation = packing.load_split("validation")
    rows = trajectories.beginnings(validation, 32, args.prompts, SEED)
    model, before, _ = embedded.load(args.model)
    _, after, _ = embedded.load(args.consistency)
    lines = []
    for window, start in SETTINGS:
        both = [
            decoded(model, params, rows, window, start, args.max_new_tokens)
            for params in (before, after)
        ]
        draw = np.random.Generator(np.random.Philox(key=0))
        pick = draw.integers(len(rows), size=(1000, len(rows)))
        speeds = [t[pick].sum(1) / c[pick].sum(1) for t, c, _ in both]
        lines.append(
            {
                "window": window, "start": start, "prompts": len(rows),
                "before": [both[0][0].sum() / both[0][1].sum(), *interval(speeds[0])],
                "after": [both[1][0].sum() / both[1][1].sum(), *interval(speeds[1])],
                "ratio": interval(speeds[1] / speeds[0]),
                "longest_run": [float(np.median(each[2])) for each in both],
            }
        )  # fmt: skip
        print(lines[-1], flush=True)
    quality = {
        name: bits(origin, params, args.eval_rows)
        for name, origin, params in (
            ("before", args.model, before),
            ("after", args.consistency, after),
        )
    }
    print(quality)
    found = {"jacobi": lines, "validation": quality}
    args.out.write_text(json.dumps(found, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
