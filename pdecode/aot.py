"""What a decode costs on hardware that is not here: compiled for it, never run.

With the `tpu-aot` extra (libtpu) XLA compiles for a TPU topology on a machine that has
none. Parameters, cache and prompt are shapes with shardings; nothing is materialised.
For CUDA there is no compiler here: the program is lowered, and only what lowering
knows is reported.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct

from pdecode import configurations, decode, hlo, rng, sharding
from pdecode import knobs as knob_rules
from pdecode.contracts import Model, Prompt, Query, Sampling
from pdecode.evals import hardware
from pdecode.kernels import vocab_head
from pdecode.models import loading, placement, shapes, transformer

_V5E = hardware.v5e(0, 0)


class Chip(NamedTuple):
    """Peak rates of one chip, as its maker publishes them."""

    flops: float  # a second, bfloat16
    bandwidth: float  # bytes a second, memory
    links: float  # bytes a second, all links to other chips, one direction
    memory: float  # bytes


CHIPS = {
    "v5e": Chip(_V5E.flops, _V5E.bandwidth, 200e9, 16 * 2**30),
    "v5p": Chip(459e12, 2.765e12, 600e9, 95 * 2**30),
    "v6e": Chip(918e12, 1.64e12, 448e9, 32 * 2**30),
}


class Job(NamedTuple):
    """A decode as shapes: what `run` would get, and the mesh it lives on."""

    method: Callable
    models: tuple[Model, ...]
    configs: tuple[Any, ...]
    params: Any  # shapes, one tree or a tuple of two
    prompt: Prompt  # shapes
    settings: dict[str, Any]
    knobs: dict[str, Any]  # shapes: a program serves all their values
    sizes: dict[str, Any]
    mesh: Any


def report(
    target: str = "tpu-v5e-2x4",
    model: str = "llada-8b",
    method: str | None = None,
    *,
    drafter: str | None = None,
    mesh: dict[str, int] | None = None,
    batch_size: int | None = None,
    prompt_len: int = 512,
    max_new_tokens: int = 512,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Compiles a decode for `target` and says what it needs, as plain data.

    `target` is "tpu-GENERATION-TOPOLOGY", such as tpu-v5e-2x4, or "cuda". `model` and
    `drafter` name one of `shapes.SHAPES` or a checkpoint folder, of which only the configuration
    is read; a drafter takes the target's vocabulary. `mesh` (None: `default_mesh`),
    `batch_size` (None: one row a device, at least 8), bfloat16 throughout.

    The cost of a call is that of one call (apply, and the head on every lane) compiled
    by itself with the same placement: inside the loop it cannot be told apart. The
    compiler sees no arithmetic inside kernels and counts one tile of the vocabulary;
    the count by formula has both, and the roofline is made from it.

    Raises ValueError for unknown names, what does not fit the method, a mesh that does
    not fit the target, and programs that the target's compiler refuses.
    """
    generation, devices = _devices(target)
    config = shape_of(model)
    axes = mesh or default_mesh(len(devices), config.num_kv_heads)
    if math.prod(axes.values()) != len(devices):
        raise ValueError(f"the mesh {axes} does not use all {len(devices)} devices")
    if batch_size is None:
        batch_size = max(8, len(devices))
    if method is None:
        method = "llada" if config.noise == "absorbing" else "autoregressive"
    place = sharding.make_mesh(devices=devices, **axes) if generation else None
    job = _job(
        method, config, drafter, place, batch_size, prompt_len,
        {**(settings or {}), "max_new_tokens": max_new_tokens},
    )  # fmt: skip

    with jax.set_mesh(place) if place else contextlib.nullcontext():
        calls = _calls(job)
        found = {
            "target": target,
            "devices": len(devices),
            "mesh": axes,
            "model": config.name,
            "method": method,
            "batch_size": batch_size,
            "prompt_len": prompt_len,
            "settings": job.settings,
            "jax": jax.__version__,
        }
        total = _total_bytes(job.params)
        cached = sum(_total_bytes(call.cache) for call in _caches(calls))
        found |= {
            "num_params": sum(leaf.size for leaf in jax.tree.leaves(job.params)),
            "params_bytes": total,
            "cache_bytes": cached,
            "share_bytes": (total + cached) // len(devices),
        }
        if generation is None:
            return found | _lowered(job, calls)
        return found | _compiled(job, calls, CHIPS[generation], axes)


