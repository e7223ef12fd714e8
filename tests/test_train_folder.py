"""A run's folder: ownership, resuming, what stops a run and what it leaves behind."""

import dataclasses
import errno
import itertools
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import CASES, RUN, case, quiet, stored_model

from pdecode.data import packing
from pdecode.models import embedded
from pdecode.train import (
    Interrupted,
    export,
    folder,
    optimizers,
    saves,
    steps,
    train,
    trainer,
)

ROOT = pathlib.Path(__file__).parent.parent
SHORT = dataclasses.replace(
    RUN, steps=4, checkpoint_every=2, eval_every=4, row_len=16, batch_size=8
)


def weights(workdir):
    return (workdir / "weights.safetensors").read_bytes()


def test_what_the_first_run_said_holds_from_its_first_second(tmp_path, monkeypatch):
    """Other settings are refused before there is any checkpoint."""
    monkeypatch.setattr(steps, "make", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(SHORT, tmp_path, **quiet())
    monkeypatch.undo()
    assert not list((tmp_path / "checkpoints").iterdir())
    other = dataclasses.replace(SHORT, learning_rate=0.05)
    with pytest.raises(ValueError, match=r"learning_rate: 0\.05 here, 0\.003 there"):
        train(other, tmp_path, **quiet())
    assert train(other, tmp_path, overwrite=True, **quiet()).record["steps"] == 4


def test_overwrite_gives_up_nothing_for_a_run_that_cannot_be(tmp_path):
    train(SHORT, tmp_path, **quiet())
    before = weights(tmp_path)
    own = dataclasses.replace(SHORT, start_from=str(tmp_path))
    with pytest.raises(ValueError, match="is the folder of this run"):
        train(own, tmp_path, overwrite=True, **quiet())
    with pytest.raises(ValueError, match="the validation text has 0"):
        streams = (tiny.streams()[0], np.zeros(0, np.uint16))
        train(SHORT, tmp_path, overwrite=True, **quiet(streams=streams))
    assert weights(tmp_path) == before


def test_a_folder_that_a_process_holds_is_told_plainly(tmp_path):
    with folder.claimed(tmp_path):
        with pytest.raises(ValueError, match=rf"process {os.getpid()} on .* since 20"):
            train(SHORT, tmp_path, **quiet())
    with folder.claimed(tmp_path):
        pass  # free again


def test_nothing_finished_is_replaced(tmp_path):
    lines = []
    first = train(SHORT, tmp_path, **quiet())
    before = weights(tmp_path)
    # The same call finds it finished.
    again = train(SHORT, tmp_path, streams=tiny.streams(), log=lines.append)
    assert again.record == first.record | {"sha256": again.record["sha256"]}
    assert "finished already" in lines[0] and weights(tmp_path) == before
    # Finished weights without checkpoints, and without a config.
    folder.shutil.rmtree(tmp_path / "checkpoints")
    more = dataclasses.replace(SHORT, steps=6, schedule="stable")
    with pytest.raises(ValueError, match="schedule: 'stable' here, 'cosine' there"):
        train(more, tmp_path, **quiet())
    with pytest.raises(ValueError, match="other settings"):
        train(dataclasses.replace(SHORT, seed=1), tmp_path, **quiet())
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="holds finished weights of a run without its"):
        train(SHORT, tmp_path, **quiet())
    assert weights(tmp_path) == before


def test_a_longer_run_keeps_the_shorter_ones_result(tmp_path):
    flat = dataclasses.replace(SHORT, schedule="stable")
    train(flat, tmp_path, **quiet())
    before = weights(tmp_path)
    longer = dataclasses.replace(flat, steps=6, decay_steps=2)
    record = train(longer, tmp_path, **quiet()).record
    assert (tmp_path / "weights.4.safetensors").read_bytes() == before
    assert json.loads((tmp_path / "weights.4.json").read_text())["steps"] == 4
    assert record["changes"] == [{"step": 4, "steps": [4, 6], "decay_steps": [0, 2]}]
    folder.shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(
        ValueError, match="finished weights of 6 steps and no checkpoin"
    ):
        train(dataclasses.replace(longer, steps=9), tmp_path, **quiet())


def test_weights_are_known_by_their_hash(tmp_path):
    own = tmp_path / "target"
    origin = stored_model(own)
    config = dataclasses.replace(SHORT, start_from=origin)
    with pytest.raises(ValueError, match=r"start_from=.* is the folder of this run"):
        train(config, own, **quiet())
    train(config, tmp_path / "run", **quiet())
    folder.clear(tmp_path / "unrelated")  # of nothing, is nothing
    # The same weights under a new path are the same run, others under the same are not.
    (tmp_path / "run" / "weights.json").unlink()
    moved = tmp_path / "moved"
    own.rename(moved)
    train(
        dataclasses.replace(config, start_from=str(moved)), tmp_path / "run", **quiet()
    )
    (tmp_path / "run" / "weights.json").unlink()
    stored_model(moved, seed=1)
    with pytest.raises(ValueError, match=r"weights\.start_from: '.*' here, '.*' there"):
        train(
            dataclasses.replace(config, start_from=str(moved)), tmp_path / "run",
            **quiet(),
        )  # fmt: skip


