# %% [markdown]
# # Over many devices
#
# On a TPU runtime the cells below use all its devices; on a CPU eight are pretended.

# %%
# On Colab this installs beside its own jax; nothing has to be restarted.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("pdecode") is None:
    source = "git+https://github.com/OWNER/pdecode"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import os

if not os.environ.get("TPU_NAME") and "jax" not in sys.modules:
    flag = "--xla_force_host_platform_device_count=8"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"

import jax

print(jax.devices())

# %% [markdown]
# Rows are split over `data`, weights and heads over `tensor`. What is decoded is the
# same on every mesh.

# %%
import pdecode
from pdecode import sharding

count = jax.device_count()
mesh = sharding.make_mesh(data=count)
texts = [f"def f{i}(" for i in range(count)]
split = pdecode.generate(texts, method="prompt_lookup", max_new_tokens=16, mesh=mesh)
whole = pdecode.generate(texts, method="prompt_lookup", max_new_tokens=16)
assert split.tokens == whole.tokens
print(split.summary)

# %% [markdown]
# A model too large for one device is read straight to its shards:
# `pdecode.generate(..., model=folder, mesh=sharding.make_mesh(data=2, tensor=4))`. On a
# pod every process runs one command, with its own number:
#
# ```
# pdecode generate --model FOLDER --mesh data=8,tensor=4 --prompts FILE \
#     --coordinator HOST:PORT --num-processes 8 --process-id I --json
# ```
#
# What a slice that is not here would need is told by `pdecode aot --target
# tpu-v5e-4x8 --model llada-8b --mesh data=8,tensor=4`.