def default_mesh(num_devices: int, num_kv_heads: int) -> dict[str, int]:
    """Tensor as wide as heads and devices allow, at most 16; the rest is fsdp."""
    tensor = math.gcd(math.gcd(num_devices, num_kv_heads), 16)
    return {"fsdp": num_devices // tensor, "tensor": tensor}


def shape_of(name: str) -> Any:
    """The configuration of one of `shapes.SHAPES` or of a checkpoint folder, in bfloat16."""
    if name in shapes.SHAPES:
        return shapes.config(name, "bfloat16")
    if not os.path.isdir(name):
        raise ValueError(
            f"unknown model {name!r}: no such folder, and the known shapes are "
            f"{', '.join(shapes.SHAPES)}"
        )
    family, config = loading.read_config(name)
    if family.module is not transformer:
        raise ValueError(f"{name} is no {transformer.__name__}: not compiled from here")
    return dataclasses.replace(config, dtype="bfloat16")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what libtpu says about missing hardware off standard error, if all is well.

    It writes to the file descriptor from C++.
    """
    with tempfile.TemporaryFile() as kept:
        before = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(before, kept.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)


def _devices(target: str) -> tuple[str | None, list]:
    """(TPU generation, devices of the topology); (None, one device) for CUDA."""
    if target == "cuda":
        return None, [None]
    kind, _, rest = target.partition("-")
    generation, _, topology = rest.partition("-")
    if kind != "tpu" or generation not in CHIPS or not topology:
        raise ValueError(
            f"unknown target {target!r}: write cuda, or tpu-GENERATION-TOPOLOGY such "
            f"as tpu-v5e-2x4; known generations: {', '.join(CHIPS)}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"{target} needs the TPU compiler: pip install 'pdecode[tpu-aot]'"
        )
    from jax.experimental import topologies

    # Nobody is asked for the metadata of a machine that is not there.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        with _quiet():
            found = topologies.get_topology_desc(
                f"{generation}:{topology}", platform="tpu"
            )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"{target}: {str(error).splitlines()[0]}") from None
    return generation, list(found.devices)


def _job(method, config, drafter, mesh, batch_size, prompt_len, settings) -> Job:
    recipe, implied = configurations.resolve(method)
    configs = [config]
    for role in configurations.roles(recipe)[1:]:
        if role == "heads" or drafter is None:
            raise ValueError(
                f"{method} needs a {role}: only a drafter that is a model can be given"
            )
        small = shape_of(drafter)
        configs.append(
            dataclasses.replace(
                small, vocab_size=config.vocab_size, attention=config.attention,
                noise=config.noise, mask_id=config.mask_id, eos_ids=config.eos_ids,
            )
        )  # fmt: skip
    models, trees = [], []
    for each in configs:
        made = transformer.make_model(each)
        models.append(made if mesh is None else sharding.on_mesh(made, mesh))
        tree = jax.eval_shape(
            lambda each=each: transformer.init(each, jax.random.key(0))
        )
        tree = jax.tree.map(lambda s: ShapeDtypeStruct(s.shape, jnp.bfloat16), tree)
        trees.append(_placed(tree, mesh, placement.specs))
    knobs, sizes = knob_rules.split(recipe, {**implied, **settings})
    row: Any = ShapeDtypeStruct((batch_size,), jnp.int32)
    tokens: Any = ShapeDtypeStruct((batch_size, prompt_len), jnp.int32)
    return Job(
        method=recipe,
        models=tuple(models),
        configs=tuple(configs),
        params=trees[0] if len(trees) == 1 else tuple(trees),
        prompt=_placed(Prompt(tokens, row, row, row), mesh, placement.row_specs),
        settings={**implied, **settings},
        knobs=jax.tree.map(lambda x: ShapeDtypeStruct(x.shape, x.dtype), knobs),
        sizes=sizes,
        mesh=mesh,
    )


def _placed(shapes, mesh, specs):
    if mesh is None:
        return shapes
    return jax.tree.map(
        lambda s, to: ShapeDtypeStruct(s.shape, s.dtype, sharding=to),
        shapes,
        specs(shapes, mesh),
    )


class Call(NamedTuple):
    """One shape of call that a decode makes."""

    role: int  # which of the models
    query: Query  # shapes
    cache: Any  # shapes
    is_step: bool  # made by a step, not by the prefill


def _calls(job: Job) -> list[Call]:
    """Every shape of call that the decoder makes, found by tracing it."""
    found: dict[tuple, Call] = {}
    stage = [False]

    def noting(model: Model, role: int) -> Model:
        def note(call):
            def apply(params, query, cache, *, layers=None):
                shapes = jax.tree.map(
                    lambda x: ShapeDtypeStruct(x.shape, x.dtype), (query, cache)
                )
                name = (role, stage[0], str(shapes))
                found[name] = Call(role, shapes[0], shapes[1], stage[0])
                return call(params, query, cache, layers=layers)

            return apply

        return model._replace(apply=note(model.apply), encode=note(model.encode))

    models = [noting(model, role) for role, model in enumerate(job.models)]

    def decoder(knobs):
        return job.method(*models, **job.sizes, **knobs)

    def keys_of(prompt):
        return rng.row_keys(jax.random.key(0), prompt.row_ids)

    state, _ = jax.eval_shape(
        lambda params, prompt, knobs: decoder(knobs).init(
            params, keys_of(prompt), prompt
        ),
        job.params, job.prompt, job.knobs,
    )  # fmt: skip
    stage[0] = True
    jax.eval_shape(
        lambda params, prompt, state, knobs: decoder(knobs).step(
            params, keys_of(prompt), state
        ),
        job.params, job.prompt, state, job.knobs,
    )  # fmt: skip
    return list(found.values())


def _caches(calls: list[Call]) -> list[Call]:
    """One call of each model: its cache is the model's own."""
    return list({call.role: call for call in calls if call.is_step}.values())


def _one_call(params, query, cache, *, model):
    output, cache = model.apply(params, query, cache)
    found = vocab_head.statistics(
        model.head(params), output.hidden, ("token", "log_prob"), Sampling()
    )
    return found.token, found.log_prob, cache


def _lower_call(job: Job, call: Call):
    params = job.params if len(job.models) == 1 else job.params[call.role]
    query, cache = _placed((call.query, call.cache), job.mesh, placement.row_specs)
    # The cache is given away, as the loop's is: no copy of it is counted.
    one = jax.jit(_one_call, static_argnames="model", donate_argnums=2)
    return one.trace(params, query, cache, model=job.models[call.role])


def _program(job: Job):
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced, _ = decode.trace(
        job.method, job.models, job.params, job.prompt, key,
        **job.knobs, **job.sizes,
    )  # fmt: skip
    return traced


def _compiled(job: Job, calls: list[Call], chip: Chip, axes) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        program = _program(job).lower(lowering_platforms=("tpu",)).compile()
        compile_s = time.perf_counter() - began
        parts = [
            (call, _lower_call(job, call).lower(lowering_platforms=("tpu",)).compile())
            for call in calls
            if call.is_step
        ]
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"the compiler refused it: {error}") from None
    memory: Any = program.memory_analysis()
    peak = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes
        - memory.alias_size_in_bytes + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )  # fmt: skip
    read = hlo.read(program.as_text() or "")
    stream = _stream_bytes(calls, axes, job.configs[0])
    large = [
        each for each in read.collectives
        if each.in_loop and each.kind == "all-reduce" and each.bytes >= stream
    ]  # fmt: skip
    return {
        "compile_s": round(compile_s, 1),
        "loop_bytes": read.carried_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": peak,
        "memory_bytes": int(chip.memory),
        "calls": [_cost(job, call, part, chip, axes) for call, part in parts],
        "collectives": [each._asdict() for each in read.collectives],
        "all_reduces_per_layer": sum(each.count for each in large)
        / sum(config.num_layers for config in job.configs),
        "mosaic_calls": read.mosaic_calls,
        "cache_writes": read.cache_writes,
    }


