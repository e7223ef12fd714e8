"""`pdecode bench --suite hotpath`: whole decodes, calls and kernels, beside floors.

Every line is printed when it ends, and the JSON file is then written whole: a run that
is stopped leaves what it had.
"""

from typing import Any

import jax

from pdecode.cli import arguments, bench
from pdecode.evals.bench import cases, hotpath, whole
from pdecode.hardware import peaks as machine
from pdecode.models import shapes as known_shapes

REPEATS, QUICK_REPEATS = 5, 3
# Of what `quick` measures the machine by: enough to run, too little to believe.
QUICK_PEAKS = {"num_bytes": 16 << 20, "side": 256}


def run(args: Any) -> dict[str, Any]:
    """Runs the suite and returns its numbers.

    ValueError for what it lacks, and at the end for what is wrong. A decode that
    failed and a share over 100 % are told then: by that time the others are printed and
    stored.
    """
    bench.check(args.batch_size, args.repeats, args.out)
    is_cpu = jax.default_backend() == "cpu"
    dtype = args.dtype or ("float32" if is_cpu else "bfloat16")
    is_bare = args.shapes is None and args.decodes is None
    shapes = ["3m", "30m"] if is_bare and is_cpu and not args.quick else []
    if args.shapes is not None:
        shapes = arguments.names(args.shapes, "--shapes")
    for shape in (*shapes, "qwen3-8b"):  # the last for its dtype
        known_shapes.config(shape, dtype)
    chosen = cases.CASES if is_bare and not shapes else ()
    if args.decodes is not None:
        chosen = cases.named(arguments.names(args.decodes, "--decodes"))
    weights = ["separate", "fused"]
    if args.weights is not None:
        weights = arguments.names(args.weights, "--weights")
    prompt_len, num_new = (16, 32) if args.quick else (128, 256)
    sizes = cases.Sizes(
        prompt_len if args.prompt_len is None else args.prompt_len,
        num_new if args.max_new_tokens is None else args.max_new_tokens,
        args.quick,
    )
    _check_read(args, chosen, shapes)
    if chosen:
        whole.check(chosen, weights, sizes)
    repeats = args.repeats or (QUICK_REPEATS if args.quick else REPEATS)

    found = machine.peaks(dtype, **(QUICK_PEAKS if args.quick else {}))
    made: dict[str, Any] = {
        "suite": "hotpath", **bench.about(), "dtype": dtype, "is_quick": args.quick,
        "peaks": found._asdict(), "torch": hotpath.torch_versions(), "decodes": [],
        "lines": [], "is_ended": False,
    }  # fmt: skip
    _keep(made, args.out)
    print(_about(found, dtype), flush=True)
    ended = []
    if chosen:
        print(whole.HEAD, flush=True)
    for line in (
        whole.decodes(chosen, weights, dtype, sizes, repeats, found, bench.told)
        if chosen
        else ()
    ):
        print(whole.text(line), flush=True)
        ended.append(line)
        made["decodes"].append(line._asdict())
        _keep(made, args.out)
    lines = _parts(shapes, dtype, args.batch_size or 1, repeats, found, made, args.out)
    made["is_ended"] = True
    _keep(made, args.out)
    if args.out:
        print(f"written: {args.out}")
    whole.judge(ended, None if args.quick else found)
    if not args.quick:
        hotpath.judge(lines, found)
    return made


def _check_read(args: Any, chosen, shapes) -> None:
    """ValueError for an option that nothing of what is chosen reads."""
    if args.weights is not None and not chosen:
        raise ValueError(
            f"--weights {args.weights} is of whole decodes, and none is chosen: name "
            "some with --decodes"
        )
    if args.batch_size is not None and not shapes:
        raise ValueError(
            f"--batch-size {args.batch_size} is of the parts of --shapes, and none is "
            "chosen: a decode has its own"
        )


def _parts(shapes, dtype, batch, repeats, found, made, out) -> list[hotpath.Line]:
    """Calls, attention, the head, and decodes beside torch."""
    lines: list[hotpath.Line] = []
    if shapes:
        print(hotpath.HEAD, flush=True)
    for shape in shapes:
        bench.told(shape)
        for new in hotpath.parts(shape, dtype, batch, repeats, found):
            lines += new
            for line in new:
                print(hotpath.text(line), flush=True)
            made["lines"] += [line._asdict() for line in new]
            _keep(made, out)
    if shapes and not any(line.part == "decode" for line in lines):
        print("decodes are compared with torch: pip install 'pdecode[oracle]'")
    return lines


def _keep(made: dict[str, Any], out: str | None) -> None:
    if out:
        bench.write(out, made)


def _about(found: machine.Peaks, dtype: str) -> str:
    """The card, the version of jax, and what the machine reaches."""
    return (
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {dtype}; measured "
        f"peaks: memory {found.bandwidth / 1e9:,.1f} GB/s (rewriting "
        f"{found.rewritten / 1e9:,.1f}, reading {found.read / 1e9:,.1f}), matmul "
        f"{found.flops / 1e9:,.0f} GFLOP/s"
    )
