"""Jacobi trajectories of a model, as rows that `objective="consistency"` learns from.

    python -m pdecode.train.trajectories target results/target_trajectories

A prompt is decoded by `methods.jacobi` in blocks, at temperature 0, guesses begun as
random tokens of the text so far; every state of every block is kept. A record is four
rows of P + N tokens, one behind the other: what was decoded; of every block a state
drawn at random from its trajectory; the state after it; and what the next-token loss
learns. Each prompt gives several records (CLLM: Kou et al., 2024, arXiv:2403.00835).

Labels are the decoded text, or the prompt's true continuation, or whichever a limit
says (the mixed labels of CEED-VLA, 2025, arXiv:2506.13725).
"""

import argparse
import functools
import sys
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import decode, prompts, rng
from pdecode.contracts import STOPPED_BY, Model, Params
from pdecode.data import packing
from pdecode.methods.jacobi.jacobi import jacobi
from pdecode.models import embedded
from pdecode.models.bytes import BOS_ID, EOS_ID
from pdecode.train.objectives.consistency import PARTS

_BATCH = 64


class Traced(NamedTuple):
    """A batch of decodes and every state on the way, S of them."""

    tokens: np.ndarray  # int32 [B, L]  decoded, EOS behind the end
    texts: np.ndarray  # int32 [S, B, L]  what was committed at each state
    lengths: np.ndarray  # int32 [S, B]
    guesses: np.ndarray  # int32 [S, B, W]  what stood behind it
    ends: np.ndarray  # int32 [B]  behind the last decoded token


def traced(
    model: Model, params: Params, rows: np.ndarray, block_length: int, max_new: int,
    seed: int,
) -> Traced:  # fmt: skip
    """Decodes prompts int32 [B, P] and keeps all states."""
    prompt = prompts.from_rows(rows.tolist(), max_new_tokens=max_new, model=model)
    found = _run(model, block_length, max_new, params, prompt, rng.key(seed))
    texts, lengths, guesses, ends = map(np.asarray, found)
    tokens = texts[-1].copy()
    filler = model.eos_ids[0] if model.eos_ids else 0
    tokens[np.arange(tokens.shape[1])[None] >= ends[:, None]] = filler
    return Traced(tokens, texts, lengths, guesses, ends)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(model, block_length: int, max_new: int, params, prompt, key) -> tuple:
    decoder = jacobi(
        model,
        max_new_tokens=max_new,
        window=block_length,
        block_length=block_length,
        start="text",
    )

    def save(state, info=None):
        del info
        return state.prefix.tokens, state.prefix.length, state.drafter.tokens

    kept = decode.with_trace(decoder, save, max_new)
    carry = decode.start(kept, params, prompt, key)
    first = save(carry.state.inner)
    carry = decode.loop(kept, params, carry, max_new)
    # Turns that were not taken are as the last one.
    turn = jnp.minimum(jnp.arange(max_new), carry.state.step - 1)
    texts, lengths, guesses = (
        jnp.concatenate([one[None], leaf[turn]])
        for one, leaf in zip(first, carry.state.saved, strict=True)
    )
    made = decode.finish(kept, carry.state)
    return texts, lengths, guesses, made.start + made.lengths + _ended(made)


def _ended(made) -> Array:
    return (made.stopped_by == STOPPED_BY.index("eos")).astype(jnp.int32)


