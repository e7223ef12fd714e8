# %% [markdown]
# # Write a commit rule, and ask what it keeps
#
# A rule decides which open positions of a canvas to fill. Whether it keeps the model's
# law is a question with an exact answer on a toy: all draws are enumerated.

# %%
# On Colab this installs beside its own jax; nothing has to be restarted.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("pdecode") is None:
    source = "git+https://github.com/OWNER/pdecode"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import jax.numpy as jnp

import pdecode
from pdecode import commit


def calm(nats: float):
    def apply(key, row, prediction):
        quiet = row.open & (prediction.entropy <= nats)
        return quiet | commit.best(-prediction.entropy, row.open, 1)

    return commit.stateless(apply, wants=("entropy",))


report = pdecode.check(calm, nats=0.8)
print(report)
assert report.is_well

# %% [markdown]
# The next rule looks harmless: it fills what the model is sure of. But it asks how sure
# the model is of the token that it happened to draw, and so prefers places where a
# likely token was drawn.


# %%
def eager(level: float):
    def apply(key, row, prediction):
        sure = row.open & (jnp.exp(prediction.log_prob) >= level)
        return sure | commit.best(prediction.log_prob, row.open, 1)

    return commit.stateless(apply)


report = pdecode.check(eager, level=0.6)
print(report)
assert report.faults == ["law"]

# %% [markdown]
# An acceptance rule is asked the same way. This one forgets to renormalise what is left
# of the target's law after a refusal.

# %%
from pdecode import accept
from pdecode.contracts import NodeRule


def forgetful():
    def apply(p, q, tokens):
        kept, _ = accept.rejection().apply(p, q, tokens)
        return kept, jnp.where(tokens[0] >= 0, jnp.maximum(p - q[0], 0), p)

    return NodeRule(apply, max_children=1, is_lossless=True)


report = pdecode.check(forgetful)
print(report)
assert "laws" in report.faults
