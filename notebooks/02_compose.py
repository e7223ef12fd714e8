# %% [markdown]
# # Compose a sampler
#
# A method is a function from models to a `Decoder`. Here one is put together from a
# commit rule, blocks, a window and a refresh, and run on a toy whose law is known.

# %%
# On Colab this installs beside its own jax; nothing has to be restarted.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("pdecode") is None:
    source = "git+https://github.com/OWNER/pdecode"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import jax
from typing import Annotated

from pdecode import blocks, commit, decode, masked, prompts, windows
from pdecode.contracts import Sampling
from pdecode.knobs import Count, Knob, MaskedModel
from pdecode.models import toy

model = toy.make_model(vocab=4, length=24, predicts="masked")
law = toy.chain(seed=0, vocab=4, length=24)
prompt = prompts.from_rows([[0, 1, 2], [3]], max_new_tokens=16)  # rows may be ragged


# %% [markdown]
# The rule fills, in the active block of eight, every position whose entropy adds up to
# less than `gamma`. Keys and values outside the block stay in the cache until the next
# block begins.


# %%
def bounded(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    gamma: Annotated[float, Knob(0, 100)] = 1.0,
):
    """Entropy-bounded commits over blocks."""
    return masked.masked_diffusion(
        model,
        commit.entropy_bounded(gamma, commit.order("entropy")),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature=0.0),
        blocks=blocks.generation(8),
        window=windows.active_block,
        refresh=windows.at_block_start,
    )


# %% [markdown]
# A knob is traced: the loop below compiles once.

# %%
calls = {}
for gamma in (0.0, 0.5, 1.0, 2.0, 4.0):
    generation, stats = decode.run(
        bounded, model, law, prompt, jax.random.key(0), knobs={"gamma": gamma},
        max_new_tokens=16,
    )  # fmt: skip
    calls[gamma] = int(stats.num_calls.sum())
    print(f"gamma {gamma}: {calls[gamma]} calls for 32 tokens")
assert calls[4.0] < calls[0.0] == 32

# %% [markdown]
# On the embedded model the same function is raced by name or by itself:
# `pdecode.compare(["fast_dllm", bounded])`, and swept with
# `pdecode.sweep(bounded, gamma=[0.5, 1.0, 2.0])`.

# %%
import pdecode

table = pdecode.sweep(
    bounded, prompts=["def f("], max_new_tokens=16, gamma=[0.1, 1.0, 3.0]
)
print(table)
figure = table.plot()
