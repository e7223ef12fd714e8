"""Two processes on one machine decode what one process decodes."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from pdecode import distributed, methods, prompts, run, sharding
from pdecode.models import transformer

MODEL = transformer.Config(
    vocab_size=40, width=16, num_layers=1, num_heads=4, max_positions=64
)


def decode(mesh=None):
    """Sampled tokens of four rows of different lengths."""
    model = transformer.make_model(MODEL)
    params = transformer.init(MODEL, jax.random.key(0))
    prompt = prompts.from_rows([[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]], max_new=8)
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


@pytest.mark.thorough
def test_two_processes_agree_with_one():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    root = pathlib.Path(__file__).parent.parent
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(root), *sys.path]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    # One process has two devices: rows go to the processes, heads to their devices.
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, address, str(index)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        answers = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    expected = np.asarray(decode().tokens)
    for process, (out, error) in zip(processes, answers):
        assert process.returncode == 0, error[-2000:]
        found = json.loads(out.splitlines()[-1])
        assert found["devices"] == [4, 2]
        assert found["rows_here"] == 2
        np.testing.assert_array_equal(found["tokens"], expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("localhost", 2, 0), "must be HOST:PORT"),
        (("localhost:http", 2, 0), "must be HOST:PORT"),
        (("localhost:1", 2, 2), r"process_id=2 must lie in \[0, 2\)"),
    ],
)
def test_bad_addresses_and_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        distributed.start(*arguments)


def main():
    distributed.start(sys.argv[1], 2, int(sys.argv[2]))
    tokens = decode(sharding.make_mesh(data=2, tensor=2)).tokens
    rows_here = {shard.index[0].indices(4)[:2] for shard in tokens.addressable_shards}
    facts = {
        "devices": [jax.device_count(), jax.local_device_count()],
        "rows_here": sum(stop - start for start, stop in rows_here),
        "tokens": distributed.whole(tokens).tolist(),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
