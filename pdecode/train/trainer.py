"""One flat trainer: texts, weights, folder, state, loop, result.

Resuming is exact: a batch is a function of (seed, step), so is the noise of a step, and
the state is restored to the bit; a killed run that is started again ends with the same
bits as one that was never killed (same machine, same number of devices).
"""

import collections
import contextlib
import os
import pathlib
import shlex
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdecode.data import packing, texts
from pdecode.data.texts import Text
from pdecode.models import embedded
from pdecode.sharding import peers, processes
from pdecode.train import (
    export,
    folder,
    objectives,
    optimizers,
    plan,
    saves,
    settings,
    signals,
    sources,
    steps,
)
from pdecode.train.config import TrainConfig
from pdecode.train.signals import Interrupted

# Steps that may be on their way while the loop goes on: what a step says of itself is
# read this much later, so that nothing ever waits for the device.
_LAG = 4
# Settings that say where something lies, which may differ between machines: what lies
# there is compared by its hash.
_PLACES = ("data_dir", "start_from", "frozen")


class Result(NamedTuple):
    """A finished run: parameters as numpy arrays and the record that was written."""

    params: Any
    record: dict


class Inputs(NamedTuple):
    """What a run reads, checked."""

    training: Text
    validation: Text
    found: dict[str, sources.Source]
    facts: dict  # hashes of all of it


def train(
    config: TrainConfig,
    workdir: str | os.PathLike,
    *,
    streams: tuple[np.ndarray, np.ndarray] | None = None,
    mesh: dict[str, int] | None = None,
    command: str | None = None,
    overwrite: bool = False,
    log: Callable[[str], None] = print,
) -> Result:
    """Trains to `config.steps` in a folder, from its last checkpoint if it has one.

    `pdecode.train.folder` says what the folder gets. `streams` are the training and
    validation token streams (integer [N]); None: those of `config.data_dir`. `mesh`
    gives axes and sizes, as {"data": 2, "fsdp": 4}: parameters and what the optimizer
    remembers are placed by `pdecode.sharding.placement`, rows are split over data and
    fsdp; None: all devices over the rows. `overwrite` gives up what the folder holds.

    Several processes (`pdecode.sharding.processes.start`) make the same call on a
    folder they share: each has the whole stream and puts its own rows of a batch on its
    devices, all save and restore their part of a checkpoint, and the first writes the
    rest and is the only one to log.

    Raises:
      ValueError: a folder that holds another run or belongs to a process, texts or
        weights that do not fit, a mesh that does not divide, or processes that differ.
      FloatingPointError: a loss, gradient or parameter was not finite; the state before
        that step is saved.
      Interrupted: SIGTERM or Ctrl-C came; the state is saved.
    """
    workdir = pathlib.Path(workdir).absolute()
    is_first = jax.process_index() == 0
    log = log if is_first else (lambda line: None)
    ours = export.settings(config)
    for field in _PLACES:
        ours.pop(field)
    code = processes.code_version()
    processes.agree(
        {"settings": ours, "mesh": mesh, "code": code, "jax": jax.__version__}
    )
    with contextlib.ExitStack() as stack:

        def claim():
            if is_first:
                stack.enter_context(folder.claimed(workdir))

        processes.together(claim)
        inputs = processes.together(lambda: read(config, workdir, streams))
        processes.agree(inputs.facts)
        places = processes.together(lambda: plan.mesh(config, mesh))
        _check_shared(workdir)
        if overwrite and is_first:
            # Only now that all of the new run is known to be right.
            folder.clear(workdir)
        stack.enter_context(
            peers.watched(
                "start all processes again with the same command; the run goes on from "
                "its last checkpoint"
            )
        )
        came = stack.enter_context(signals.watched())
        return _run(config, workdir, inputs, places, command, came, log)


def read(config: TrainConfig, workdir: pathlib.Path | None, streams=None) -> Inputs:
    """Texts and weights of a run, and their hashes; ValueError for a misfit."""
    found = sources.read(config, workdir)
    streams = texts.read(config.data_dir, config.data) if streams is None else streams
    both = []
    for tokens, name in zip(streams, texts.SPLITS, strict=True):
        text = Text(tokens, name, config.scored_unit, config.given_ids, config.own_rows)
        low = 2 if name == "validation" else config.batch_size * config.row_len
        model = config.model
        texts.check(
            text, vocab_size=model.vocab_size, mask_id=model.mask_id, min_len=low
        )
        both.append(text)
    training, validation = both
    facts = {
        "data_hash": packing.fingerprint(training.tokens),
        "validation_hash": packing.fingerprint(validation.tokens),
        "weights": {field: each.sha256 for field, each in found.items()},
    }
    return Inputs(training, validation, found, facts)