def test_a_text_changed_between_stop_and_resume_is_refused(tmp_path):
    training, validation = tiny.streams()
    train(SHORT, tmp_path, **quiet())
    with pytest.raises(ValueError, match=r"validation_hash: .* here, .* there"):
        train(SHORT, tmp_path, **quiet(streams=(training, validation[:-1])))
    with pytest.raises(ValueError, match="data_hash"):
        train(SHORT, tmp_path, **quiet(streams=(training[:-1], validation)))


@pytest.mark.parametrize(
    ("text", "what"), [("", "empty"), ('{"steps": 4, ', "damaged")]
)
def test_an_empty_or_cut_config_is_told(tmp_path, text, what):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"config.json is {what}.*--overwrite"):
        train(SHORT, tmp_path, **quiet())


def test_json_holds_no_nan():
    text = folder.dumps({"a": [math.nan, 1.0], "b": (math.inf, "x")})
    assert json.loads(text) == {"a": [None, 1.0], "b": [None, "x"]}


def exploding(at):
    """An optimizer whose changes are infinite from one step on."""
    import optax

    def update(changes, state, params=None):
        del params
        scale = jnp.where(state == at, jnp.inf, -0.01)
        return jax.tree.map(lambda c: c * scale, changes), state + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_step_that_is_not_finite_reaches_no_checkpoint(tmp_path, monkeypatch, at):
    config = dataclasses.replace(
        SHORT, steps=6, checkpoint_every=1, eval_every=6, warmup_steps=1
    )
    monkeypatch.setattr(optimizers, "make", lambda config: exploding(at))
    with pytest.raises(FloatingPointError) as caught:
        train(config, tmp_path, **quiet())
    message = str(caught.value)
    assert f"step {at + 1} is not finite" in message
    assert f"skip_steps='({at},)'" in message and "learning_rate" in message
    assert not (tmp_path / "weights.safetensors").exists()
    kept = saves.manager(tmp_path / "checkpoints").all_steps()
    assert max(kept, default=0) == at
    if at:
        assert f"checkpoint {at} holds the state before it" in message
    # The same again ends the same; the batch left out, or a lower rate, goes on.
    with pytest.raises(FloatingPointError, match=f"step {at + 1} is not"):
        train(config, tmp_path, **quiet())
    skipping = dataclasses.replace(config, skip_steps=(at,))
    monkeypatch.setattr(optimizers, "make", lambda config: exploding(-1))
    record = train(skipping, tmp_path, **quiet()).record
    assert record["changes"] == [{"step": at, "skip_steps": [[], [at]]}]
    leaves = jax.tree.leaves(embedded.read_from(tmp_path)[0])
    assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_a_lower_rate_is_a_remedy_after_a_stop_only(tmp_path, monkeypatch):
    config = dataclasses.replace(SHORT, steps=6, warmup_steps=1)
    monkeypatch.setattr(optimizers, "make", lambda config: exploding(3))
    with pytest.raises(FloatingPointError):
        train(config, tmp_path, **quiet())
    monkeypatch.undo()
    lower = dataclasses.replace(config, learning_rate=1e-3)
    monkeypatch.setattr(optimizers, "make", lambda config: exploding(-1))
    record = train(lower, tmp_path, **quiet()).record
    assert record["changes"] == [{"step": 3, "learning_rate": [0.003, 0.001]}]


def test_a_skipped_step_changes_nothing(tmp_path):
    config = dataclasses.replace(SHORT, steps=2, checkpoint_every=1, warmup_steps=0)
    one = train(config, tmp_path / "one", **quiet())
    first = dataclasses.replace(config, skip_steps=(1,))
    two = train(first, tmp_path / "two", **quiet())
    shapes = jax.tree.map(np.shape, one.params)
    assert jax.tree.map(np.shape, two.params) == shapes
    made = saves.manager(tmp_path / "one" / "checkpoints")
    program = steps.make(config, jax.make_mesh((8,), ("data",)), None)
    made.reload()
    import orbax.checkpoint as ocp

    content = {
        "state": steps.lasting(program.shapes),
        "total": jax.ShapeDtypeStruct((), jnp.uint32),
    }
    after_one = made.restore(1, args=ocp.args.StandardRestore(content))["state"]
    jax.tree.map(np.testing.assert_array_equal, two.params, after_one["params"])


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path):
    whole = train(SHORT, tmp_path / "whole", **quiet())
    train(SHORT, tmp_path / "run", **quiet())
    (tmp_path / "run" / "weights.json").unlink()
    newest = tmp_path / "run" / "checkpoints" / "4"
    for path in newest.rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 0xFF
            path.write_bytes(bytes(content))
    lines = []
    again = train(SHORT, tmp_path / "run", streams=tiny.streams(), log=lines.append)
    assert lines[0].startswith("checkpoint 4 is damaged")
    assert "resumed at step 2" in lines
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    save, count = ocp.CheckpointManager.save, []

    def full(self, step, **more):
        count.append(step)
        if step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, step, **more)

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(OSError, match=r"checkpoint 4 could not be written.*No space"):
        train(SHORT, tmp_path, **quiet())
    monkeypatch.undo()
    lines = []
    train(SHORT, tmp_path, streams=tiny.streams(), log=lines.append)
    assert lines[0] == "resumed at step 2"


