"""Clips on trained models: what each way of drawing frames costs, and keeps.

    python -m pdecode.evals.bench.films --denoiser results/frames_denoiser \\
        --chunks results/frames_chunks --raster results/frames_raster \\
        --out results/films

The folders are runs of the configs of these names; any may be left out. Every entry
goes on from the same first frames of held-out clips, by the same actions. Prints a
table, and writes numbers and strips (the right clip, then each entry's) as OUT.json and
OUT-CLIP.png.
"""

import argparse
import functools
import json
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdecode import generation, rng
from pdecode.data import frames as data
from pdecode.evals import films
from pdecode.evals.bench import visual
from pdecode.families import frame_ahead, frame_blocks, frame_chunks
from pdecode.models import digits, embedded, frames
from pdecode.models.denoiser import Net
from pdecode.models.frames import Clips

BATCH = 100
SHOWN = 3  # clips that get a strip
_NEW = (frames.NUM_FRAMES - 1) * frames.FRAME


class Made(NamedTuple):
    """Clips of an entry."""

    frames: np.ndarray  # uint8 [N, T, 8, 8]
    calls: float  # a clip, the first frame's apart
    waits: float  # calls behind the arrival of an action, one after the other, a clip


Draw = Callable[[Clips], Made]


def of_denoiser(plan: frame_blocks.Plan, params: Any, num_ahead: int = 0) -> Draw:
    """An entry of `frame_blocks`, or of `frame_ahead` where frames are drawn ahead."""

    @jax.jit
    def drawn(keys, first, given):
        if not num_ahead:
            made = frame_blocks.draw(plan, params, keys, first, given)
            return made.film, made.num_calls, made.num_calls
        played = frame_ahead.played(plan, params, keys, first, given, num_ahead)
        each = plan.num_steps + plan.is_apart
        return played.film, played.num_calls, played.num_rounds * each

    def draw(asked: Clips) -> Made:
        film, given = films.numbers(asked, plan.net.patch)
        keys = rng.row_keys(rng.key(0), jnp.arange(len(film)))
        parts = [slice(i, i + BATCH) for i in range(0, len(film), BATCH)]
        found = [drawn(keys[part], film[part, :1], given[part]) for part in parts]
        made, calls, waits = (np.concatenate(each) for each in zip(*found))
        shown = films.pictures(made, plan.net.patch)
        return Made(shown, float(calls.mean()), float(waits.mean()))

    return draw


def of_chunks(folder: str, steps: int, fused: float) -> Draw:
    """An entry of `frame_chunks`, with the chunks that a run was trained with."""
    net, params = denoiser_of(folder, has_interface=True)
    held = embedded.holds(embedded.record_of(folder))
    sizes = {name: held[name] for name in ("chunk", "overlap", "every")}
    plan = frame_chunks.vin(net, **sizes, num_steps=steps, fused=fused)
    drawn = jax.jit(functools.partial(frame_chunks.draw, plan, params))

    def draw(asked: Clips) -> Made:
        film, given = films.numbers(asked, net.patch)
        keys = rng.row_keys(rng.key(0), jnp.arange(len(film)))
        made = drawn(keys, film[:, :1], given)
        calls = float(made.num_calls.mean())
        return Made(films.pictures(made.film, net.patch), calls, calls)

    return draw


def denoiser_of(folder: str, has_interface: bool) -> tuple[Net, Any]:
    """(net, params) of a run; ValueError where it is of another kind."""
    net, params, _ = embedded.load(folder)
    if not isinstance(net, Net) or ("interface" in params) != has_interface:
        kind = "chunks" if has_interface else "denoiser"
        raise ValueError(f"{folder} is no run of configs/frames_{kind}.py: give one")
    return net, params


def of_tokens(model: str, method: str, **settings: Any) -> Draw:
    """An entry of a method that draws the pixels as tokens."""

    def draw(asked: Clips) -> Made:
        tokens = np.concatenate(
            [
                frames.record(clip[0], int(label), actions)[None]
                for clip, label, actions in zip(*asked)
            ]
        )
        job = generation.prepare(
            tokens[:, : frames.HEAD + frames.FRAME].tolist(),
            method=method, model=model, max_new_tokens=_NEW, **settings,
        )  # fmt: skip
        new, calls = [], []
        for part in generation.slices(job, BATCH):
            made = generation.decoded(part, seed=0)
            new += made.tokens
            calls += made.stats["calls"]
        shown = digits.pictures(np.reshape(new, (-1, frames.FRAME)))
        shown = shown.reshape(len(tokens), -1, frames.SIDE, frames.SIDE)
        count = statistics.fmean(calls)
        return Made(np.concatenate([asked.frames[:, :1], shown], 1), count, count)

    return draw