def _stream_bytes(calls: list[Call], axes: dict[str, int], config) -> int:
    """Bytes a device holds of the residual stream of the narrowest step."""
    rows = math.prod(axes.get(axis, 1) for axis in placement.MESH_AXES["rows"])
    lanes = min(math.prod(c.query.tokens.shape) for c in calls if c.is_step)
    return lanes // rows * config.width * 2


def _cost(job: Job, call: Call, part, chip: Chip, axes) -> dict[str, Any]:
    """The cost of one call on one device."""
    config = job.configs[call.role]
    analysis = part.cost_analysis()
    batch, width = call.query.tokens.shape
    slots = max(leaf.shape[2] for leaf in jax.tree.leaves(call.cache) if leaf.ndim == 4)
    params = job.params if len(job.models) == 1 else job.params[call.role]
    weights = _weights(params, config)
    # Replicas over "data" each read all the weights for their own rows.
    replicas = axes.get("data", 1)
    chips = math.prod(axes.values()) // replicas
    rows = batch / replicas
    attention = 4.0 * slots * config.num_layers * config.num_heads * config.head_dim
    machine = hardware.Hardware(
        "there", chips * chip.flops, chips * chip.bandwidth, weights, 2,
        _total_bytes(call.cache) / batch / slots, "",
    )  # fmt: skip
    exchanged = sum(
        each.count * each.bytes * (2 if each.kind == "all-reduce" else 1)
        for each in hlo.read(part.as_text() or "").collectives
    )
    return {
        "model": config.name,
        "rows": batch,
        "lanes": width,
        "flops": analysis.get("flops"),
        "bytes": analysis.get("bytes accessed"),
        "flops_by_formula": rows * width * (2.0 * weights + attention) / chips,
        "roofline_s": hardware.roofline(machine, width, batch=int(rows), context=slots),
        "exchanged_bytes": exchanged,
        "exchange_s": exchanged / chip.links,
    }


