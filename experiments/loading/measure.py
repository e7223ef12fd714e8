"""Peak memory of loading a sharded checkpoint onto eight host devices.

    python experiments/loading/measure.py --gigabytes 2

Writes a synthetic bfloat16 Llama in shards, loads it in a fresh process onto a mesh of
fsdp 2 x tensor 4, and prints how far the peak resident memory rose, as a multiple of
the checkpoint's size.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

WIDTH, MLP, VOCAB, SHARDS = 2048, 5632, 32_000, 4


def write(folder: pathlib.Path, gigabytes: float) -> int:
    """A checkpoint of about that size; returns its bytes."""
    import ml_dtypes
    import numpy as np

    from pdecode.checkpoints import names, tensors
    from pdecode.models.config import Config

    layer = 4 * WIDTH * WIDTH + 3 * WIDTH * MLP
    num_layers = max(1, round((gigabytes * 2**30 / 2 - 2 * VOCAB * WIDTH) / layer))
    fields = {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(fields))
    config = Config(VOCAB, WIDTH, num_layers, 16, mlp_width=MLP)
    shapes = {
        "embed": (VOCAB, WIDTH),
        "head": (VOCAB, WIDTH),
        "mlp/gate/kernel": (MLP, WIDTH),
        "mlp/up/kernel": (MLP, WIDTH),
        "mlp/down/kernel": (WIDTH, MLP),
    }
    rng = np.random.default_rng(0)
    listing, total = {}, 0
    paths = list(names.llama(config).items())
    for shard in range(SHARDS):
        part = {}
        for path, source in paths[shard::SHARDS]:
            kind = path.split("/", 1)[1] if path.startswith("layer_") else path
            square = (WIDTH, WIDTH) if kind.endswith("kernel") else (WIDTH,)
            shape = shapes.get(kind, square)
            value = rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
            part[source.names[0]] = value
            listing[source.names[0]] = f"model-{shard}.safetensors"
            total += value.nbytes
        tensors.write(folder / f"model-{shard}.safetensors", part)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": listing}))
    return total


def peak() -> int:
    """Peak resident memory of this process in bytes (Linux).

    Not getrusage: its figure starts at the parent's.
    """
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def load(folder: str) -> None:
    """Prints the rise of this process's peak resident memory, in bytes."""
    import jax

    from pdecode import checkpoints
    from pdecode.checkpoints import loading

    axes = ("fsdp", "tensor")
    mesh = jax.make_mesh((2, 4), axes, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    jax.block_until_ready(jax.device_put(jax.numpy.zeros(8)))
    loading.open_folder(folder)
    before = peak()
    started = time.perf_counter()
    _, params, _ = checkpoints.load(folder, mesh=mesh)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - started
    after = peak()
    print(json.dumps({"rise": after - before, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        load(args.load)
        return
    with tempfile.TemporaryDirectory() as name:
        size = write(pathlib.Path(name), args.gigabytes)
        flags = "--xla_force_host_platform_device_count=8"
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        command = [sys.executable, __file__, "--load", name]
        out = subprocess.run(command, env=env, check=True, capture_output=True)
    found = json.loads(out.stdout)
    print(
        f"checkpoint {size / 2**30:.2f} GiB, peak rose {found['rise'] / 2**30:.2f} GiB "
        f"= {found['rise'] / size:.3f} of it, {found['seconds']:.1f} s"
    )


if __name__ == "__main__":
    main()