def _run(config, workdir, inputs, mesh, command, came, log) -> Result:
    is_first = jax.process_index() == 0
    made = saves.manager(workdir / folder.CHECKPOINTS)
    stack = contextlib.ExitStack()
    stack.callback(made.close)
    with stack:
        mine = export.settings(config) | inputs.facts
        latest = made.latest_step() or 0
        opened = processes.together(lambda: folder.opened(workdir, mine, latest))
        if opened.finished is not None:
            log(f"finished already: {workdir / folder.RECORD}")
            params, record = embedded.read_pair(workdir, "weights")
            return Result(params, record)
        if is_first:
            folder.write_json(workdir / folder.CONFIG, opened.content)

        # State.
        start = inputs.found.get("start_from")
        given = None if start is None else start.params
        program = steps.make(config, mesh, given)
        processes.together(lambda: plan.check_divided(config, inputs.found, program))
        frozen = plan.placed(config, inputs.found, mesh)
        first, kept = saves.restore(made, steps.lasting(program.shapes), log)
        if kept is None:
            state = program.init(given)
        else:
            state = kept | {"bad": steps.put(program, np.asarray(steps.GOOD, np.int32))}
            log(f"resumed at step {first}")
        spent = folder.keep_metrics(workdir, first) if is_first else 0.0

        run = _Run(config, workdir, inputs, program, frozen, made, mine, command, log)
        state, seconds = _loop(run, state, first, spent, came)
        return _finish(run, state, seconds, mesh, opened.content)


class _Run(NamedTuple):
    """What the loop and the end of a run read."""

    config: TrainConfig
    workdir: pathlib.Path
    inputs: Inputs
    program: steps.Program
    frozen: dict
    made: Any
    mine: dict
    command: str | None
    log: Callable[[str], None]


def _loop(run: _Run, state, first: int, spent: float, came: list[str]):
    """Steps `first` .. config.steps - 1; the last state and the seconds in all."""
    config, program = run.config, run.program
    objective = objectives.find(config.objective)
    sampler = packing.sampler(
        run.inputs.training.tokens,
        row_len=config.row_len,
        batch_size=config.batch_size,
        seed=config.seed,
        is_whole=config.own_rows is not None,
    )
    pending: collections.deque = collections.deque()
    is_asked = False
    began = time.monotonic()
    last = first, began  # step, and time when the line before was written
    for step in range(first, config.steps):
        row_len = config.row_len
        if config.short_len is not None and step < config.steps - config.long_steps:
            row_len = config.short_len
        rows = sampler.batch(step).reshape(-1, row_len)
        if objective.prepare is not None:
            rows = objective.prepare(config, rows, step)
        batch = {"tokens": steps.put_rows(program, rows)}
        state, seen = program.step(
            state, run.frozen, batch, np.int32(step), steps.flags(program, bool(came))
        )
        pending.append((step, seen))
        done = step + 1
        is_last = done == config.steps
        saves_now = done % config.checkpoint_every == 0 or is_last
        shows_now = done % config.eval_every == 0 or is_last
        # One process stops where it is; several stop where all of them have heard.
        is_asked = is_asked or (jax.process_count() == 1 and bool(came))
        while pending and (len(pending) > _LAG or saves_now or shows_now or is_asked):
            number, told = pending.popleft()
            if int(told["bad"]) != steps.GOOD:
                _stop_over(run, state, number, told)
            is_asked = is_asked or int(told["stop"]) > 0
        if saves_now or is_asked:
            saves.save(run.made, done, steps.lasting(state))
        if is_asked and not is_last:
            raise Interrupted(
                f"stopped by {' '.join(came) or 'another process'} at step {done} of "
                f"{config.steps}, which is saved; go on with: "
                f"{run.command or 'the same call'}"
            )
        if shows_now:
            now = time.monotonic()  # steps a second: without figures, with compiling
            times = spent + now - began, (done - last[0]) / (now - last[1])
            _show(run, state, step, times, seen, row_len)
            last = done, time.monotonic()
    return state, round(spent + time.monotonic() - began, 1)


def _show(run: _Run, state, step: int, times: tuple, seen: dict, row_len: int):
    """A line of progress: figures of some validation text; `times` as in `_loop`."""
    line = {
        "step": step + 1,
        "seconds": round(times[0], 1),
        "tokens_per_s": round(times[1] * run.config.batch_size * run.config.row_len),
        "loss": float(seen["loss"]),
        "grad_norm": float(seen["grad_norm"]),
        "learning_rate": float(optimizers.learning_rate(run.config)(step)),
    }
    # Positions that no row has reached yet would only tell that they are new.
    line |= _figures(run, state, row_len=row_len, max_rows=run.config.eval_rows)
    if jax.process_index() == 0:
        text = folder.dumps(line)
        with (run.workdir / folder.METRICS).open("a") as file:
            file.write(text + "\n")
        run.log(text)


