"""Whole decodes of published shapes with random weights, beside their floors.

A case is a method on a shape at a batch size, and each is decoded under several ways of
holding the weights (`cases.WEIGHTS`): before and after stand in one run. Cases are
ordered by what they are worth: whoever stops a run has the first ones.

The floor of a decode is what its calls must move and multiply, at this machine's
measured peaks: every weight but an untied embedding, and the prompt's keys and values,
once a call; two operations a weight and lane, of the head only for lanes that propose
a token. Attention and what was generated are left out: a floor is never too high.
"""

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdecode import hardware
from pdecode import programs as programs_module
from pdecode.contracts import Model, Params, Prompt
from pdecode.evals.bench.cases import (
    WEIGHTS,
    Case,
    Sizes,
    config_of,
    prompt_of,
    random,
    shapes_of,
)
from pdecode.hardware import peaks as machine
from pdecode.hardware.peaks import Peaks
from pdecode.models.config import Config

# Programs compiled at a time.
NUM_COMPILED = max(min((os.cpu_count() or 1) // 2, 8), 1)


class Decode(NamedTuple):
    """One case under one way of holding the weights; times are medians of repeats."""

    case: str
    weights: str
    shape: str
    batch_size: int
    prompt_len: int
    max_new_tokens: int
    compile_s: float  # of both programs, while others were compiled
    prefill_s: float
    decode_s: float
    every_s: tuple[float, ...]  # prefill and decode of each repeat
    num_calls: int  # of the batch, prefill apart
    lanes: float  # a call and row
    ms: float  # a call, prefill apart
    tokens_per_s: float  # of all rows, prefill included
    floor_ms: float  # a call
    bound: str  # memory | matmul: what the floor is made of
    share: float  # floor over ms
    weight_bytes: int  # that a call reads
    temp_mb: float | None  # temporary memory of the loop's program
    num_kernels: int  # of the loop's program, which has each kind of call once
    num_equal: int  # tokens that are those of the first way in `WEIGHTS`
    first_tokens: tuple[int, ...]


class Failed(NamedTuple):
    """A case that could not be measured, and why."""

    case: str
    weights: str
    why: str


def decodes(
    chosen: Sequence[Case],
    weights: Sequence[str],
    dtype: str,
    sizes: Sizes,
    repeats: int,
    found: Peaks,
    is_told: Callable[[str], None] = lambda text: None,
) -> Iterator[Decode | Failed]:
    """Measures each case under each way of holding the weights, one after another.

    A case is compiled, in all its ways at a time, and timed before the next is: a run
    that is stopped has those before. Weights are drawn on the device, and one shape's
    are there at a time: twice its bytes, where it is held in two ways. What fails is
    told and passed over: on a machine that is lent, the others are worth having.
    """
    check(chosen, weights, sizes)
    held: tuple[str | None, Params] = (None, {})
    for case in chosen:
        is_told(f"{case.name}: compiling")
        with ThreadPoolExecutor(NUM_COMPILED, "pdecode-compiler") as pool:
            pending = {
                name: pool.submit(_compiled, case, name, dtype, sizes)
                for name in weights
            }
        config = config_of(case.shape, dtype, sizes)
        if held[0] != case.shape:
            held = (None, {})  # gone before the next are drawn
            held = (case.shape, jax.block_until_ready(random(config)))
        wanted: np.ndarray | None = None
        for name, future in pending.items():
            is_told(f"{case.name}, weights {name}")
            line, tokens = _measured(
                case, name, config, held[1], future, sizes, repeats, found, wanted
            )
            wanted = tokens if wanted is None else wanted
            yield line
    programs_module.forget()


def check(chosen: Sequence[Case], weights: Sequence[str], sizes: Sizes) -> None:
    """ValueError for what cannot be measured, before anything is."""
    for name in weights:
        if name not in WEIGHTS:
            raise ValueError(f"weights {name!r} must be one of {', '.join(WEIGHTS)}")
    if not chosen or not weights:
        raise ValueError("there is nothing to decode: name a case and weights")
    if sizes.prompt_len < 1 or sizes.max_new_tokens < 8:
        raise ValueError(
            f"prompt_len={sizes.prompt_len} must be at least 1 and max_new_tokens="
            f"{sizes.max_new_tokens} at least 8"
        )


def _compiled(case: Case, name: str, dtype: str, sizes: Sizes):
    """The programs of one decode: shapes are enough, no weights are drawn for it."""
    config = config_of(case.shape, dtype, sizes)
    models: list[Model] = []

    def held(params):
        model, params = WEIGHTS[name](config, params)
        models.append(model)
        return params

    tree = jax.eval_shape(held, shapes_of(config))
    # No row ends early: all decodes of a case are of one length.
    model = models[0]._replace(eos_ids=())
    num_new = sizes.max_new_tokens
    return programs_module.compiled(
        case.method, model, tree, prompt_of(case, config, sizes), is_dated=False,
        max_new_tokens=num_new, **case.settings(num_new),
    )  # fmt: skip


def _measured(
    case: Case,
    name: str,
    config: Config,
    params: Params,
    future: Future,
    sizes: Sizes,
    repeats: int,
    found: Peaks,
    wanted: np.ndarray | None,
) -> tuple[Decode | Failed, np.ndarray | None]:
    """One line, and the tokens; `wanted` are those of the first way of holding."""
    try:
        params = WEIGHTS[name](config, params)[1]
        jax.block_until_ready(params)
        programs = future.result()
        prompt, key = prompt_of(case, config, sizes), jax.random.key(0)
        _warm(programs, params, prompt, key)
        every = [
            programs_module.timed(programs, params, prompt, key) for _ in range(repeats)
        ]
    # A compiler's error and a full memory have no class of their own.
    except Exception as error:
        return Failed(case.name, name, " ".join(str(error).split())[:500]), None
    tokens = np.asarray(every[-1].generation.tokens)
    tokens = tokens[:, sizes.prompt_len : sizes.prompt_len + sizes.max_new_tokens]
    line = _line(case, name, config, params, programs, every, sizes, found)
    num_equal = int((tokens == (tokens if wanted is None else wanted)).sum())
    return line._replace(num_equal=num_equal), tokens


def _line(case, name, config, params, programs, every, sizes, found) -> Decode:
    stats = every[-1].stats
    first = np.asarray(every[-1].generation.tokens)[0, sizes.prompt_len :][:8]
    prefill_s = statistics.median(each.prefill_s for each in every)
    decode_s = statistics.median(each.decode_s for each in every)
    every_s = tuple(each.prefill_s + each.decode_s for each in every)
    num_calls = int(stats.num_dispatches)
    lanes = int(stats.num_query_tokens_computed.sum())
    proposing = min(lanes, int(stats.num_proposed.sum() + stats.num_calls.sum()))
    num_bytes, work = _needed(
        case, name, config, params, sizes, num_calls, lanes, proposing
    )
    floor = machine.floor(num_bytes, work, found)
    memory = programs.loop.memory_analysis()
    num_new = case.batch_size * sizes.max_new_tokens
    return Decode(
        case=case.name,
        weights=name,
        shape=case.shape,
        batch_size=case.batch_size,
        prompt_len=sizes.prompt_len,
        max_new_tokens=sizes.max_new_tokens,
        compile_s=programs.compile_s,
        prefill_s=prefill_s,
        decode_s=decode_s,
        every_s=every_s,
        num_calls=num_calls,
        lanes=lanes / num_calls / case.batch_size,
        ms=1e3 * decode_s / num_calls,
        tokens_per_s=num_new / statistics.median(every_s),
        floor_ms=1e3 * floor.seconds / num_calls,
        bound=floor.bound,
        share=floor.seconds / decode_s,
        weight_bytes=_weight_bytes(config, params),
        temp_mb=None if memory is None else memory.temp_size_in_bytes / 1e6,
        num_kernels=hardware.num_kernels(programs.loop),
        num_equal=num_new,
        first_tokens=tuple(first.tolist()),
    )


def _warm(programs, params: Params, prompt: Prompt, key) -> None:
    """Both programs, the loop for two turns: enough to load and to allocate."""
    carry = programs.start(params, prompt, key, programs.knobs)
    jax.block_until_ready(programs.loop(params, carry, programs.knobs, jnp.int32(2)))


def _needed(case: Case, name, config, params, sizes: Sizes, num_calls, lanes, heads):
    """Bytes and operations that a decode cannot do without."""
    cached = _cache_bytes(case, name, config, sizes)
    num_bytes = num_calls * (_weight_bytes(config, params) + cached)
    table = config.vocab_size * config.width
    every = sum(leaf.size for leaf in jax.tree.leaves(shapes_of(config)))
    inside = every - table * (1 if config.tied else 2)
    return num_bytes, 2.0 * (inside * lanes + table * heads)


def _cache_bytes(case: Case, name: str, config: Config, sizes: Sizes) -> int:
    """Bytes of the prompt's keys and values."""

    def cache(params):
        model = WEIGHTS[name](config, params)[0]
        return model.init_cache(prompt_of(case, config, sizes), sizes.prompt_len)

    made = jax.eval_shape(cache, shapes_of(config))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(made))


def _weight_bytes(config: Config, params: Params) -> int:
    """Bytes of the weights that every call reads: an embedding only if it is tied."""
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return total if config.tied else total - params["embed"].nbytes


HEAD = (
    "decode          weights   batch  calls lanes  ms/call  floor  bound   share  "
    "tokens/s  prefill s  compile s  temp MB  kernels  tokens equal"
)


def text(line: Decode | Failed) -> str:
    """One line of the table under `HEAD`."""
    if isinstance(line, Failed):
        return f"{line.case:15} {line.weights:9} FAILED: {line.why}"
    temp = "-" if line.temp_mb is None else f"{line.temp_mb:.1f}"
    return (
        f"{line.case:15} {line.weights:9} {line.batch_size:5} {line.num_calls:6} "
        f"{line.lanes:5.1f} {line.ms:8.3f} {line.floor_ms:6.3f}  {line.bound:7} "
        f"{line.share:5.0%}  {line.tokens_per_s:8.1f}  {line.prefill_s:9.4f}  "
        f"{line.compile_s:9.1f}  {temp:>7}  {line.num_kernels:7}  {line.num_equal} of "
        f"{line.batch_size * line.max_new_tokens}"
    )


def judge(lines: Sequence[Decode | Failed], found: Peaks | None) -> None:
    """ValueError if a decode failed, or beat its floor: then a number is wrong.

    To be called when all is printed and stored. Without peaks (None) no floor is asked
    for: of small sizes, which a cache holds, it says nothing.
    """
    failed = [line for line in lines if isinstance(line, Failed)]
    if failed:
        names = ", ".join(f"{line.case} ({line.weights})" for line in failed)
        raise ValueError(f"failed, see above: {names}")
    for line in lines:
        if isinstance(line, Decode) and found is not None:
            peak = found.bandwidth if line.bound == "memory" else found.flops
            unit = "GB/s" if line.bound == "memory" else "GFLOP/s"
            what = f"{line.case}, weights {line.weights}"
            machine.share(line.share * peak, peak, what, unit)
