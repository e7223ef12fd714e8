"""How often drafters' tokens are accepted, and tokens a call, with intervals.

    python experiments/distill/measure.py drafter results/distill/tvd-drafter

Every drafter drafts chains of 5 for the embedded target on the same held-out prompts.
The columns: the share of tested drafts that were accepted; tokens a call; the chance of
a draft's acceptance, sum min(p, q), at every token of the texts that the first drafter
helped to write (at temperature 1 these follow the target's law, whoever drafts); calls
of drafters a call of the target. Intervals are of a bootstrap over prompts, 95%; those
of differences to the first line are paired. With --thresholds drafters have exits and
are decoded by s2d.
"""

import argparse
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from pdecode import methods, prompts
from pdecode.data import snippets
from pdecode.decode import run
from pdecode.models import embedded
from pdecode.models.bytes import tokenizer
from pdecode.train import passes
from pdecode.train.objectives import distillation

NUM_DRAFT = 5


def decoded(drafter, threshold, args, prompt, temperature):
    """What was written, and each row's accepted and tested drafts, tokens and calls."""
    models, params = zip(*(embedded.load(name)[:2] for name in (args.target, drafter)))
    method, more = methods.speculative_sampling, {}
    if threshold is not None:
        method, more = methods.s2d, {"threshold": threshold}
    made, stats = run(
        method, models, dict(zip(("model", "drafter"), params, strict=True)), prompt,
        jax.random.key(args.seed), max_new_tokens=args.new, num_draft=NUM_DRAFT,
        knobs={"temperature": temperature, **more},
    )  # fmt: skip
    by_size = np.asarray(stats.committed_per_call)[:, : NUM_DRAFT + 2]
    kept = np.maximum(np.arange(NUM_DRAFT + 2) - 1, 0)
    tested = np.minimum(kept + 1, NUM_DRAFT)
    counts = [by_size @ kept, by_size @ tested]
    for each in (stats.num_committed, stats.num_calls, stats.num_draft_calls):
        counts.append(np.asarray(each))
    return made, np.stack(counts)


@functools.partial(jax.jit, static_argnums=0)
def _overlap(pair, target, drafter, tokens, committed):
    wanted = distillation.log_law(pair.target, target, tokens)
    found = distillation.log_law(pair.drafter, drafter, tokens)
    chance = jnp.exp(jnp.minimum(wanted, found)).sum(-1)
    return jnp.where(committed[:, 1:], chance, 0).sum(1), committed.sum(1)


def chances(drafter, args, made):
    """Of every row, the sum of its tokens' chances and their number."""
    (target, first), (own, second) = map(embedded.read_from, (args.target, drafter))
    pair = distillation.Pair(
        *(
            passes.of_decoding(embedded.transformer_config(record))
            for record in (second, first)
        )
    )
    found = _overlap(pair, target, own, made.tokens, made.committed)
    return np.stack([np.asarray(each) for each in found])


def told(found, first, num_prompts):
    """The ratio of two sums over rows; then its difference to `first`, if any."""
    draws = np.random.default_rng(0).integers(0, num_prompts, (4000, num_prompts))

    def ratios(pair):
        over, under = pair.reshape(2, num_prompts, -1).sum(-1)
        return over.sum() / under.sum(), over[draws].sum(1) / under[draws].sum(1)

    value, many = ratios(found)
    parts = [(value, many)]
    if first is not None:
        base, others = ratios(first)
        parts.append((value - base, many - others))
    return ", ".join(
        f"{each:.4f} [{low:.4f}, {high:.4f}]"
        for each, samples in parts
        for low, high in [np.quantile(samples, [0.025, 0.975])]
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("drafters", nargs="+")
    parser.add_argument("--target", default="target")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[None])
    args = parser.parse_args()
    rows = [tokenizer.encode(each.prompt) for each in snippets.prompts(args.prompts)]
    for temperature in args.temperatures:
        copies = args.copies if temperature else 1
        prompt = prompts.from_rows(
            [row for row in rows for _ in range(copies)], max_new_tokens=args.new
        )
        texts, firsts = None, None
        for threshold, drafter in itertools.product(args.thresholds, args.drafters):
            made, found = decoded(drafter, threshold, args, prompt, temperature)
            texts = made if texts is None else texts
            pairs = [found[0:2], found[2:4]]
            if temperature == 1 and threshold is None:
                pairs.append(chances(drafter, args, texts))
            columns = [
                told(pair, None if firsts is None else firsts[nth], len(rows))
                for nth, pair in enumerate(pairs)
            ]
            firsts = pairs if firsts is None else firsts
            calls = f"{found[4].sum() / found[3].sum():.2f}"
            name = f"{drafter} T={temperature:g}"
            name += "" if threshold is None else f" threshold={threshold:g}"
            print(" | ".join([name, *columns, calls]), flush=True)


if __name__ == "__main__":
    main()
