"""Two processes on one machine decode what one process decodes."""

import concurrent.futures
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from pdecode import methods, prompts, run, sharding
from pdecode.cli import main as cli
from pdecode.data import packing
from pdecode.models import embedded, transformer
from pdecode.sharding import meeting
from pdecode.sharding import processes as processes_module
from pdecode.train import run_config

MODEL = transformer.Config(
    vocab_size=40, width=16, num_layers=1, num_heads=4, max_positions=64
)


def decode(mesh=None):
    """Sampled tokens of four rows of different lengths."""
    model = transformer.make_model(MODEL)
    params = transformer.init(MODEL, jax.random.key(0))
    prompt = prompts.from_rows(
        [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]], max_new_tokens=8
    )
    key = jax.random.key(1)
    if mesh is not None:
        model = sharding.on_mesh(model, mesh)
        params = sharding.shard_params(params, mesh)
        prompt = sharding.shard_rows(prompt, mesh)
        key = sharding.replicate(key, mesh)
    generation, _ = run(
        methods.prompt_lookup, model, params, prompt, key,
        knobs={"temperature": 1.0}, max_new_tokens=8,
    )  # fmt: skip
    return generation


def together(*command, num_processes=2, then=None) -> list[tuple[int, str, str]]:
    """(exit code, output, errors) of processes that get an address and their number.

    One process has two devices. `then` is called with the processes once they run.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    root = pathlib.Path(__file__).parent.parent
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(root), *sys.path]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *(each.format(address, index) for each in command)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(num_processes)
    ]  # fmt: skip
    try:
        if then is not None:
            then(processes)
        answers = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(each.returncode, *made) for each, made in zip(processes, answers)]


@pytest.mark.thorough
def test_two_processes_agree_with_one():
    # Rows go to the processes, heads to their devices.
    answers = together(__file__, "{0}", "{1}")
    expected = np.asarray(decode().tokens)
    for code, out, error in answers:
        assert code == 0, error[-2000:]
        found = json.loads(out.splitlines()[-1])
        assert found["devices"] == [4, 2]
        assert found["rows_here"] == 2
        np.testing.assert_array_equal(found["tokens"], expected)


@pytest.mark.thorough
def test_the_command_line_on_two_processes_generates_what_one_does(monkeypatch, capsys):
    monkeypatch.setattr("pdecode.cli.program_cache.enable", lambda: None)
    folder = pathlib.Path(__file__).parent / "golden" / "llada_tiny"
    generate = (
        "generate", "--model", str(folder), "--method", "fast_dllm", "--set",
        "cache=dual", "--set", "block_length=4", "--prompt-ids", "[[1,2,3],[4,5]]",
        "--max-new-tokens", "8", "--temperature", "1", "--seed", "2", "--json",
    )  # fmt: skip
    several = (
        "--mesh", "data=2,tensor=2", "--coordinator", "{0}", "--num-processes", "2",
        "--process-id", "{1}",
    )  # fmt: skip
    (code, out, error), (other, silent, complaint) = together(
        "-m", "pdecode", *generate, *several
    )
    assert code == 0, error[-2000:]
    assert other == 0, complaint[-2000:]
    assert silent == ""
    found = json.loads(out)
    assert cli.main(list(generate)) == 0
    alone = json.loads(capsys.readouterr().out)
    assert found["tokens"] == alone["tokens"] and found["text"] == alone["text"]
    assert found["stats"] == alone["stats"]


@pytest.mark.thorough
def test_a_mesh_without_the_devices_of_a_process_is_refused():
    answers = together(
        "-m", "pdecode", "generate", "--prompt", "x", "--mesh", "tensor=2",
        "--coordinator", "{0}", "--num-processes", "2", "--process-id", "{1}",
    )  # fmt: skip
    for code, out, error in answers:
        assert (code, out) == (cli.BAD_INPUT, "")
        assert "has 2 of the 4 devices of 2 processes: it must have all" in error


CONFIG = """
from pdecode.models import bytes as text
from pdecode.models.config import Config
from pdecode.train import TrainConfig

def get_config():
    model = Config(
        vocab_size=text.VOCAB_SIZE, width=16, num_layers=1, num_heads=2,
        mask_id=text.MASK_ID, eos_ids=(text.EOS_ID,), attention="bidirectional",
        predicts="masked", max_positions=64,
    )
    return TrainConfig(
        name="tiny", model=model, objective="masked_diffusion", steps=4, row_len=32,
        batch_size=8, schedule="stable", warmup_steps=1, checkpoint_every=2,
        eval_every=1, eval_rows=2, data_dir={folder!r},
    )
