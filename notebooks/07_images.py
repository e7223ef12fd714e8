# %% [markdown]
# # Images, in any order
#
# The smallest images there are: handwritten digits of 8 x 8 pixels, a token a pixel
# behind the class. Three small models came with the package: one reads row by row, one
# in any order, one fills masks.

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

digits = [str(digit) for digit in range(10)]  # a prompt is a class


def draw(method, model, **knobs):
    made = pdecode.generate(
        digits, method=method, model=model, max_new_tokens=64, seed=3, **knobs
    )
    calls = sum(made.stats["calls"]) / len(digits)
    print(f"{method}: {calls:.1f} calls an image of 64 pixels")
    return made


one_by_one = draw("autoregressive", "digits_raster", temperature=1.0)
print(one_by_one.text[7])

# %% [markdown]
# Speculative Jacobi decoding guesses the pixels ahead, the first time as the one above,
# and keeps what the model's own law accepts. The law stays: only the calls are fewer.

# %%
jacobi = draw(
    "sjd", "digits_raster", start="vertical", row_length=8, window=16, temperature=1.0
)
assert sum(jacobi.stats["calls"]) < sum(one_by_one.stats["calls"]) / 2
print(jacobi.text[7])

# %% [markdown]
# A model of any order asks several places at once. The replay below shows the order:
# drag the slider, or press play.

# %%
any_order = draw("arpg", "digits_order", steps=8, temperature=1.0)
any_order

# %% [markdown]
# A canvas of masks, filled where it is surest. `any_order.replay("digits.html")` keeps
# a replay as a file; `pdecode generate --model digits --class 7 --method arpg --out
# seven.png` draws on the command line; `pdecode bench --suite visual` compares orders.

# %%
canvas = draw("maskgit", "digits_masked", steps=8, temperature=1.0)
print(canvas.text[7])
