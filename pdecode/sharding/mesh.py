"""Meshes, and where arrays live on them; `jax.jit` does the rest.

    mesh = sharding.make_mesh(data=2, tensor=4)
    generation, stats = pdecode.run(
        method,
        sharding.on_mesh(model, mesh),
        sharding.shard_params(params, mesh),
        sharding.shard_rows(prompt, mesh),
        sharding.replicate(key, mesh),
        max_new_tokens=64,
    )

On several TPUs run it under `jax.set_mesh(mesh)`: the attention kernel and the split
vocabulary head are mapped over the mesh in context.

The table in `pdecode.sharding.placement` says which mesh axes split what. All axes are
of type Auto: with Explicit axes a while loop over sharded caches must spell out the
sharding of every intermediate.
"""

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pdecode.contracts import Model
from pdecode.sharding import placement

AXES = ("data", "fsdp", "tensor", "expert", "sequence")


def make_mesh(*, devices: Sequence | None = None, **sizes: int) -> Mesh:
    """A mesh of the first devices, such as make_mesh(data=2, tensor=4).

    `devices` (None: all that JAX sees) may be those of a topology that is not here.
    Raises ValueError for an unknown axis or more devices than there are.
    """
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise ValueError(f"unknown mesh axis {unknown[0]!r}; known: {', '.join(AXES)}")
    for axis, size in sizes.items():
        if size < 1:
            raise ValueError(f"mesh axis {axis}={size} must be at least 1")
    wanted = math.prod(sizes.values())
    known = jax.devices() if devices is None else devices
    if wanted > len(known):
        raise ValueError(
            f"a mesh of {sizes} needs {wanted} devices, but there are {len(known)}"
        )
    shape, names, devices = tuple(sizes.values()), tuple(sizes), known[:wanted]
    types = (AxisType.Auto,) * len(sizes)
    try:
        return jax.make_mesh(shape, names, axis_types=types, devices=devices)
    except NotImplementedError:
        # No axes of the chips' torus multiply to these: a torus 4 x 4 x 4 has no 8. Two
        # axes of the mesh then share one of the torus.
        grid = mesh_utils.create_device_mesh(
            shape, devices, allow_split_physical_axes=True
        )
        return Mesh(grid, names, axis_types=types)


@functools.cache
def on_mesh(model: Model, mesh: Mesh) -> Model:
    """`model` with its cache split over the mesh, and its outputs over their rows.

    Without it the compiler chooses the layout of the cache. Equal arguments give the
    same object, as a static argument should. Wrap the models that a recipe is given;
    what it builds from them (guidance, for example) inherits the placement.
    """

    def init_cache(prompt, num_slots):
        return constrain_rows(model.init_cache(prompt, num_slots), mesh)

    is_gathered = mesh.shape.get("fsdp", 1) > 1

    def placed(call):
        def apply(params, query, cache):
            if is_gathered:
                # Weights do not change in the loop, so the compiler would gather them
                # before it and carry them whole. Tied to this call's tokens they are
                # gathered where they are used.
                params, tokens = jax.lax.optimization_barrier((params, query.tokens))
                query = query._replace(tokens=tokens)
            found = call(params, query, cache)
            return constrain_rows(found, mesh)

        return apply

    def move(cache, source, target):
        return constrain_rows(model.move(cache, source, target), mesh)

    return model._replace(
        init_cache=init_cache,
        apply=placed(model.apply),
        encode=placed(model.encode),
        move=move,
    )


def constrain_rows(tree: Any, mesh: Mesh) -> Any:
    """Inside `jax.jit`: arrays [B, ...] and caches [B, H, S, D] placed by the table."""
    return jax.lax.with_sharding_constraint(tree, placement.row_specs(tree, mesh))


def shard_params(params: Any, mesh: Mesh) -> Any:
    """`params` of a transformer placed by logical axes; what does not divide is whole.

    A warning says what that is, and the bytes it takes on every device.
    Trees that are not a transformer's (a toy's, heads) are replicated.
    """
    if not isinstance(params, dict):
        return replicate(params, mesh)
    warn_of_whole(params, mesh)
    return jax.device_put(params, placement.specs(params, mesh))


def warn_of_whole(params: Any, mesh: Mesh) -> None:
    """A warning for what of `params` does not divide over `mesh`, with its bytes."""
    whole = placement.undivided(params, mesh)
    if whole:
        warnings.warn(placement.undivided_text(whole), stacklevel=3)


def shard_rows(tree: Any, mesh: Mesh) -> Any:
    """Arrays [B, ...], a Prompt for example, split over "data" and "fsdp".

    Raises ValueError where B does not divide by them.
    """
    axes = placement.MESH_AXES["rows"]
    split = math.prod(mesh.shape.get(axis, 1) for axis in axes)
    for leaf in jax.tree.leaves(tree):
        if leaf.ndim and leaf.shape[0] % split:
            raise ValueError(
                f"{leaf.shape[0]} rows do not divide over "
                f"{' x '.join(axes)} = {split} devices: add rows, or make "
                "these axes of the mesh smaller"
            )
    return jax.device_put(tree, placement.row_specs(tree, mesh))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same on every device: keys, knobs, a toy's law."""
    whole = NamedSharding(mesh, PartitionSpec())

    def put(leaf):
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(leaf, whole)
        # Across processes only plain arrays can be put.
        bits = jax.device_put(jax.random.key_data(leaf), whole)
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))

    return jax.tree.map(put, tree)