CHILD = """
import sys, time
sys.path.insert(0, {tests!r})
import tiny
from pdecode.data import packing
from pdecode.train import Interrupted, train
batch = packing.Sampler.batch
def slow(self, step):
    print("at", step, flush=True)
    time.sleep({pause})
    return batch(self, step)
packing.Sampler.batch = slow
try:
    train(tiny.RUN, {folder!r}, streams=tiny.streams(), command="again", log=print)
except Interrupted as stop:
    print("INTERRUPTED", stop, flush=True)
    sys.exit(7)
"""


def child(workdir, pause):
    code = CHILD.format(tests=str(ROOT / "tests"), folder=str(workdir), pause=pause)
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True
    )


def wait_for(process, line):
    for found in process.stdout:
        if found.startswith(line):
            return
    raise AssertionError(f"ended without {line!r}")


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number):
    workdir = tmp_path / "run"
    process = child(workdir, 0.5)
    wait_for(process, "at 3")
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 7
    assert "INTERRUPTED stopped by" in output and "go on with: again" in output
    kept = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 4 <= kept < RUN.steps
    lines = []
    resumed = train(RUN, workdir, streams=tiny.streams(), log=lines.append)
    assert lines[0] == f"resumed at step {kept}"
    whole = train(RUN, tmp_path / "whole", **quiet())
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


@pytest.mark.thorough
def test_a_second_signal_leaves_at_once(tmp_path):
    process = child(tmp_path, 60)
    wait_for(process, "at 0")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - began < 10


def test_a_signal_in_this_process(tmp_path, monkeypatch):
    batch = packing.Sampler.batch

    def asked(self, step):
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return batch(self, step)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(packing.Sampler, "batch", asked)
    with pytest.raises(
        Interrupted, match=r"SIGTERM at step 3 of 6.*go on with: the com"
    ):
        train(RUN, tmp_path, command="the command", **quiet())
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) == before
    lines = []
    train(RUN, tmp_path, streams=tiny.streams(), log=lines.append)
    assert lines[0] == "resumed at step 3"


def test_the_last_state_is_saved_before_it_is_measured(tmp_path, monkeypatch):
    config = dataclasses.replace(SHORT, eval_every=1000, checkpoint_every=1000)
    monkeypatch.setattr(export, "figures", lambda *args, **more: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path, **quiet())
    monkeypatch.undo()
    lines = []
    train(config, tmp_path, streams=tiny.streams(), log=lines.append)
    assert lines[0] == "resumed at step 4"


def test_progress_says_the_rate_it_used(tmp_path):
    config = dataclasses.replace(
        SHORT, eval_every=1, warmup_steps=2, final_fraction=0.5
    )
    train(config, tmp_path, **quiet())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line)["learning_rate"] for line in lines]
    np.testing.assert_allclose(found, [0.0015, 0.003, 0.00225, 0.0015], rtol=1e-5)


def test_progress_says_tokens_a_second_of_its_steps_alone(tmp_path, monkeypatch):
    now = itertools.count(100.0, 0.5)
    clock = types.SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr(trainer, "time", clock)
    monkeypatch.setattr(trainer, "_figures", lambda *_, **__: (next(now), {})[1])
    train(dataclasses.replace(SHORT, steps=3, eval_every=2), tmp_path, **quiet())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line)["tokens_per_s"] for line in lines]
    # Two steps in half a second, then one; half a second of figures is in neither.
    assert found == [2 * 2 * SHORT.batch_size * SHORT.row_len, found[0] // 2]


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path, monkeypatch, name):
    """Every objective, with a moving average and parts of a batch."""
    config = case(
        name, tmp_path, steps=4, checkpoint_every=2, eval_every=4, ema_decay=0.5,
        accumulate=2, row_len=16,
    )  # fmt: skip
    whole = train(config, tmp_path / "whole", mesh={"data": 2}, **quiet(name))
    batch = packing.Sampler.batch
    monkeypatch.setattr(
        packing.Sampler, "batch", lambda self, step: batch(self, step // (step < 3))
    )
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path / "run", mesh={"data": 2}, **quiet(name))
    monkeypatch.undo()
    lines = []
    more = {"streams": tiny.streams(name), "log": lines.append, "mesh": {"data": 2}}
    again = train(config, tmp_path / "run", **more)
    assert lines[0] == "resumed at step 2"
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
    assert again.record["validation"] == whole.record["validation"]
