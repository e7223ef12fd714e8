"""How often drafters' tokens are accepted, and tokens a call, with intervals.

    python experiments/distill/measure.py --target target drafter results/byte_distilled

Every drafter writes the same held-out prompts with the same noise by speculative
sampling (a chain of 5); intervals are of a bootstrap over prompts, 95%, and those of
the difference to the first drafter are paired.
"""

import argparse

import jax
import numpy as np

from pdecode import methods, prompts
from pdecode.data import snippets
from pdecode.decode import run
from pdecode.models import embedded
from pdecode.models.bytes import tokenizer

NUM_DRAFT = 5


def counts(method, target, drafter, prompt, temperature, num_new, **sizes):
    """Accepted drafts, tested drafts, tokens and calls of every row."""
    models, params = zip(*(embedded.load(name)[:2] for name in (target, drafter)))
    _, stats = run(
        method, models, dict(zip(("model", "drafter"), params, strict=True)), prompt,
        jax.random.key(0), max_new_tokens=num_new, num_draft=NUM_DRAFT,
        knobs={"temperature": temperature, **sizes},
    )  # fmt: skip
    calls = np.asarray(stats.num_calls)
    by_size = np.asarray(stats.committed_per_call)[:, : NUM_DRAFT + 2]
    kept = np.maximum(np.arange(NUM_DRAFT + 2) - 1, 0)
    tested = np.minimum(kept + 1, NUM_DRAFT)
    made = np.asarray(stats.num_committed)
    drafted = np.asarray(stats.num_draft_calls)
    return np.stack([by_size @ kept, by_size @ tested, made, calls, drafted])


def intervals(found, first, num_prompts, seed=0):
    """(rate, tokens a call), each as estimate, interval, interval of the difference."""
    draws = np.random.default_rng(seed).integers(0, num_prompts, (2000, num_prompts))

    def ratios(each, over, under):
        rows = each.reshape(each.shape[0], num_prompts, -1).sum(-1)
        whole = rows[over].sum() / rows[under].sum()
        return whole, rows[over][draws].sum(1) / rows[under][draws].sum(1)

    for over, under in ((0, 1), (2, 3)):
        value, many = ratios(found, over, under)
        base, other = ratios(first, over, under)
        yield value, np.quantile(many, [0.025, 0.975])
        yield value - base, np.quantile(many - other, [0.025, 0.975])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("drafters", nargs="+")
    parser.add_argument("--target", default="target")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.0])
    parser.add_argument("--threshold", type=float, help="of exits: decode by s2d")
    args = parser.parse_args()
    rows = [tokenizer.encode(each.prompt) for each in snippets.prompts(args.prompts)]
    method, more = methods.speculative_sampling, {}
    if args.threshold is not None:
        method, more = methods.s2d, {"threshold": args.threshold}
    for temperature in args.temperatures:
        copies = args.copies if temperature else 1
        prompt = prompts.from_rows(
            [row for row in rows for _ in range(copies)], max_new_tokens=args.new
        )
        first = None
        for drafter in args.drafters:
            found = counts(
                method, args.target, drafter, prompt, temperature, args.new, **more
            )
            first = found if first is None else first
            told = " | ".join(
                f"{value:.3f} [{low:.3f}, {high:.3f}]"
                for value, (low, high) in intervals(found, first, len(rows))
            )
            calls = found[4].sum() / found[3].sum()
            print(f"{drafter} T={temperature:g} | {told} | {calls:.2f}", flush=True)


if __name__ == "__main__":
    main()