def _weights(params, config) -> float:
    """Weights that one token is multiplied with."""
    total = sum(
        leaf.size * _share(config, leaf)
        for leaf in jax.tree.leaves(params)
        if leaf.ndim > 1
    )
    return total - (0 if config.tied else params["embed"].size)


def _share(config, leaf) -> float:
    """The part of a parameter that one token meets: its own experts."""
    if leaf.ndim < 3:
        return 1.0
    return config.experts.top_k / config.experts.num_experts


def _lowered(job: Job, calls: list[Call]) -> dict[str, Any]:
    program = _program(job).lower(lowering_platforms=("cuda",))
    alone = [
        _lower_call(job, call).lower(lowering_platforms=("cuda",))
        for call in calls
        if call.is_step
    ]
    del alone  # lowering is the check
    config = job.configs[0]
    weights = _weights(job.params if len(job.models) == 1 else job.params[0], config)
    return {
        "custom_calls": hlo.custom_calls(program.as_text() or ""),
        "calls": [
            {
                "model": job.configs[call.role].name,
                "rows": call.query.tokens.shape[0],
                "lanes": call.query.tokens.shape[1],
                "flops_by_formula": 2.0 * weights * math.prod(call.query.tokens.shape),
            }
            for call in calls
            if call.is_step and call.role == 0
        ],
    }


def _total_bytes(tree) -> int:
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
        lines.append(f"lowered only; custom calls: {found['custom_calls'] or 'none'}")
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
    for each in found.get("collectives", ()):
        where = "loop" if each["in_loop"] else "before the loop"
        lines.append(
            f"  {each['count']:4d} {each['kind']:<18} {each['shape']:<28} "
            f"{each['bytes']:>12,} bytes  {where}"
        )
    return "\n".join(lines)
