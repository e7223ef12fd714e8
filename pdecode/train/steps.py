"""The state of a run, where it lives, and the one compiled step that changes it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdecode import rng
from pdecode.sharding import placement
from pdecode.train import objectives, optimizers
from pdecode.train.config import TrainConfig

GOOD = -1  # of state["bad"]: no step has gone wrong


class Program(NamedTuple):
    """The functions of a run, compiled for its mesh."""

    init: Any  # (key, given) -> state
    step: (
        Any  # (state, frozen, batch, step, signals) -> (state, seen); state is donated
    )
    shapes: Any  # of the state, with shardings
    rows: NamedSharding  # of a batch's leaves
    whole: NamedSharding


def make(config: TrainConfig, mesh: Mesh, given: Any, update=None) -> Program:
    """The program of `config` on `mesh`.

    The state is {"params", "opt", "bad"} and "ema" where there is a moving average:
    float32 parameters, what the optimizer remembers, and the first step whose loss,
    gradient or parameters were not finite. From that step on nothing changes, so what
    is kept and stored is always what was there before it.

    `given` holds the parameters to begin with, or is None; `update` replaces the
    optimizer of the config.
    """
    objective = objectives.of(config)
    update = optimizers.make(config) if update is None else update
    key_init, key_noise = jax.random.split(rng.key(config.seed))
    whole = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, placement.spec(("rows",), (config.batch_size,), mesh))

    def init(given):
        params = objective.start(config, key_init, given)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
        state = {"params": params, "opt": update.init(params), "bad": jnp.int32(GOOD)}
        return state | ({"ema": params} if config.ema_decay else {})

    shapes = jax.eval_shape(init, given)
    places = _places(shapes, mesh)
    shapes = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=place
        ),
        shapes,
        places,
    )
    rate, loss = optimizers.learning_rate(config), objective.loss(config)
    noise = None if objective.noise is None else objective.noise(config)

    def step(state, frozen, batch, number, signals):
        key = jax.random.fold_in(key_noise, number)
        if noise is not None:
            batch = noise(batch, key)
        models = frozen | ({"ema": state["ema"]} if "ema" in state else {})
        value, grads = _gradient(
            loss, state["params"], models, batch, key, number, config.accumulate, rows
        )
        norm = optax.tree.norm(grads)
        changes, opt = update.update(grads, state["opt"], state["params"])
        changes = jax.tree.map(lambda change: rate(number) * change, changes)
        if objective.rates is not None:
            changes = objective.rates(config, changes, number)
        params = optax.apply_updates(state["params"], changes)
        new = {"params": params, "opt": opt}
        if "ema" in state:
            new["ema"] = optimizers.average(state["ema"], params, config.ema_decay)
        is_good = jnp.isfinite(value) & jnp.isfinite(norm) & _all_finite(params)
        now = jnp.where(is_good, GOOD, number)
        bad = jnp.where(state["bad"] == GOOD, now, state["bad"])
        skipped = jnp.isin(number, jnp.asarray(config.skip_steps, jnp.int32))
        bad = jnp.where(skipped, state["bad"], bad)
        kept = (bad != GOOD) | skipped
        old = {name: state[name] for name in new}
        new = jax.tree.map(lambda a, b: jnp.where(kept, a, b), old, new)
        seen = {"loss": value, "grad_norm": norm, "bad": bad, "stop": signals.max()}
        return {**new, "bad": bad}, seen

    return Program(
        jax.jit(init, out_shardings=places),
        jax.jit(step, donate_argnums=0, out_shardings=(places, None)),
        shapes,
        rows,
        whole,
    )


def _gradient(loss, params, frozen, batch, key, number, parts, rows):
    """Loss and gradient of the mean over all that a batch scores, in `parts` parts."""

    def of_part(part, key):
        return jax.value_and_grad(loss, has_aux=True)(params, frozen, part, key, number)

    if parts == 1:
        (value, _), grads = of_part(batch, key)
        return value, grads

    # Part i has the rows i, i + parts, ..: every device keeps its own.
    def cut(leaf):
        leaf = leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)
        place = PartitionSpec(None, *rows.spec)
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(rows.mesh, place))

    def add(total, part):
        index, part = part
        (value, aux), grads = of_part(part, jax.random.fold_in(key, index))
        weight = aux["weight"]
        some = (weight * value, weight, jax.tree.map(lambda g: weight * g, grads))
        return jax.tree.map(jnp.add, total, some), None

    zero = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
    many = (jnp.arange(parts), jax.tree.map(cut, batch))
    (value, weight, grads), _ = jax.lax.scan(add, zero, many)
    weight = jnp.maximum(weight, 1.0)
    return value / weight, jax.tree.map(lambda g: g / weight, grads)


def _all_finite(tree) -> jax.Array:
    checks = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(checks).all()


def _places(shapes: Any, mesh: Mesh) -> Any:
    """A sharding for each leaf: parameters by the table, what mirrors one as it is."""
    table = {
        _names(path): place
        for path, place in jax.tree_util.tree_leaves_with_path(
            placement.specs(shapes["params"], mesh)
        )
    }
    sizes = {
        _names(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes["params"])
    }
    whole = NamedSharding(mesh, PartitionSpec())

    def place(path, leaf):
        names = _names(path)
        for start in range(len(names)):
            tail = names[start:]
            if sizes.get(tail) == leaf.shape:
                return table[tail]
        return whole

    return jax.tree_util.tree_map_with_path(place, shapes)


def _names(path) -> tuple[str, ...]:
    return tuple(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))


def lasting(state: dict) -> dict:
    """What of a state a checkpoint keeps: all but whether it went wrong."""
    return {name: part for name, part in state.items() if name != "bad"}


def put_rows(program: Program, array: np.ndarray) -> jax.Array:
    """A host array [B, ...] split over the rows of the mesh, each device its part."""
    return jax.make_array_from_callback(array.shape, program.rows, array.__getitem__)


def put(program: Program, array: np.ndarray) -> jax.Array:
    """A host array, split by its rows where they divide, else on every device."""
    mesh, array = program.rows.mesh, np.asarray(array)
    logical = ("rows",) * (array.ndim > 0) + (None,) * (array.ndim - 1)
    spec = placement.spec(logical, array.shape, mesh)
    return jax.make_array_from_callback(
        array.shape, NamedSharding(mesh, spec), array.__getitem__
    )


def flags(program: Program, is_up: bool) -> Any:
    """int32, one a device: whether its process was asked to stop."""
    mesh = program.rows.mesh
    if jax.process_count() == 1:
        return np.zeros(1, np.int32)  # asked outside, without waiting
    place = NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names)))
    own = np.full(mesh.size, is_up, np.int32)
    return jax.make_array_from_callback(own.shape, place, own.__getitem__)


def bytes_per_device(shapes: Any) -> int:
    """Bytes of a tree of shapes with shardings on one device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )
