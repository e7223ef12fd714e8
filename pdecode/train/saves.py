"""Checkpoints: the whole state, with a sum that tells a damaged one."""

import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

_KEPT = 2


def manager(folder: pathlib.Path):
    """Orbax's manager of the last states; each is there whole or not at all."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        max_to_keep=_KEPT, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(folder, options=options)


@jax.jit
def _total(tree: Any) -> jax.Array:
    """A sum of all bits by their place, the same however the arrays are split."""
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        place = jnp.zeros(words.shape, jnp.uint32)
        for axis, size in enumerate(words.shape):
            count = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
            place = place * jnp.uint32(size) + count
        odd = 2 * place + jnp.uint32(2 * number + 1)
        total = total * jnp.uint32(31) + jnp.sum(words * odd, dtype=jnp.uint32)
    return total


def save(made, step: int, state: Any) -> None:
    """Stores a state; OSError or ValueError, naming the folder, where it cannot."""
    import orbax.checkpoint as ocp

    content = {"state": state, "total": _total(state)}
    try:
        made.save(step, args=ocp.args.StandardSave(content), force=True)
        made.wait_until_finished()
    except Exception as error:
        # Tensorstore and Orbax have exceptions of their own for a full disk.
        reason = " ".join(str(error).split())[:200]
        raise OSError(
            f"checkpoint {step} could not be written to {made.directory} ({reason}); "
            "the ones before it are whole: the same command goes on from them"
        ) from error


def restore(made, shapes: Any, log: Callable[[str], None]) -> tuple[int, Any]:
    """The newest whole state and its step; (0, None) without one.

    A damaged one is moved aside, told in a line, and the one before it is taken.
    Raises ValueError if there are checkpoints and none is whole.
    """
    import orbax.checkpoint as ocp

    steps = sorted(made.all_steps(), reverse=True)
    place = NamedSharding(jax.tree.leaves(shapes)[0].sharding.mesh, PartitionSpec())
    total = jax.ShapeDtypeStruct((), jnp.uint32, sharding=place)
    wanted = {"state": shapes, "total": total}
    for step in steps:
        found: Any = None
        try:
            found = made.restore(step, args=ocp.args.StandardRestore(wanted))
            is_whole = int(found["total"]) == int(_total(found["state"]))
            reason = "its contents do not add up"
        except Exception as error:
            is_whole, reason = False, " ".join(str(error).split())[:120]
        if is_whole:
            return step, found["state"]
        log(f"checkpoint {step} is damaged ({reason}); trying the one before it")
        if jax.process_index() == 0:
            _set_aside(pathlib.Path(made.directory) / str(step))
        made.reload()
    if steps:
        raise ValueError(
            f"no checkpoint of {made.directory} is whole ({len(steps)} tried): start "
            "anew with --overwrite"
        )
    return 0, None


def _set_aside(damaged: pathlib.Path) -> None:
    """Out of the manager's sight, for whoever wants to look at it."""
    aside = damaged.parent.parent / f"damaged-{damaged.name}"
    shutil.rmtree(aside, ignore_errors=True)
    damaged.replace(aside)


def whole(tree: Any) -> Any:
    """Arrays of all devices and processes as numpy."""
    from pdecode.sharding import processes

    return jax.tree.map(np.asarray, processes.whole(tree))
