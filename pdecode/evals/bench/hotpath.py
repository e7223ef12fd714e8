"""How near the hardware a call and a decode come: `pdecode bench --suite hotpath`.

Everything is measured in one run, against the machine's own peaks: one call (apply and
head) at several widths, attention and the vocabulary head by implementation, and whole
decodes against transformers on the same weights where torch is installed. Those of
larger shapes are in `whole`. Compile and warm-up are not in any time. Weights are
random.

Bytes of a call are its weights and the cached keys and values it reads, each once;
operations are two a weight and query and four a query, cached token and head dimension.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdecode import methods, prompts
from pdecode import programs as programs_module
from pdecode.checkpoints import loading
from pdecode.contracts import Head, Sampling, Visibility
from pdecode.evals.bench import cases
from pdecode.hardware import peaks as machine
from pdecode.hardware import roofline
from pdecode.hardware.peaks import Peaks
from pdecode.kernels.attention import api as attention
from pdecode.kernels.head import api as vocab_head
from pdecode.models import shapes, transformer

DECODED = ("3m", "30m", "130m")  # those compared with torch
CONTEXT, KERNEL_SLOTS = 256, 1024  # cached tokens of a call; slots of one attention
PROMPT_LEN, NUM_NEW = 64, 64  # of the decodes that torch does too
CANVAS = 256  # queries of a full-canvas call
REPEATED = 8  # times a kernel runs in one program, each on the result of the last
NUM_RUNS = 7  # runs of a program after its warm-up; their median counts


class Line(NamedTuple):
    """One measurement."""

    part: str  # call | attention | head | decode
    shape: str
    what: str
    batch_size: int
    num_queries: float
    ms: float
    bandwidth_share: float | None  # of the measured peak
    flops_share: float | None  # of the measured matmul
    temp_mb: float | None  # temporary memory of the compiled program
    ratio: float | None  # over `baseline`: above 1 is faster or, of a call, dearer
    baseline: str | None
    note: str = ""


def parts(
    shape: str, dtype: str, batch: int, repeats: int, found: Peaks
) -> Iterator[list[Line]]:
    """Calls, attention, the head, and decodes beside torch, as each is measured."""
    yield calls(shape, dtype, batch, CONTEXT, found)
    yield attentions(shape, dtype, batch, KERNEL_SLOTS, found)
    yield heads(shape, dtype, batch, found)
    yield decodes(shape, PROMPT_LEN, NUM_NEW, repeats)


def calls(shape: str, dtype: str, batch: int, context: int, found: Peaks) -> list[Line]:
    """One call of 1 and 8 queries behind `context` tokens, and of a full canvas."""
    made = shapes.config(shape, dtype)
    params = cases.random(made)
    model = transformer.make_model(made)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    per_token = 2 * made.num_layers * made.num_kv_heads * made.head_dim
    # An untied embedding is only read at the rows asked for.
    if not made.tied:
        num_params -= params["embed"].size
        weight_bytes -= params["embed"].nbytes
    lines: list[Line] = []
    for what, width in (("1 query", 1), ("8 queries", 8), ("canvas", CANVAS)):
        is_canvas = what == "canvas"
        seen = CANVAS if is_canvas else context
        count = 1 if num_params > 1e9 or is_canvas else 8
        program, arguments = roofline.repeated_call(
            model, params, batch, seen, width, count, is_canvas=is_canvas
        )
        seconds = roofline.median_seconds(program, arguments, NUM_RUNS) / count
        cached = batch * seen * per_token * jnp.dtype(dtype).itemsize
        attended = seen * made.num_layers * made.num_heads * made.head_dim
        work = batch * width * (2 * num_params + 4 * attended)
        first = lines[0].ms if lines else None
        lines.append(
            Line(
                "call", shape, what, batch, width, 1e3 * seconds,
                machine.of_memory(weight_bytes + cached, seconds, found),
                work / seconds / found.flops,
                _temp_mb(program),
                None if first is None else 1e3 * seconds / first,
                None if first is None else "cost of the 1-query call",
            )
        )  # fmt: skip
    return lines


def attentions(shape: str, dtype: str, batch: int, slots: int, found: Peaks):
    """Each implementation of attention that serves this platform, one layer."""
    made = shapes.config(shape, dtype)
    cache = (batch, made.num_kv_heads, slots, made.head_dim)
    keys, values = jnp.ones(cache, dtype), jnp.ones(cache, dtype)
    names = ["reference", "xla"]
    names += {"tpu": ["pallas_tpu"], "gpu": ["pallas_gpu"]}.get(
        jax.default_backend(), []
    )
    lines = []
    for width in (1, 8, CANVAS):
        query = jnp.ones((batch, width, made.num_heads, made.head_dim), dtype)
        place = jnp.zeros((batch, width), jnp.int32)
        visible = Visibility(place, place + slots)
        slowest = None
        for name in names:
            program = _attend.lower(query, keys, values, visible, name).compile()
            arguments = (query, keys, values, visible)
            seconds = roofline.median_seconds(program, arguments, NUM_RUNS) / REPEATED
            slowest = slowest or seconds
            work = 4 * batch * width * slots * made.num_heads * made.head_dim
            lines.append(
                Line(
                    "attention", shape, f"{name} {width}", batch, width, 1e3 * seconds,
                    machine.of_memory(keys.nbytes + values.nbytes, seconds, found),
                    work / seconds / found.flops, _temp_mb(program),
                    slowest / seconds, "reference",
                )
            )  # fmt: skip
    return lines


def heads(shape: str, dtype: str, batch: int, found: Peaks) -> list[Line]:
    """Statistics of a canvas, logits in full and in tiles."""
    made = shapes.config(shape, dtype)
    weight = jnp.ones((made.vocab_size, made.width), dtype)
    hidden = jnp.ones((batch, CANVAS, made.width), dtype)
    lines, first = [], None
    for name, wants in (("dense", ("logits",)), ("tiles", ())):
        program = _decide.lower(weight, hidden, wants).compile()
        arguments = (weight, hidden)
        seconds = roofline.median_seconds(program, arguments, NUM_RUNS) / REPEATED
        first = first or seconds
        work = 2 * weight.size * batch * CANVAS
        lines.append(
            Line(
                "head", shape, name, batch, CANVAS, 1e3 * seconds,
                machine.of_memory(weight.nbytes, seconds, found),
                work / seconds / found.flops, _temp_mb(program),
                first / seconds, "dense",
                f"logits {4e-6 * batch * CANVAS * made.vocab_size:.0f} MB",
            )
        )  # fmt: skip
    return lines


def torch_versions() -> dict[str, str]:
    """Versions of what decodes are compared with, as far as it is installed."""
    found = {}
    for name in ("torch", "transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def decodes(shape: str, prompt_len: int, num_new: int, repeats: int) -> list[Line]:
    """Whole decodes of one prompt in float32 against torch, on the same weights.

    Of the smaller shapes, and where torch is installed; else none.
    """
    if shape not in DECODED or importlib.util.find_spec("transformers") is None:
        return []
    from pdecode.evals.bench import torch_loops as theirs

    sizes = shapes.config(shape, "float32")
    with tempfile.TemporaryDirectory() as folder:
        theirs.make(
            folder, vocab_size=sizes.vocab_size, hidden_size=sizes.width,
            intermediate_size=sizes.mlp_width, num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_kv_heads,
        )  # fmt: skip
        causal, params, _ = loading.load(folder)
        made = loading.open_folder(folder).config
        torch_model = theirs.load(folder)
    mask_id = sizes.vocab_size - 1
    masked = transformer.make_model(
        dataclasses.replace(
            made, attention="bidirectional", predicts="masked", mask_id=mask_id
        )
    )
    row = [int(x) for x in jax.random.randint(jax.random.key(1), (prompt_len,), 0, 99)]
    steps = max(num_new // 4, 1)
    cases = (
        ("autoregressive", methods.autoregressive, causal, {},
         lambda: theirs.generate(torch_model, row, num_new, None)),
        ("prompt_lookup", methods.prompt_lookup, causal, {"num_draft": 7},
         lambda: theirs.generate(torch_model, row, num_new, 7)),
        ("llada", methods.llada, masked, {"steps": steps, "block_length": num_new},
         lambda: theirs.diffuse(torch_model, row, num_new, mask_id,
                                theirs.low_confidence(num_new, steps))),
        ("fast_dllm", methods.fast_dllm, masked,
         {"threshold": 0.002, "block_length": num_new},
         lambda: theirs.diffuse(torch_model, row, num_new, mask_id,
                                theirs.threshold(0.002))),
    )  # fmt: skip
    lines = []
    for name, method, model, settings, run in cases:
        ours, tokens, num_calls, spread = _decoded(
            method, model, params, row, num_new, settings, run, repeats
        )
        (their_tokens, their_calls, _), seconds, their_seconds = spread
        same = sum(a == b for a, b in zip(tokens, their_tokens, strict=True))
        lines.append(
            Line(
                "decode", shape, name, 1, ours, 1e3 * seconds, None, None, None,
                their_seconds / seconds, "torch loop",
                f"{num_new / seconds:.0f} against {num_new / their_seconds:.0f} "
                f"tokens/s, {num_calls} and {their_calls} calls, "
                f"{same} of {num_new} tokens equal",
            )
        )  # fmt: skip
    return lines


def _decoded(method, model, params, row, num_new, settings, theirs, repeats):
    """Medians of interleaved runs of ours (prefill included) and theirs."""
    model = model._replace(eos_ids=())
    prompt = prompts.from_rows([row], max_new_tokens=num_new, model=model)
    programs = programs_module.compiled(
        method, model, params, prompt, is_dated=False, max_new_tokens=num_new,
        **settings,
    )  # fmt: skip
    key = jax.random.key(0)
    programs_module.timed(programs, params, prompt, key)
    pairs = [
        (programs_module.timed(programs, params, prompt, key), theirs())
        for _ in range(repeats)
    ]
    decoded, result = pairs[-1]
    ours_s = [ours.prefill_s + ours.decode_s for ours, _ in pairs]
    theirs_s = [their_s for _, (_, _, their_s) in pairs]
    num_calls = int(decoded.stats.num_calls[0] + decoded.stats.num_prefill_calls[0])
    queries = float(decoded.stats.num_query_tokens[0]) / int(decoded.stats.num_calls[0])
    tokens = decoded.generation.tokens[0, len(row) : len(row) + num_new].tolist()
    middle = statistics.median(ours_s), statistics.median(theirs_s)
    return queries, tokens, num_calls, (result, *middle)


@functools.partial(jax.jit, static_argnames=("name",))
def _attend(query, keys, values, visible, name):
    def again(_, query):
        out = attention.attention(
            query, keys, values, visible,
            scale=query.shape[-1] ** -0.5, implementation=name,
        )  # fmt: skip
        return query + 1e-6 * out

    return jax.lax.fori_loop(0, REPEATED, again, query)


@functools.partial(jax.jit, static_argnames=("asked",))
def _decide(weight, hidden, asked):
    wants = ("token", "log_prob", "entropy", "margin", *asked)

    def again(_, hidden):
        found = vocab_head.statistics(Head(weight), hidden, wants, Sampling())
        # Asking for the logits takes the dense path; one of them is used.
        one = 0.0 if found.logits is None else 1e-9 * found.logits[:, :, :1]
        more = one + 1e-9 * (found.entropy + found.margin)[..., None]
        return hidden + more.astype(hidden.dtype)

    return jax.lax.fori_loop(0, REPEATED, again, hidden)


def _temp_mb(program: Any) -> float | None:
    found = program.memory_analysis()
    return None if found is None else found.temp_size_in_bytes / 1e6


HEAD = (
    "part       shape     what            batch queries        ms  bandwidth  "
    "flops   temp MB  ratio"
)


def text(line: Line) -> str:
    """One line of the table under `HEAD`."""
    return (
        f"{line.part:10} {line.shape:9} {line.what:15} {line.batch_size:5} "
        f"{line.num_queries:7.1f} {line.ms:9.3f}  {_share(line.bandwidth_share):>9}"
        f" {_share(line.flops_share):>6} {_number(line.temp_mb, 1):>9}  "
        f"{_number(line.ratio, 2):>5}"
        + (f" {line.baseline}" if line.baseline else "")
        + (f"; {line.note}" if line.note else "")
    )


def judge(lines: Sequence[Line], found: Peaks) -> None:
    """ValueError for a share over 100 %: then a rate is wrong."""
    for line in lines:
        what = f"{line.part} {line.shape} {line.what}, {line.num_queries:.0f} queries"
        for part, peak, unit in (
            (line.bandwidth_share, found.bandwidth, "GB/s"),
            (line.flops_share, found.flops, "GFLOP/s"),
        ):
            if part is not None:
                machine.share(part * peak, peak, what, unit)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
