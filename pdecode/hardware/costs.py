"""What one call costs a chip, by formula and by its compiler's count, and as text."""

import math
from typing import Any, NamedTuple

import jax

from pdecode.contracts import Query
from pdecode.hardware import hlo, roofline
from pdecode.hardware.chips import Chip
from pdecode.models.config import Config
from pdecode.sharding import placement


class Call(NamedTuple):
    """One shape of call that a decode makes."""

    role: int  # which of the models
    query: Query  # shapes
    cache: Any  # shapes
    is_step: bool  # made by a step, not by the prefill


def on_chip(
    config: Config, params: Any, call: Call, compiled: Any, chip: Chip, axes: dict
) -> dict[str, Any]:
    """The cost of one compiled call on one device of a mesh of `axes`."""
    analysis = compiled.cost_analysis()
    batch, width = call.query.tokens.shape
    slots = max(leaf.shape[2] for leaf in jax.tree.leaves(call.cache) if leaf.ndim == 4)
    weights = num_weights(params, config)
    # Replicas over "data" each read all the weights for their own rows.
    replicas = axes.get("data", 1)
    chips = math.prod(axes.values()) // replicas
    rows = batch / replicas
    attention = 4.0 * slots * config.num_layers * config.num_heads * config.head_dim
    machine = roofline.Hardware(
        "there", chips * chip.flops, chips * chip.bandwidth, weights, 2,
        total_bytes(call.cache) / batch / slots, "",
    )  # fmt: skip
    exchanged = sum(
        each.count * each.bytes * (2 if each.kind == "all-reduce" else 1)
        for each in hlo.read(compiled.as_text() or "").collectives
    )
    return {
        "model": config.name,
        "rows": batch,
        "lanes": width,
        "flops": analysis.get("flops"),
        "bytes": analysis.get("bytes accessed"),
        "flops_by_formula": rows * width * (2.0 * weights + attention) / chips,
        "roofline_s": roofline.roofline(machine, width, batch=int(rows), context=slots),
        "exchanged_bytes": exchanged,
        "exchange_s": exchanged / chip.links,
    }


def stream_bytes(calls: list[Call], axes: dict[str, int], width: int) -> int:
    """Bytes a device holds of the stream [B, Q, width] of the narrowest step."""
    rows = math.prod(axes.get(axis, 1) for axis in placement.MESH_AXES["rows"])
    lanes = min(math.prod(c.query.tokens.shape) for c in calls if c.is_step)
    return lanes // rows * width * 2


def num_weights(params: Any, config: Config) -> float:
    """Weights that one token is multiplied with: of the experts, those it goes to."""
    share = 1.0
    if config.experts is not None:
        share = config.experts.top_k / config.experts.num_experts
    leaves = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    total = sum(leaf.size * (share if leaf.ndim > 2 else 1.0) for leaf in leaves)
    return total - (0 if config.tied else params["embed"].size)


def total_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def text(found: dict[str, Any]) -> str:
    """The report for people."""
    gib = 2**30
    lines = [
        f"{found['model']} with {found['method']} for {found['target']}: "
        f"{found['devices']} devices, mesh "
        + ", ".join(f"{axis}={size}" for axis, size in found["mesh"].items()),
        f"{found['batch_size']} rows, prompt {found['prompt_len']}, "
        + ", ".join(f"{name}={value}" for name, value in found["settings"].items()),
        f"parameters {found['params_bytes'] / gib:.2f} GiB, cache "
        f"{found['cache_bytes'] / gib:.2f} GiB, a device's share "
        f"{found['share_bytes'] / gib:.3f} GiB",
    ]
    if "peak_bytes" not in found:
        lines.append(f"custom calls: {found['custom_calls'] or 'none'}")
        lines.append(
            f"compiled in {found['compile_s']} s, temporary "
            f"{found['temporary_bytes'] / gib:.3f} GiB"
            if "compile_s" in found
            else "lowered only"
        )
    else:
        lines += [
            f"compiled in {found['compile_s']} s; the loop carries "
            f"{found['loop_bytes'] / gib:.3f} GiB a device",
            f"a device: arguments {found['argument_bytes'] / gib:.3f}, temporary "
            f"{found['temporary_bytes'] / gib:.3f}, peak "
            f"{found['peak_bytes'] / gib:.3f} of {found['memory_bytes'] / gib:.0f} GiB",
            f"Mosaic calls {found['mosaic_calls']}, cache-sized writes "
            f"{found['cache_writes']}, all-reduces of the stream a layer "
            f"{found['all_reduces_per_layer']:.2f}",
        ]
    for call in found["calls"]:
        if "roofline_s" in call:
            lines.append(
                f"call of {call['model']}, {call['rows']} x {call['lanes']} lanes: "
                f"{call['flops']:.3g} FLOP (formula {call['flops_by_formula']:.3g}), "
                f"{call['bytes']:.3g} bytes a device; roofline "
                f"{1e3 * call['roofline_s']:.3f} ms, exchange "
                f"{1e3 * call['exchange_s']:.3f} ms"
            )
        elif call["kernels"] is not None:
            lines.append(
                f"call of {call['model']}, {call['rows']} x {call['lanes']} lanes: "
                f"{call['kernels']} kernels"
            )
    for each in found.get("collectives", ()):
        where = "loop" if each["in_loop"] else "before the loop"
        lines.append(
            f"  {each['count']:4d} {each['kind']:<18} {each['shape']:<28} "
            f"{each['bytes']:>12,} bytes  {where}"
        )
    return "\n".join(lines)