def entries(
    folder: str | None, chunks: str | None, raster: str | None
) -> dict[str, Draw]:
    """Entries by name: of a denoiser's folder, of one with an interface, and of a model
    of pixels as tokens."""
    found: dict[str, Draw] = {}
    if folder is not None:
        net, params = denoiser_of(folder, has_interface=False)
        acdit = functools.partial(frame_blocks.acdit, net)
        inferix = functools.partial(frame_blocks.inferix, net)
        for steps in (25, 10, 4):
            found[f"acdit {steps}"] = of_denoiser(acdit(num_steps=steps), params)
        found["inferix 4"] = of_denoiser(inferix(num_steps=4), params)
        window = inferix(num_steps=4, window=1)
        found["inferix 4 window 1"] = of_denoiser(window, params)
        found["nfd 10 ahead 3"] = of_denoiser(acdit(num_steps=10), params, 3)
    if chunks is not None:
        for share in (0.6, 0.0):
            found[f"vin 25 joined {share}"] = of_chunks(chunks, 25, share)
    if raster is not None:
        grid = {"row_length": frames.SIDE, "frame_length": frames.FRAME}
        diagonal = functools.partial(of_tokens, raster, "diagonal_decoding", **grid)
        found["raster"] = of_tokens(raster, "autoregressive", temperature=1.0)
        for mode in ("image", "video"):
            for window in (4, 2):
                found[f"diagonal {mode} {window}"] = diagonal(mode=mode, window=window)
        found["diagonal video 2 frame"] = diagonal(
            mode="video", window=2, stand_in="frame"
        )
    return found


def table(lines: dict[str, tuple[Made, films.Worth]], best: films.Worth) -> str:
    """The lines under one head; figures are means over the frames drawn, and the last
    one's."""
    head = ("", "calls", "waits", "class right", "last", "moves right", "last",
            "error", "last")  # fmt: skip
    rows: list[tuple[str, ...]] = [head]
    for name, (made, found) in lines.items():
        rows.append((name, f"{made.calls:.1f}", f"{made.waits:.1f}", *_cells(found)))
    rows.append(("the right clips", "", "", *_cells(best)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(f"{c:{w}}" for c, w in zip(row, widths)).rstrip() for row in rows
    )


def _cells(found: films.Worth) -> tuple[str, ...]:
    accuracy, error = found.accuracy[1:], found.error[1:]
    return (
        f"{statistics.fmean(accuracy):.1%}",
        f"{accuracy[-1]:.1%}",
        f"{statistics.fmean(found.motion):.1%}",
        f"{found.motion[-1]:.1%}",
        f"{statistics.fmean(error):.2f}",
        f"{error[-1]:.2f}",
    )


def asked_of(clips: Clips, count: int) -> Clips:
    """`count` of them, spread evenly, so of as many digits as there are."""
    some = np.linspace(0, len(clips.classes) - 1, count).astype(int)
    return Clips(*(each[some] for each in clips))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--denoiser", help="a run of configs/frames_denoiser.py")
    parser.add_argument("--chunks", help="a run of configs/frames_chunks.py")
    parser.add_argument("--raster", help="a run of configs/frames_raster.py")
    parser.add_argument("--out", default="films", help="stem of the files written")
    parser.add_argument("--clips", type=int, default=200)
    args = parser.parse_args(arguments)
    by = visual.judge()
    asked = asked_of(data.clips("heldout"), args.clips)
    best = films.worth(by, asked.frames, asked)
    lines = {}
    for name, draw in entries(args.denoiser, args.chunks, args.raster).items():
        made = draw(asked)
        lines[name] = (made, films.worth(by, made.frames, asked))
        print(f"drawn by {name}", flush=True)
    print(table(lines, best))
    for clip in range(SHOWN):
        number = clip * args.clips // SHOWN
        rows = [asked.frames[number]]
        rows += [made.frames[number] for made, _ in lines.values()]
        films.strip(f"{args.out}-{clip}.png", rows)
    numbers = {
        name: {"calls": made.calls, "waits": made.waits, **found._asdict()}
        for name, (made, found) in lines.items()
    }
    made = {"num_clips": args.clips, "right": best._asdict(), "lines": numbers}
    with open(f"{args.out}.json", "w", encoding="utf-8") as file:
        json.dump(made, file, indent=1)


if __name__ == "__main__":
    main()
