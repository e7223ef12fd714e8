"""One flat trainer: data, parameters, optimizer, loop, checkpoint, result.

Resuming is exact: a batch is a function of (seed, step), so is the noise of a step, and
the state is restored to the bit; a killed run that is started again ends with the same
bits as one that was never killed (same machine, same number of devices).
"""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pdecode import rng
from pdecode.data import packing
from pdecode.models import draft_heads as heads_module
from pdecode.models import embedded, transformer
from pdecode.train import config as config_module
from pdecode.train import export, losses
from pdecode.train.config import TrainConfig

# May differ between a run and its resumption: they do not change the past. `steps` and
# the decay may not have begun to matter; the check below sees to that.
_FREE = (
    "steps",
    "decay_steps",
    "long_steps",
    "checkpoint_every",
    "eval_every",
    "eval_rows",
    "data_dir",
)


class Result(NamedTuple):
    """A finished run: parameters as numpy arrays and the record that was written."""

    params: Any
    record: dict


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Step -> learning rate: a linear warm-up, then a cosine or constant-and-linear."""
    peak, last = config.learning_rate, config.learning_rate * config.final_fraction
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0, peak, config.warmup_steps, max(config.steps, config.warmup_steps), last
        )
    decay_start = config.steps - config.decay_steps
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, config.warmup_steps),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, last, max(config.decay_steps, 1)),
        ],
        [config.warmup_steps, decay_start],
    )


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clipped AdamW; or Muon (Jordan, 2024) for the matrices of layers, Adam elsewhere.

    Muon's updates are scaled to AdamW's size (Liu et al., 2025, arXiv:2502.16982), so
    that one learning rate serves both.
    """

    def is_matrix(path, leaf):
        names = jax.tree_util.keystr(path)
        return leaf.ndim == 2 and "layer_" in names

    def matrices(params):
        return jax.tree_util.tree_map_with_path(is_matrix, params)

    if config.optimizer == "adamw":
        update = optax.adamw(
            learning_rate(config),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        )
    else:
        update = optax.contrib.muon(
            learning_rate(config),
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=lambda params: jax.tree.map(
                lambda chosen: optax.contrib.MuonDimensionNumbers() if chosen else None,
                matrices(params),
            ),
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def _start(config: TrainConfig, key: jax.Array) -> tuple[Any, Any]:
    """Parameters to train and parameters that stay as they are."""
    given = None
    if config.init_from is not None:
        given, record = embedded.read_from(config.init_from)
        source = embedded.transformer_config(record)
        same = dataclasses.replace(
            source,
            **{f: getattr(config.model, f) for f in ("attention", "predicts", "name")},
            mask_id=config.model.mask_id,
            eos_ids=config.model.eos_ids,
        )
        if same != config.model:
            raise ValueError(
                f"init_from={config.init_from!r} holds another model than config.model"
            )
    if config.objective == "blockwise_heads":
        if given is None:
            raise ValueError("blockwise heads need init_from: their frozen target")
        params = heads_module.init(
            config.num_heads, config.model.width, config.heads_width, key
        )
        return params, given
    return (transformer.init(config.model, key) if given is None else given), {}


def _objective(config: TrainConfig):
    known = ("autoregressive", "masked_diffusion", "blockwise_heads")
    if config.objective not in known:
        raise ValueError(f"unknown objective {config.objective!r}; known: {known}")
    return getattr(losses, config.objective)(config)


def train(
    config: TrainConfig,
    workdir: str | os.PathLike,
    *,
    streams: tuple[np.ndarray, np.ndarray] | None = None,
    command: str | None = None,
    log: Callable[[str], None] = print,
) -> Result:
    """Trains to `config.steps` in a folder, from its last checkpoint if it has one.

    The folder gets config.json, checkpoints/, metrics.jsonl, and at the end
    weights.safetensors and record.json. `streams` are the training and validation
    token streams (uint16 [N]); None: the standard library corpus, from
    `config.data_dir`. Batches are split over all devices that the batch size allows.

    Several processes (`pdecode.sharding.processes.start`) make the same call on a
    folder they share: each has the whole stream and puts its own rows of a batch on its devices,
    all save and restore their part of a checkpoint, and the first writes the rest.

    Raises:
      ValueError: a folder that holds another run, a checkpoint past the point where
        this run's schedule differs from the one that made it, or a batch that several
        processes cannot divide.
      FloatingPointError: the loss is no longer finite.
    """
    import orbax.checkpoint as ocp

    workdir = pathlib.Path(workdir).absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    objective = _objective(config)

    # Data.
    if streams is None:
        training = packing.load_split("train", config.data_dir)
        validation = packing.load_split("validation", config.data_dir)
    else:
        training, validation = streams
    sampler = packing.sampler(
        training,
        row_len=config.row_len,
        batch_size=config.batch_size,
        seed=config.seed,
    )

    # State, replicated; batches are sharded over "data".
    is_first = jax.process_index() == 0
    count = len(jax.devices())
    while config.batch_size % count:
        count -= 1
    if count < len(jax.devices()) and jax.process_count() > 1:
        raise ValueError(
            f"batch_size={config.batch_size} must be a multiple of the "
            f"{len(jax.devices())} devices of {jax.process_count()} processes"
        )
    devices = jax.devices()[:count]
    mesh = jax.make_mesh(
        (count,), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_row = NamedSharding(mesh, PartitionSpec("data"))
    key_init, key_noise = jax.random.split(rng.key(config.seed))
    params, frozen = _start(config, key_init)
    update = optimizer(config)
    state = {"params": params, "opt": update.init(params)}
    state, frozen = jax.device_put((state, frozen), everywhere)

    @jax.jit
    def step_fn(state, frozen, tokens, step):
        key = jax.random.fold_in(key_noise, step)
        loss, grads = jax.value_and_grad(objective)(
            state["params"], frozen, tokens, key
        )
        updates, opt = update.update(grads, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, (
            loss,
            optax.tree.norm(grads),
        )

    # Resume.
    manager = ocp.CheckpointManager(
        workdir / "checkpoints",
        options=ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False
        ),
    )
    first = manager.latest_step() or 0
    described = _check_same_run(config, workdir, first, packing.fingerprint(training))
    if first:
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        state = manager.restore(first, args=ocp.args.StandardRestore(shapes))
        if is_first:
            log(f"resumed at step {first}")
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    lines = [line for line in lines if _step_of(line) <= first]
    spent = json.loads(lines[-1])["seconds"] if lines else 0.0
    if is_first:
        export.write_bytes(workdir / "config.json", described)
        export.write_bytes(metrics, "".join(line + "\n" for line in lines).encode())

    # Loop.
    began = time.monotonic()
    for step in range(first, config.steps):
        row_len = config.row_len
        if config.short_len is not None and step < config.steps - config.long_steps:
            row_len = config.short_len
        rows = sampler.batch(step).reshape(-1, row_len)
        if config.objective == "masked_diffusion":
            rows = packing.fill_after_eos(rows, config.eos_fill, config.seed, step)
        rows = jax.make_array_from_callback(rows.shape, by_row, rows.__getitem__)
        state, (loss, norm) = step_fn(state, frozen, rows, np.int32(step))
        done = step + 1
        is_last = done == config.steps
        if done % config.eval_every == 0 or is_last:
            value = float(loss)  # waits for the step, so that the seconds are true
            if not np.isfinite(value):
                raise FloatingPointError(f"loss {value} at step {done}")
            seconds = round(spent + time.monotonic() - began, 1)
            line = {"step": done, "seconds": seconds, "loss": value}
            line["grad_norm"] = float(norm)
            # Positions that no row has reached yet would only tell that they are new.
            params_here, frozen_here = _here((state["params"], frozen))
            line |= export.figures(
                dataclasses.replace(config, row_len=row_len, short_len=None),
                params_here,
                frozen_here,
                validation,
                config.eval_rows,
            )
            if is_first:
                with metrics.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                log(json.dumps(line))
        if done % config.checkpoint_every == 0 or is_last:
            manager.save(done, args=ocp.args.StandardSave(state))
    manager.close()

    # Result.
    trained, frozen = _here((state["params"], frozen))
    params = jax.tree.map(np.asarray, trained)
    record = export.describe(
        config,
        params,
        steps=config.steps,
        seconds=round(spent + time.monotonic() - began, 1),
        data_hash=packing.fingerprint(training),
        validation=export.figures(config, trained, frozen, validation),
        validation_hash=packing.fingerprint(validation),
        command=command,
    )
    if is_first:
        export.write(workdir, "weights", params, record, dtype=jnp.float32)
    return Result(params, record)


def run_config(
    path: str | os.PathLike,
    overrides: Iterable[str] = (),
    workdir: str | os.PathLike | None = None,
    *,
    log: Callable[[str], None] = print,
) -> Result:
    """Trains what a config file says, with "field=value" overrides.

    `workdir` None is results/NAME, NAME being the config's. Errors as in
    `config.load`, `config.override` and `train`.
    """
    overrides = list(overrides)
    config = config_module.override(config_module.load(path), overrides)
    workdir = pathlib.Path("results") / config.name if workdir is None else workdir
    settings = "".join(f" --set {setting}" for setting in overrides)
    command = f"pdecode train --config {os.fspath(path)}{settings}"
    return train(config, workdir, command=command, log=log)


def _here(tree: Any) -> Any:
    """Replicated arrays as those of one device of this process."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def _step_of(line: str) -> float:
    # A line cut short by a kill belongs to no step.
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")


def _plain(config: Any) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _check_same_run(config, workdir: pathlib.Path, first: int, data_hash: str) -> bytes:
    """config.json of this run; ValueError if the folder's run is another one."""
    path = workdir / "config.json"
    mine = _plain(config) | {"data_hash": data_hash}
    if first and path.exists():
        theirs = json.loads(path.read_text())
        # Fields that are newer than the run get their defaults.
        theirs["model"] = _plain(embedded.transformer_config({"config": theirs}))
        differ = [k for k in mine if k not in _FREE and mine[k] != theirs.get(k)]
        plan = ("steps", "decay_steps", "long_steps")
        if any(mine[k] != theirs[k] for k in plan):
            # A constant rate up to here is the same run, whatever its length.
            ends = [
                c["steps"] - max(c["decay_steps"], c["long_steps"])
                for c in (mine, theirs)
            ]
            if config.schedule != "stable" or first > min(ends):
                differ.extend(plan)
        if differ:
            raise ValueError(
                f"{workdir} holds a run with other settings ({', '.join(differ)}); "
                "choose another folder"
            )
    return (json.dumps(mine, indent=1) + "\n").encode()