"""


@pytest.mark.thorough
def test_two_processes_train_and_resume_as_one_does(tmp_path):
    tokens = packing.stream([b"def f(x):\n    return x + 1\n" * 3] * 40)
    packing.save(tmp_path / "train.npy", tokens)
    packing.save(tmp_path / "validation.npy", tokens[:200])
    file = tmp_path / "config.py"
    file.write_text(CONFIG.format(folder=str(tmp_path)))
    several = (
        "-m", "pdecode", "train", "--config", str(file), "--out", str(tmp_path / "two"),
        "--coordinator", "{0}", "--num-processes", "2", "--process-id", "{1}",
    )  # fmt: skip
    begun = together(*several, "--set", "steps=2")
    ended = together(*several)
    for (code, _, error), (again, _, complaint) in zip(begun, ended):
        assert code == 0, error[-2000:]
        assert again == 0, complaint[-2000:]
    assert ended[0][1].startswith("resumed at step 2") and ended[1][1] == ""
    run_config(file, workdir=tmp_path / "one", log=lambda line: None)
    both = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (tmp_path / "one", tmp_path / "two")
    ]
    assert [line["step"] for line in both[1]] == [1, 2, 3, 4]
    for one, two in zip(*both, strict=True):
        for name in ("loss", "grad_norm", "bits_per_byte"):
            assert two[name] == pytest.approx(one[name], rel=1e-5)
    one, two = (embedded.read_from(tmp_path / name)[0] for name in ("one", "two"))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), one, two)


@pytest.fixture
def run_of_two(tmp_path):
    """The command of a training run and its folder; texts are there."""
    tokens = packing.stream([b"def f(x):\n    return x + 1\n" * 3] * 40)
    packing.save(tmp_path / "train.npy", tokens)
    packing.save(tmp_path / "validation.npy", tokens[:200])
    file = tmp_path / "config.py"
    file.write_text(CONFIG.format(folder=str(tmp_path)))
    several = ("--coordinator", "{0}", "--num-processes", "2", "--process-id", "{1}")
    return ("-m", "pdecode", "train", "--config", str(file), *several), tmp_path


def told_once(answers, message):
    """Process 0 says it in one line, the other leaves without a word."""
    for index, (code, out, error) in enumerate(answers):
        lines = [line for line in error.splitlines() if line.startswith("pdecode:")]
        assert code == cli.BAD_INPUT and out == ""
        assert len(lines) == (1 if index == 0 else 0), error[-2000:]
        assert "Traceback" not in error and "***" not in error
    assert message in answers[0][2]


@pytest.mark.thorough
def test_processes_with_other_settings_are_told_which(run_of_two):
    command, folder = run_of_two
    command = (
        *command,
        "--out",
        str(folder / "two"),
        "--set",
        "learning_rate=0.0{1}3",
    )
    told_once(
        together(*command),
        "differ in settings.learning_rate: 0.003 in process 0, 0.013 in process 1",
    )


@pytest.mark.thorough
def test_an_out_that_is_not_shared_is_told_at_the_start(run_of_two):
    command, folder = run_of_two
    answers = together(*command, "--out", str(folder / "out{1}"))
    told_once(answers, "process 1 does not see the folder")


@pytest.mark.thorough
def test_a_process_that_is_killed_is_noticed_and_the_run_goes_on(run_of_two):
    command, folder = run_of_two
    command = (*command, "--out", str(folder / "two"), "--set", "steps=4000")
    command = (*command, "--set", "eval_every=4000", "--set", "checkpoint_every=20")
    killed = []

    def kill(processes):
        while not (folder / "two" / "checkpoints" / "40").exists():
            assert all(each.poll() is None for each in processes)
            time.sleep(0.05)
        processes[1].kill()
        killed.append(time.monotonic())

    answers = together(*command, then=kill)
    assert time.monotonic() - killed[0] < 20
    code, _, error = answers[0]
    assert code == 3, error[-2000:]
    assert "process 1 is gone: start all processes again with the same" in error
    assert "***" not in error and "Traceback" not in error
    kept = max(int(path.name) for path in (folder / "two" / "checkpoints").iterdir())
    command = (*command, "--set", f"steps={kept + 2}")
    assert [code for code, _, _ in together(*command)] == [0, 0]


@pytest.mark.thorough
def test_a_signal_to_both_saves_one_step(run_of_two):
    command, folder = run_of_two
    command = (*command, "--out", str(folder / "two"), "--set", "steps=4000")
    command = (*command, "--set", "eval_every=4000", "--set", "checkpoint_every=20")

    def ask(processes):
        while not (folder / "two" / "checkpoints" / "20").exists():
            assert all(each.poll() is None for each in processes)
            time.sleep(0.05)
        processes[1].terminate()  # one of them is enough

    answers = together(*command, then=ask)
    assert [code for code, _, _ in answers] == [130, 130], answers[0][2][-2000:]
    assert "go on with: pdecode train" in answers[0][2]


@pytest.mark.thorough
def test_a_decode_with_other_seeds_is_told_once():
    answers = together(
        "-m", "pdecode", "generate", "--prompt", "x", "--mesh", "data=4", "--seed",
        "{1}", "--coordinator", "{0}", "--num-processes", "2", "--process-id", "{1}",
    )  # fmt: skip
    told_once(answers, "differ in --seed: 0 in process 0, 1 in process 1")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("localhost", 2, 0), "must be HOST:PORT"),
        (("localhost:http", 2, 0), "must be HOST:PORT"),
        (("localhost:70000", 2, 1), "must be HOST:PORT, the port below 65536"),
        (("localhost:1", 2, 2), r"process_id=2 must lie in \[0, 2\)"),
    ],
)
def test_bad_addresses_and_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        processes_module.start(*arguments)


def test_a_port_that_is_taken_and_a_process_that_is_not_there(monkeypatch):
    with socket.create_server(("localhost", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=r"cannot open port .*choose a free one"):
            processes_module.start(address, 2, 0)
    monkeypatch.setattr(processes_module, "PATIENCE_S", 0.0)
    with pytest.raises(ValueError, match=r"did not answer in 0 s .*start process 0"):
        processes_module.start(address, 2, 1)
    with pytest.raises(
        ValueError, match=r"process 1, 2 of 3 at .* did not come in 0 s"
    ):
        processes_module.start(address, 3, 0)


@pytest.fixture
def place():
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    return f"localhost:{port}", port


def test_processes_meet_and_who_is_missing_is_told(place, monkeypatch):
    monkeypatch.setattr(meeting, "TOLD_EVERY_S", 0.0)
    address, port = place
    told, others = [], []

    def told_anew(who):
        before = len(told)
        while not any(who in line for line in told[before:]):
            time.sleep(0.05)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(
            meeting.join, address, "localhost", port, 4, 1, 30.0, others.append
        )
        zero = pool.submit(meeting.receive, address, port, 4, 30.0, told.append)
        time.sleep(1.5)  # nobody is let go before all are there
        assert not first.done() and not zero.done()
        # What is no process of ours is sent away and harms nobody.
        with socket.create_connection(("localhost", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        for name, count, why in (
            (1, 4, "is here already"),
            (2, 5, "there are 4 processes"),
        ):
            with pytest.raises(
                ValueError, match=f"process 0 at {address} says: .*{why}"
            ):
                meeting.join(address, "localhost", port, count, name, 30.0, print)
        # One that dies while it waits is missed again, and may come again.
        with socket.create_connection(("localhost", port)) as dying:
            dying.sendall(b'{"process_id": 2, "num_processes": 4}\n')
            told_anew("process 3 of 4")
        # The last one comes when it is gone, or all would have been there for a moment.
        told_anew("process 2, 3 of 4")
        again = pool.submit(meeting.join, address, "localhost", port, 4, 2, 30.0, print)
        told_anew("process 3 of 4")
        meeting.join(address, "localhost", port, 4, 3, 30.0, print)
        assert again.result() is None
        assert first.result() is None and zero.result() is None
    assert any(
        line.startswith(f"waiting for process 2, 3 of 4 at {address}") for line in told
    )
    with socket.create_server(("localhost", port)):
        pass  # the port is free for jax


def test_a_cluster_that_is_not_there_is_told(capsys):
    assert (
        cli.main(
            ["generate", "--prompt", "x", "--mesh", "data=1", "--coordinator", "auto"]
        )
        == 2
    )
    assert "jax detects no cluster here" in capsys.readouterr().err


def main():
    processes_module.start(sys.argv[1], 2, int(sys.argv[2]))
    tokens = decode(sharding.make_mesh(data=2, tensor=2)).tokens
    rows_here = {shard.index[0].indices(4)[:2] for shard in tokens.addressable_shards}
    facts = {
        "devices": [jax.device_count(), jax.local_device_count()],
        "rows_here": sum(stop - start for start, stop in rows_here),
        "tokens": processes_module.whole(tokens).tolist(),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
