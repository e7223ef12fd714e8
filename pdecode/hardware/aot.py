"""What a decode costs on hardware that is not here: compiled for it, never run.

With the `tpu-aot` extra (libtpu) XLA compiles for a TPU topology on a machine that has
none. Parameters, cache and prompt are shapes with shardings; nothing is materialised.
For CUDA the program is lowered, and only what lowering knows is reported, unless jax's
CUDA plugin is installed (the packages jax-cuda12-pjrt, jax-cuda12-plugin and
nvidia-cuda-nvcc-cu12, in the version of jax): it then compiles for an H100, without the
measurements by which a GPU chooses its products.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct
from jax.sharding import SingleDeviceSharding

from pdecode import decode, recipes, rng, sharding
from pdecode import knobs as knob_rules
from pdecode.checkpoints import loading
from pdecode.contracts import Model, Prompt, Sampling
from pdecode.hardware import beside, chips, costs, hlo
from pdecode.hardware.costs import Call
from pdecode.kernels.head import api as vocab_head
from pdecode.models import (
    fusing,
    shapes,
    transformer,
)
from pdecode.sharding import placement


class Job(NamedTuple):
    """A decode as shapes: what `run` would get, and the mesh it lives on."""

    method: Callable
    models: tuple[Any, ...]  # Model, or Heads on the first
    configs: tuple[Any, ...]
    trees: tuple[Any, ...]  # parameters of each model as shapes
    prompt: Prompt  # shapes
    settings: dict[str, Any]
    knobs: dict[str, Any]  # shapes: a program serves all their values
    sizes: dict[str, Any]
    mesh: Any

    @property
    def params(self) -> Any:
        """What `run` gets: the trees by role."""
        return dict(zip(knob_rules.roles(self.method), self.trees, strict=True))


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
    `drafter` name a shape of `models.shapes` or a checkpoint folder, of which only the
    configuration is read; a drafter takes the target's vocabulary. A method with heads
    gets one a drafted token, as wide as the stream. `mesh` (None:
    `chips.default_mesh`), `batch_size` (None: one row a device, at least 8), bfloat16
    throughout. `costs.text` writes the result for people.

    The cost of a call is that of one call (apply, and the head on every lane) compiled
    by itself with the same placement: inside the loop it cannot be told apart. The
    compiler sees no arithmetic inside kernels and counts one tile of the vocabulary;
    the count by formula has both, and the roofline is made from it.

    Raises ValueError for sizes below one, unknown names, what does not fit the method,
    a mesh that does not fit the target, and programs that its compiler refuses.
    """
    for name, size in (
        ("batch_size", batch_size),
        ("prompt_len", prompt_len),
        ("max_new_tokens", max_new_tokens),
    ):
        if size is not None and size < 1:
            raise ValueError(f"{name}={size} must be at least 1")
    generation, devices = chips.devices(target)
    config = shape_of(model)
    axes = mesh or chips.default_mesh(len(devices), config.num_kv_heads)
    if math.prod(axes.values()) != len(devices):
        raise ValueError(f"the mesh {axes} does not use all {len(devices)} devices")
    if batch_size is None:
        batch_size = max(8, len(devices))
    if method is None:
        method = "llada" if config.predicts == "masked" else "autoregressive"
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
        total = costs.total_bytes(job.trees)
        cached = sum(costs.total_bytes(call.cache) for call in _caches(calls))
        found |= {
            "num_params": sum(leaf.size for leaf in jax.tree.leaves(job.trees)),
            "params_bytes": total,
            "cache_bytes": cached,
            "share_bytes": (total + cached) // len(devices),
        }
        if generation is None:
            return found | _for_cuda(job, calls, devices[0])
        return found | _compiled(job, calls, chips.CHIPS[generation], axes)


def shape_of(name: str) -> Any:
    """The configuration of a known shape or of a checkpoint folder, in bfloat16."""
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


def _job(method, config, drafter, mesh, batch_size, prompt_len, settings) -> Job:
    _, recipe, implied, _ = recipes.find(method)
    configs = [config]
    roles = knob_rules.roles(recipe)
    if drafter is not None and "drafter" not in roles:
        raise ValueError(f"{method} takes no drafter, but drafter={drafter!r}")
    if "drafter" in roles:
        if drafter is None:
            raise ValueError(f"{method} needs a drafter: name a shape or a folder")
        small = shape_of(drafter)
        configs.append(
            dataclasses.replace(
                small, vocab_size=config.vocab_size, attention=config.attention,
                predicts=config.predicts, mask_id=config.mask_id,
                eos_ids=config.eos_ids,
            )
        )  # fmt: skip
    knobs, sizes = knob_rules.split(recipe, {**implied, **settings})
    models, trees = [], []
    for each in configs:
        made = transformer.make_model(each)
        models.append(made if mesh is None else sharding.on_mesh(made, mesh))
        tree = jax.eval_shape(
            lambda each=each: transformer.init(each, jax.random.key(0))
        )
        tree = jax.tree.map(lambda s: ShapeDtypeStruct(s.shape, jnp.bfloat16), tree)
        trees.append(_placed(tree, mesh, placement.specs))
    for role in set(roles) & beside.ROLES:
        made, tree = beside.shapes(role, sizes, config)
        models.append(made)
        trees.append(_placed(tree, mesh, placement.specs))
    row: Any = ShapeDtypeStruct((batch_size,), jnp.int32)
    tokens: Any = ShapeDtypeStruct((batch_size, prompt_len), jnp.int32)
    return Job(
        method=recipe,
        models=tuple(models),
        configs=tuple(configs),
        trees=tuple(trees),
        prompt=_placed(Prompt(tokens, row, row, row), mesh, placement.row_specs),
        settings={**implied, **settings},
        knobs=jax.tree.map(lambda x: ShapeDtypeStruct(x.shape, x.dtype), knobs),
        sizes=sizes,
        mesh=mesh,
    )