def states(found: Traced, row: int, prompt_length: int, block_length: int) -> list:
    """For each block of a row its states, int32 [n] each, the last one its end.

    A block that was never begun has none.
    """
    length = found.tokens.shape[1]
    num_blocks = -(-(length - prompt_length) // block_length)
    kept: list[list[np.ndarray]] = [[] for _ in range(num_blocks)]
    for text, done, guesses in zip(
        found.texts[:, row], found.lengths[:, row], found.guesses[:, row]
    ):
        block = (done - prompt_length) // block_length
        if done >= found.ends[row] or block >= num_blocks:
            break
        first = prompt_length + block * block_length
        stop = min(first + block_length, length)
        kept[block].append(np.concatenate([text[first:done], guesses[: stop - done]]))
    for block, some in enumerate(kept):
        first = prompt_length + block * block_length
        if some:
            some.append(found.tokens[row, first : first + len(some[0])])
    return kept


def records(
    found: Traced, labels: np.ndarray, prompt_length: int, block_length: int,
    copies: int, draw: np.random.Generator,
) -> Iterator[np.ndarray]:  # fmt: skip
    """uint16 [4 L] of each row that has `labels`, `copies` times with other states."""
    for row, decoded in enumerate(found.tokens[: len(labels)]):
        blocks = states(found, row, prompt_length, block_length)
        for _ in range(copies):
            state, after = decoded.copy(), decoded.copy()
            for block, some in enumerate(blocks):
                if not some:
                    continue
                first = prompt_length + block * block_length
                nth = int(draw.integers(len(some) - 1))
                state[first : first + len(some[0])] = some[nth]
                after[first : first + len(some[0])] = some[nth + 1]
            yield np.concatenate([decoded, state, after, labels[row]]).astype(np.uint16)


def mixed_labels(
    decoded: np.ndarray, true: np.ndarray, prompt_length: int, limit: float
) -> np.ndarray:
    """Rows [B, L] of `decoded`, or of `true` where they differ in more than `limit`.

    `limit`: the share of the tokens behind the prompt; at 1 all labels are decoded.
    """
    differ = (decoded != true)[:, prompt_length:].mean(1)
    return np.where((differ > limit)[:, None], true, decoded)


def beginnings(tokens: np.ndarray, length: int, num: int, seed: int) -> np.ndarray:
    """int32 [num, length] out of a byte stream, each at the start of a line, behind
    BOS.
    """
    starts = np.flatnonzero(tokens[: -length - 1] == ord("\n")) + 1
    draw = np.random.Generator(np.random.Philox(key=[seed, 2**33]))
    rows = []
    for start in draw.permutation(starts):
        text = tokens[start : start + length - 1]
        if not np.isin(text, (BOS_ID, EOS_ID)).any():
            rows.append(np.concatenate([[BOS_ID], text]))
        if len(rows) == num:
            return np.stack(rows).astype(np.int32)
    raise ValueError(f"the text has {len(rows)} places to begin at, not {num}")


def collect(
    model: Model, params: Params, tokens: np.ndarray, *, num: int, prompt_length: int,
    max_new: int, block_length: int, copies: int, limit: float, max_run: int, seed: int,
) -> np.ndarray:  # fmt: skip
    """uint16 [N * 4 * (prompt_length + max_new)] of `num` prompts out of a text.

    What says one token `max_run` times on end has collapsed and is left out.
    """
    whole = beginnings(tokens, prompt_length + max_new, num, seed)
    draw = np.random.Generator(np.random.Philox(key=[seed, 2**34]))
    made: list[np.ndarray] = []
    for start in range(0, num, _BATCH):
        true = whole[start : start + _BATCH]
        # One shape for all batches.
        rows = np.resize(true, (_BATCH, true.shape[1]))[:, :prompt_length]
        found = traced(model, params, rows, block_length, max_new, seed + start)
        decoded = found.tokens[: len(true)]
        labels = mixed_labels(decoded, true, prompt_length, limit)
        some = records(found, labels, prompt_length, block_length, copies, draw)
        sound = [
            longest_run(row[prompt_length:end]) < max_run
            for row, end in zip(decoded, found.ends)
        ]
        made += [each for each, kept in zip(some, np.repeat(sound, copies)) if kept]
    if not made:
        raise ValueError(f"every text says one token {max_run} times on end")
    order = draw.permutation(len(made))
    return np.stack(made)[order].ravel()


def longest_run(tokens: np.ndarray) -> int:
    """How often on end a row says one token, at most."""
    edges = np.flatnonzero(np.diff(tokens)) + 1
    return int(np.diff([0, *edges, len(tokens)]).max()) if len(tokens) else 0


def main(arguments: list[str]) -> None:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("model", help="an embedded model of bytes, or a run's folder")
    made.add_argument("folder", help="to write, with train.npy and validation.npy")
    made.add_argument("--prompts", type=int, default=1024)
    made.add_argument("--prompt-length", type=int, default=32)
    made.add_argument("--max-new-tokens", type=int, default=96)
    made.add_argument("--block-length", type=int, default=16)
    made.add_argument("--copies", type=int, default=4, help="records of a prompt")
    made.add_argument(
        "--own-labels-up-to", type=float, default=1.0,
        help="share of tokens that differ; above it labels are the true text",
    )  # fmt: skip
    made.add_argument("--max-run", type=int, default=32)
    args = made.parse_args(arguments)
    model, params, _ = embedded.load(args.model)
    if not isinstance(model, Model) or model.predicts != "next":
        raise ValueError(f"{args.model} is no causal model: Jacobi iterates one")
    streams = {}
    for seed, (split, num) in enumerate(
        (("train", args.prompts), ("validation", max(args.prompts // 16, 1)))
    ):
        streams[split] = collect(
            model, params, packing.load_split(split), num=num,
            prompt_length=args.prompt_length, max_new=args.max_new_tokens,
            block_length=args.block_length, copies=args.copies,
            limit=args.own_labels_up_to, max_run=args.max_run, seed=seed,
        )  # fmt: skip
    packing.save_splits(args.folder, **streams)
    length = len(PARTS) * (args.prompt_length + args.max_new_tokens)
    for split, tokens in streams.items():
        print(f"{split}: {len(tokens) // length} records of {length} tokens")


if __name__ == "__main__":
    main(sys.argv[1:])
