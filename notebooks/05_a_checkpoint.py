# %% [markdown]
# # A checkpoint of one's own
#
# A folder with `config.json` and `*.safetensors` as published goes where an embedded
# name goes. Here a tiny Llama is written and decoded; a real one is the same call.

# %%
# On Colab this installs beside its own jax; nothing has to be restarted.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("pdecode") is None:
    source = "git+https://github.com/OWNER/pdecode"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import json
import pathlib
import tempfile

import numpy as np
from safetensors.numpy import save_file

folder = pathlib.Path(tempfile.mkdtemp()) / "tiny-llama"
folder.mkdir()
width, hidden, vocab, layers = 32, 64, 50, 2
config = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab,
    "hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "float32", "eos_token_id": 1,
}  # fmt: skip
(folder / "config.json").write_text(json.dumps(config))

draw = np.random.default_rng(0)
shapes = {"model.embed_tokens.weight": (vocab, width), "lm_head.weight": (vocab, width)}
for i in range(layers):
    at = f"model.layers.{i}"
    shapes |= {f"{at}.self_attn.{n}_proj.weight": (size, width)
               for n, size in (("q", 32), ("k", 16), ("v", 16))}  # fmt: skip
    shapes[f"{at}.self_attn.o_proj.weight"] = (width, 32)
    shapes |= {f"{at}.mlp.{n}_proj.weight": (hidden, width) for n in ("gate", "up")}
    shapes[f"{at}.mlp.down_proj.weight"] = (width, hidden)
tensors = {n: draw.normal(size=s).astype(np.float32) * 0.3 for n, s in shapes.items()}
norms = ["model.norm.weight"]
for i in range(layers):
    norms += [f"model.layers.{i}.{n}.weight"
              for n in ("input_layernorm", "post_attention_layernorm")]  # fmt: skip
tensors |= {name: np.ones(width, np.float32) for name in norms}
save_file(tensors, folder / "model.safetensors")

# %%
import pdecode

made = pdecode.generate(
    [[5, 6, 7]], model=str(folder), method="prompt_lookup", max_new_tokens=16
)
print(made.tokens[0])
plain = pdecode.generate([[5, 6, 7]], model=str(folder), max_new_tokens=16)
assert made.tokens == plain.tokens

# %% [markdown]
# With LLaDA-8B-Instruct in a folder, on an accelerator with some 20 GB:

# %%
LLADA = "path/to/LLaDA-8B-Instruct"
if pathlib.Path(LLADA).is_dir():
    reply = pdecode.generate(
        "Why is the sky blue?", model=LLADA, method="fast_dllm", cache="dual",
        threshold=0.9, max_new_tokens=128,
    )  # fmt: skip
    print(reply)