def _placed(tree, mesh, specs):
    if mesh is None:
        return tree
    return jax.tree.map(
        lambda s, to: ShapeDtypeStruct(s.shape, s.dtype, sharding=to),
        tree,
        specs(tree, mesh),
    )


def _calls(job: Job) -> list[Call]:
    """Every shape of call that the decoder makes, found by tracing it."""
    noted: list[tuple[int, Any, Any]] = []

    def noting(model: Model, role: int) -> Model:
        def note(call):
            def apply(params, query, cache):
                seen = jax.tree.map(
                    lambda x: ShapeDtypeStruct(x.shape, x.dtype), (query, cache)
                )
                noted.append((role, *seen))
                return call(params, query, cache)

            return apply

        return model._replace(apply=note(model.apply), encode=note(model.encode))

    models = [
        noting(model, role) if isinstance(model, Model) else model
        for role, model in enumerate(job.models)
    ]

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
    num_before = len(noted)
    jax.eval_shape(
        lambda params, prompt, state, knobs: decoder(knobs).step(
            params, keys_of(prompt), state
        ),
        job.params, job.prompt, state, job.knobs,
    )  # fmt: skip
    calls = [
        Call(role, query, cache, is_step=index >= num_before)
        for index, (role, query, cache) in enumerate(noted)
    ]
    return list({str(call): call for call in calls}.values())


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
    query, cache = _placed((call.query, call.cache), job.mesh, placement.row_specs)
    # The cache is given away, as the loop's is: no copy of it is counted.
    one = jax.jit(_one_call, static_argnames="model", donate_argnums=2)
    return one.trace(job.trees[call.role], query, cache, model=job.models[call.role])


def _program(job: Job):
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced, _ = decode.traced(
        job.method, job.models, job.params, job.prompt, key,
        **job.knobs, **job.sizes,
    )  # fmt: skip
    return traced


def _compiled(job: Job, calls: list[Call], chip: chips.Chip, axes) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        program = _program(job).lower(lowering_platforms=("tpu",)).compile()
        compile_s = time.perf_counter() - began
        text = program.as_text() or ""
        parts = [
            (call, _lower_call(job, call).lower(lowering_platforms=("tpu",)).compile())
            for call in calls
            if call.is_step
        ]
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"the compiler refused the program or cannot print it: {error}"
        ) from None
    memory: Any = program.memory_analysis()
    peak = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes
        - memory.alias_size_in_bytes + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )  # fmt: skip
    read = hlo.read(text)
    stream = costs.stream_bytes(calls, axes, job.configs[0].width)
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
        "calls": [
            costs.on_chip(
                job.configs[call.role], job.trees[call.role], call, part, chip, axes
            )
            for call, part in parts
        ],
        "collectives": [each._asdict() for each in read.collectives],
        "all_reduces_per_layer": sum(each.count for each in large)
        / sum(config.num_layers for config in job.configs),
        "mosaic_calls": read.mosaic_calls,
        "cache_writes": read.cache_writes,
    }


def _for_cuda(job: Job, calls: list[Call], device: Any) -> dict[str, Any]:
    """What lowering knows and, with a `device` to compile for, what compiling does.

    Parameters are fused, as a model on one GPU has them.
    """
    fused = tuple(jax.eval_shape(fusing.fused, tree) for tree in job.trees)
    parts = job._replace(trees=fused)
    if device is not None:
        place = SingleDeviceSharding(device)
        parts = jax.tree.map(
            lambda s: ShapeDtypeStruct(s.shape, s.dtype, sharding=place),
            (fused, job.prompt, job.knobs),
        )
        parts = job._replace(trees=parts[0], prompt=parts[1], knobs=parts[2])
    with chips.gpu_known():
        program = _program(parts).lower(lowering_platforms=("cuda",))
        steps = [  # lowering is the check
            (call, _lower_call(parts, call).lower(lowering_platforms=("cuda",)))
            for call in calls
            if call.is_step
        ]
    found: dict[str, Any] = {"custom_calls": hlo.custom_calls(program.as_text() or "")}
    if device is not None:
        began = time.perf_counter()
        memory: Any = program.compile().memory_analysis()
        found["compile_s"] = round(time.perf_counter() - began, 1)
        found["temporary_bytes"] = memory.temp_size_in_bytes
    weights = costs.num_weights(job.trees[0], job.configs[0])
    found["calls"] = [
        {
            "model": job.configs[call.role].name,
            "rows": call.query.tokens.shape[0],
            "lanes": call.query.tokens.shape[1],
            "flops_by_formula": 2.0 * weights * math.prod(call.query.tokens.shape),
            "kernels": None if device is None else hlo.num_kernels(step.compile()),
        }
        for call, step in steps
        if call.role == 0
    ]
    return found
