"""What generated text is worth: to the target model, by itself, and next to greedy."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdecode import prompts
from pdecode.contracts import Model, Params, Query, Sampling, SlotRun, Visibility
from pdecode.kernels.head import api as vocab_head
from pdecode.models.bytes import ByteTokenizer

_Z = 1.959964  # of a 95 % interval
_RESAMPLES = 2000  # of rows


class Judged(NamedTuple):
    """What a causal model says of each generated token of one row."""

    log_probs: np.ndarray  # float32 [N]  raw, nats
    margins: np.ndarray  # float32 [N]  probability of the best less the second


class Identity(NamedTuple):
    """Rows of one method beside the greedy baseline's."""

    num_rows: int
    near_ties: list[dict]  # row, place and margin of each first difference
    mismatches: list[dict]  # the same, where the margin is no excuse

    def __str__(self) -> str:
        if self.mismatches:
            return f"NO ({len(self.mismatches)} of {self.num_rows} rows)"
        count = len(self.near_ties)
        if not count:
            return "yes"
        return f"yes except {count} near-tie{'s' if count > 1 else ''}"


class Judge(NamedTuple):
    """A causal model, and the one shape in which it reads rows."""

    model: Model
    params: Params
    batch_size: int
    width: int  # of prompt and generation together


def judge(
    with_: Judge, prompt_rows: Sequence[list[int]], rows: Sequence[list[int]]
) -> list[Judged]:
    """Scores every token of `rows` after its prompt, all rows in one program."""
    found = []
    for begin in range(0, len(rows), with_.batch_size):
        some = list(zip(prompt_rows, rows))[begin : begin + with_.batch_size]
        whole = [[*before, *row] for before, row in some]
        whole += [[0]] * (with_.batch_size - len(some))
        batch = prompts.from_rows(whole, max_new_tokens=1, pad_to=with_.width)
        log_probs, margins = jax.tree.map(
            np.asarray, _score(with_.params, batch, model=with_.model)
        )
        for b, (before, row) in enumerate(some):
            here = slice(len(before) - 1, len(before) - 1 + len(row))
            found.append(Judged(log_probs[b, here], margins[b, here]))
    return found


def bits_per_byte(
    judged: Sequence[Judged], rows: Sequence[list[int]], tokenizer: Any
) -> float | None:
    """Bits of all tokens over bytes of all text; None without any byte."""
    bits = -sum(float(each.log_probs.sum()) for each in judged) / math.log(2)
    total = sum(num_bytes(row, tokenizer) for row in rows)
    return bits / total if total else None


def num_bytes(row: list[int], tokenizer: Any) -> int:
    """Bytes of a row's text; special tokens have none."""
    if isinstance(tokenizer, ByteTokenizer):
        return sum(token < 256 for token in row)
    return len(tokenizer.decode(row).encode())


def distinct(rows: Sequence[list[int]], size: int = 4) -> float | None:
    """Share of runs of `size` tokens that are new in their row, the mean over rows.

    Rows shorter than `size` are left out; None if all are.
    """
    shares = []
    for row in rows:
        runs = [tuple(row[i : i + size]) for i in range(len(row) - size + 1)]
        if runs:
            shares.append(len(set(runs)) / len(runs))
    return float(np.mean(shares)) if shares else None


def white_space(texts: Sequence[str]) -> float | None:
    """Share of white-space among all characters; None without any."""
    total = sum(map(len, texts))
    blank = sum(each.isspace() for text in texts for each in text)
    return blank / total if total else None


def identity(
    rows: Sequence[list[int]],
    baseline: Sequence[list[int]],
    margins: Sequence[np.ndarray],
    near_tie: float,
) -> Identity:
    """Where rows first leave the baseline's, and if that was a near-tie there.

    Rows include their EOS; `margins` are the baseline's own, one a token. Below the
    margin `near_tie` either token may win (`precision.near_tie`).
    """
    near, wrong = [], []
    for index, (row, wanted, margin) in enumerate(zip(rows, baseline, margins)):
        if row == wanted:
            continue
        common = min(len(row), len(wanted))
        place = next((i for i in range(common) if row[i] != wanted[i]), common)
        gap = float(margin[place]) if place < len(margin) else math.inf
        event = {"row": index, "place": place, "margin": gap}
        (near if gap < near_tie else wrong).append(event)
    return Identity(len(rows), near, wrong)


@functools.partial(jax.jit, static_argnames=("model",))
def _score(params, batch, *, model: Model):
    """Log-probability and top-2 margin [B, L - 1] of each token but the first."""
    size, width = batch.tokens.shape
    place = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (size, width))
    query = Query(
        tokens=batch.tokens,
        positions=place,
        slots=SlotRun(jnp.zeros(size, jnp.int32)),
        visible=Visibility(start=jnp.zeros_like(place), stop=place + 1),
    )
    output, _ = model.apply(params, query, model.init_cache(batch, width + 1))
    banned = () if model.mask_id is None else (model.mask_id,)
    found = vocab_head.statistics(
        model.head(params),
        output.hidden[:, :-1],
        ("of_log_prob", "margin"),
        Sampling(banned=banned),
        of=batch.tokens[:, 1:],
    )
    return found.of_log_prob, found.margin


def wilson(right: int, num: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; (0, 1) of nothing."""
    if num == 0:
        return 0.0, 1.0
    share, z2 = right / num, _Z**2 / num
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z / (1 + z2) * math.sqrt(share * (1 - share) / num + z2 / (4 * num))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def interval(
    parts: np.ndarray, wholes: np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """95 % of sum(parts) / sum(wholes), the rows that they are of drawn again.

    Calls of one row resemble each other, so rows are what is drawn, not calls.
    """
    count = len(wholes)
    picks = np.random.default_rng(seed).integers(0, count, (_RESAMPLES, count))
    ratios = parts[picks].sum(1) / wholes[picks].sum(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)