def _figures(run: _Run, state, **sizes) -> dict:
    params = state["ema"] if "ema" in state else state["params"]

    def put(array):
        return steps.put(run.program, array)

    text = run.inputs.validation
    return export.figures(run.config, params, run.frozen, text, put=put, **sizes)


def _stop_over(run: _Run, state, number: int, told: dict):
    """Saves what was there before a step that was not finite, and raises."""
    done = int(told["bad"])
    if done and done not in run.made.all_steps():
        saves.save(run.made, done, steps.lasting(state))
    if jax.process_index() == 0:
        path = run.workdir / folder.CONFIG
        content = folder.read_json(path) or {}
        folder.write_json(path, {**content, "stopped_at": done})
    rate = float(optimizers.learning_rate(run.config)(number))
    skipped = ",".join(map(str, (*run.config.skip_steps, done)))
    kept = f"checkpoint {done} holds" if done else "the start is"
    raise FloatingPointError(
        f"step {done + 1} is not finite: loss {float(told['loss'])}, gradient norm "
        f"{float(told['grad_norm'])}, rate {rate:g}; {kept} the state before it. "
        f"Start again with --set skip_steps='({skipped},)' to leave that batch out, or "
        f"with a lower --set learning_rate"
    )


def _finish(run: _Run, state, seconds: float, mesh, content: dict) -> Result:
    """Figures of the whole validation text, then weights and record."""
    config, inputs = run.config, run.inputs
    figures = _figures(run, state)
    if _has_gap(figures):
        raise FloatingPointError(
            f"the figures after step {config.steps} are not finite: no weights are "
            "written; start in another folder with a lower learning_rate"
        )
    params = saves.whole(state["ema"] if "ema" in state else state["params"])
    record = export.describe(
        config,
        params,
        num_devices=mesh.size,
        steps=config.steps,
        seconds=seconds,
        **inputs.facts,
        **sources.facts(inputs.found),
        text={t.name: t.describe() for t in (inputs.training, inputs.validation)},
        validation=figures,
        mesh=dict(mesh.shape),
        changes=content.get("changes", []),
        command=run.command,
    )
    if jax.process_index() == 0:
        record |= export.beside(config, run.workdir, params, record)
        folder.set_aside(run.workdir)
        export.write(run.workdir, "weights", params, record, dtype=jnp.float32)
    return Result(params, record)


def _has_gap(value: Any) -> bool:
    """Whether a figure is no finite number."""
    numbers = [each for each in jax.tree.leaves(value) if isinstance(each, float)]
    return not np.isfinite(numbers).all()


def _check_shared(workdir: pathlib.Path) -> None:
    """ValueError where a process does not see the folder that process 0 writes."""
    if jax.process_count() == 1:
        return
    owner = (
        (workdir / "run.lock").read_text() if (workdir / "run.lock").exists() else ""
    )
    seen = processes.shared(owner)
    blind = [i for i, each in enumerate(seen) if each != seen[0]]

    def check():
        if blind and jax.process_index() == 0:
            raise ValueError(
                f"process {blind[0]} does not see the folder {workdir} of process 0: "
                "--out must be one folder that all processes share"
            )

    processes.together(check)


def run_config(
    path: str | os.PathLike,
    overrides: Iterable[str] = (),
    workdir: str | os.PathLike | None = None,
    *,
    mesh: dict[str, int] | None = None,
    overwrite: bool = False,
    log: Callable[[str], None] = print,
) -> Result:
    """Trains what a config file says, with "field=value" overrides.

    `workdir` None is results/NAME, NAME being the config's. Errors as in
    `settings.load`, `settings.override` and `train`.
    """
    overrides = list(overrides)
    config = processes.together(
        lambda: settings.override(settings.load(path), overrides)
    )
    out = pathlib.Path("results") / config.name if workdir is None else workdir
    parts = ["pdecode", "train", "--config", os.fspath(path), "--out", os.fspath(out)]
    for each in overrides:
        parts += ["--set", each]
    if mesh is not None:
        parts += ["--mesh", ",".join(f"{axis}={size}" for axis, size in mesh.items())]
    command = shlex.join(parts)
    return train(config, out, mesh=mesh, command=command, overwrite=overwrite, log=log)


def dry_run(
    path: str | os.PathLike,
    overrides: Iterable[str] = (),
    mesh: dict[str, int] | None = None,
) -> str:
    """What `run_config` would train, and how, in lines; writes and computes nothing."""
    config = settings.override(settings.load(path), overrides)
    inputs, places = read(config, None), plan.mesh(config, mesh)
    start = inputs.found.get("start_from")
    program = steps.make(config, places, None if start is None else start.params)
    plan.check_divided(config, inputs.found, program)
    return plan.text(config, program, inputs)
