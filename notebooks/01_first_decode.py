# %% [markdown]
# # A first decode, and the order in which its text came
#
# Two ways of producing several tokens for each call of a network: a target that accepts
# what a small drafter proposes, and a canvas of masks that fills wherever it is sure.
# The models come with the package; a laptop's CPU is enough.

# %%
# On Colab this installs beside its own jax; nothing has to be restarted.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("pdecode") is None:
    source = "git+https://github.com/OWNER/pdecode"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import pdecode

drafted = pdecode.generate(
    "def fib(n):", method="speculative_sampling", max_new_tokens=48
)
print(drafted.text[0])
print(drafted.summary)

# %% [markdown]
# The same as a replay: drag the slider, press play, hover over a letter. The colour is
# the step that committed it; underlined letters are the target's own, the others of
# that step are drafts that it accepted.

# %%
drafted

# %% [markdown]
# The record behind it is plain data: the step of every token, its probability, counts.

# %%
print(drafted.steps[0][:12])
print(drafted.stats["tokens_per_call"], "tokens a call")
assert drafted.stats["tokens_per_call"][0] > 1

# %% [markdown]
# A masked canvas has no left to right. WINO fills widely and takes back what it doubts
# later, so its replay is recorded step by step.

# %%
from pdecode import generation

job = generation.prepare("x = [", method="wino", max_new_tokens=32)
revised = generation.recorded(job)
print(revised.stats["revoked"], "positions taken back")
revised

# %% [markdown]
# To keep a replay as a file that opens anywhere: `revised.replay("wino.html")`, or
# `pdecode generate ... --html wino.html` on the command line.
