# %% [markdown]
# # Exactness, seen
#
# Noise is a function of a place: key, row, position. So methods that match the target's
# own token return, token for token, what plain sampling returns with the same key.

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
import numpy as np

import pdecode
from pdecode import methods, prompts
from pdecode.models import toy

law = toy.chain(seed=2, vocab=4, length=40)
model = toy.make_model(4, 40)
prompt = prompts.from_rows([[0, 1], [2], [3, 3, 1]], max_new_tokens=24)


def run(method, **sizes):
    return pdecode.run(
        method, model, law, prompt, jax.random.key(7), knobs={"temperature": 1.0},
        max_new_tokens=24, **sizes,
    )  # fmt: skip


plain, plain_stats = run(methods.autoregressive)
for name, sizes in (("prompt_lookup", {"num_draft": 4}), ("jacobi", {"window": 8})):
    made, stats = run(getattr(methods, name), **sizes)
    assert (made.tokens == plain.tokens).all()
    print(
        f"{name}: the same tokens, calls {stats.num_calls} of {plain_stats.num_calls}"
    )

# %% [markdown]
# Speculative sampling with a model as drafter draws differently and keeps the *law*:
# what many rows say is compared with the exact joint.

# %%
joint = toy.joint(3, 2, 4, sharpness=2.0)
near = toy.mixed(joint, toy.joint(4, 2, 4, sharpness=2.0), 0.5)
small = toy.make_model(2, 4)
many = prompts.from_rows([[0]] * 20_000, max_new_tokens=3)

made, stats = pdecode.run(
    methods.speculative_sampling, (small, small), {"model": joint, "drafter": near},
    many, jax.random.key(0), knobs={"temperature": 1.0}, max_new_tokens=3, num_draft=2,
)  # fmt: skip
codes = np.asarray(made.tokens[:, 1:4]) @ np.array([4, 2, 1])
seen = np.bincount(codes, minlength=8) / len(codes)
strings = np.asarray(joint.strings)
exact = np.exp(np.asarray(joint.log_probs))[strings[:, 0] == 0]
exact = exact / exact.sum()
for code in range(8):
    print(f"{code:03b}  exact {exact[code]:.3f}  seen {seen[code]:.3f}")
variation = 0.5 * np.abs(seen - exact).sum()
print(f"total variation {variation:.4f}, {stats.num_calls.mean():.2f} calls a row")
assert variation < 0.015
