"""Block models as published, in numpy: folders of random weights, calls, decode loops.

A network here is the weights by their published names and `net(tokens, start, cache)`:
the tokens at start, start + 1, .. are stored and see every slot up to the end of their
block. Everything is float64 and one row.
"""

import json

import numpy as np

from pdecode.checkpoints import tensors

SIZES = dict(
    vocab_size=24,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=20,
    max_position_embeddings=96,
    rms_norm_eps=1e-6,
    mask_token_id=23,
)
FAST_DLLM = dict(SIZES, model_type="Fast_dLLM_Qwen", bd_size=8, rope_theta=500.0)
LLADA2 = dict(
    SIZES,
    model_type="llada2_moe",
    num_hidden_layers=3,
    head_dim=8,
    block_length=8,
    rope_theta=500.0,
    partial_rotary_factor=0.5,
    first_k_dense_replace=1,
    num_experts=8,
    num_experts_per_tok=3,
    moe_intermediate_size=12,
    num_shared_experts=2,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=2.5,
    use_bias=False,
    use_qkv_bias=True,
    use_qk_norm=True,
)
DIT = dict(
    vocab_size=24, hidden_dim=16, n_blocks=2, n_heads=4, cond_dim=6, model_length=64
)
MDLM = dict(DIT, model_type="mdlm")
BD3LM = dict(DIT, model_type="bd3lm", block_size=4)


def shapes(raw):
    """{published name: shape}."""
    kind = raw["model_type"]
    if kind in ("mdlm", "bd3lm"):
        return _dit_shapes(raw)
    words, width = raw["vocab_size"], raw["hidden_size"]
    heads, kv = raw["num_attention_heads"], raw["num_key_value_heads"]
    head = raw.get("head_dim", width // heads)
    found = {"model.norm.weight": (width,)}
    if not raw.get("tie_word_embeddings"):
        found["lm_head.weight"] = (words, width)
    embed = "word_embeddings" if kind == "llada2_moe" else "embed_tokens"
    found[f"model.{embed}.weight"] = (words, width)

    def mlp(stem, size):
        found[f"{stem}.gate_proj.weight"] = found[f"{stem}.up_proj.weight"] = (
            size,
            width,
        )
        found[f"{stem}.down_proj.weight"] = (width, size)

    for i in range(raw["num_hidden_layers"]):
        at = f"model.layers.{i}."
        found[at + "input_layernorm.weight"] = (width,)
        found[at + "post_attention_layernorm.weight"] = (width,)
        if kind == "Fast_dLLM_Qwen":
            for name, count in (("q", heads), ("k", kv), ("v", kv)):
                found[f"{at}self_attn.{name}_proj.weight"] = (count * head, width)
                found[f"{at}self_attn.{name}_proj.bias"] = (count * head,)
            found[at + "self_attn.o_proj.weight"] = (width, heads * head)
            mlp(at + "mlp", raw["intermediate_size"])
            continue
        rows = (heads + 2 * kv) * head
        found[at + "attention.query_key_value.weight"] = (rows, width)
        if raw["use_qkv_bias"]:
            found[at + "attention.query_key_value.bias"] = (rows,)
        found[at + "attention.dense.weight"] = (width, heads * head)
        if raw["use_bias"]:
            found[at + "attention.dense.bias"] = (width,)
        if raw["use_qk_norm"]:
            found[at + "attention.query_layernorm.weight"] = (head,)
            found[at + "attention.key_layernorm.weight"] = (head,)
        if i < raw["first_k_dense_replace"]:
            mlp(at + "mlp", raw["intermediate_size"])
            continue
        found[at + "mlp.gate.weight"] = (raw["num_experts"], width)
        found[at + "mlp.gate.expert_bias"] = (raw["num_experts"],)
        for expert in range(raw["num_experts"]):
            mlp(f"{at}mlp.experts.{expert}", raw["moe_intermediate_size"])
        if raw["num_shared_experts"] is not None:
            size = raw["moe_intermediate_size"] * raw["num_shared_experts"]
            mlp(at + "mlp.shared_experts", size)
    return found


def _dit_shapes(raw):
    words, width, told = raw["vocab_size"], raw["hidden_dim"], raw["cond_dim"]
    found = {
        "backbone.vocab_embed.embedding": (words, width),
        "backbone.output_layer.norm_final.weight": (width,),
        "backbone.rotary_emb.inv_freq": (width // raw["n_heads"] // 2,),
    }
    linear = {"backbone.output_layer.linear": (words, width)}
    for i in range(raw["n_blocks"]):
        at = f"backbone.blocks.{i}."
        found |= {at + "norm1.weight": (width,), at + "norm2.weight": (width,)}
        found[at + "attn_qkv.weight"] = (3 * width, width)
        found[at + "attn_out.weight"] = (width, width)
        linear |= {at + "mlp.0": (4 * width, width), at + "mlp.2": (width, 4 * width)}
        if raw.get("adaln", True):
            linear[at + "adaLN_modulation"] = (6 * width, told)
    if raw.get("adaln", True):
        linear["backbone.sigma_map.mlp.0"] = (told, 256)
        linear["backbone.sigma_map.mlp.2"] = (told, told)
        linear["backbone.output_layer.adaLN_modulation"] = (2 * width, told)
    if raw["model_type"] == "bd3lm":
        found |= {"sampling_eps_min": (), "sampling_eps_max": ()}
    for name, shape in linear.items():
        found |= {name + ".weight": shape, name + ".bias": shape[:1]}
    return found


def weights(raw, seed=0):
    """{published name: float32}, such that logits differ and no mask is likely."""
    draw, made = np.random.default_rng(seed), {}
    for name, shape in shapes(raw).items():
        value = draw.normal(size=shape)
        if "norm" in name and len(shape) == 1:
            value = 1 + 0.3 * value
        elif len(shape) == 1:
            value = 0.3 * value
        elif "embed" not in name and shape:
            value = 1.6 * value / shape[-1] ** 0.5
        if name.endswith(("lm_head.weight", "output_layer.linear.weight")):
            value = 3.0 * value
            value[-1] = 0.0
        made[name] = value.astype(np.float32)
    return made


def save(folder, raw, values):
    """config.json, two shards and their list."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    place = {
        name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(values))
    }
    for file in set(place.values()):
        part = {name: values[name] for name in values if place[name] == file}
        tensors.write(folder / file, part)
    listing = folder / "model.safetensors.index.json"
    listing.write_text(json.dumps({"weight_map": place}))
    return folder


def network(raw, values):
    """The call of one architecture; `size` is the length of its blocks."""
    kind = raw["model_type"]
    w = {name: value.astype(np.float64) for name, value in values.items()}
    if kind in ("mdlm", "bd3lm"):
        size = raw.get("block_size") if raw.get("cross_attn", True) else None
        return Dit(raw, w, size, raw["n_blocks"])
    size = raw.get("bd_size", raw.get("block_length"))
    found = {"Fast_dLLM_Qwen": Qwen, "llada2_moe": Llada2}[kind]
    return found(raw, w, size, raw["num_hidden_layers"])


class Network:
    def __init__(self, raw, w, size, num_layers):
        self.raw, self.w, self.size, self.num_layers = raw, w, size, num_layers

    def empty(self):
        return [{} for _ in range(self.num_layers)]

    def __call__(self, tokens, start=0, cache=None):
        """Logits [Q, V]; `cache` holds {position: (key, value)} a layer."""
        cache = self.empty() if cache is None else cache
        place = np.arange(start, start + len(tokens))
        last = max(max(cache[0], default=0), place[-1]) + 1
        ends = [last if self.size is None else (p // self.size + 1) * self.size
                for p in place]  # fmt: skip
        return self.run(np.asarray(tokens), place, ends, cache)

    def attend(self, q, k, v, place, ends, cache):
        """Heads [Q, H, D] -> [Q, H * D], of keys stored before and now."""
        for p, key, value in zip(place, k, v):
            cache[int(p)] = key, value
        out = np.zeros_like(q)
        for n, end in enumerate(ends):
            seen = [cache[p] for p in sorted(cache) if p < end]
            keys, values = (np.stack(each) for each in zip(*seen))
            share = q.shape[1] // keys.shape[1]
            keys, values = (np.repeat(each, share, 1) for each in (keys, values))
            scores = np.einsum("hd,shd->hs", q[n], keys) / q.shape[-1] ** 0.5
            out[n] = np.einsum("hs,shd->hd", softmax(scores), values)
        return out.reshape(len(q), -1)

    def gated(self, x, stem):
        act = {"silu": silu, "gelu_pytorch_tanh": gelu_tanh}
        act = act[self.raw.get("hidden_act", "silu")]
        gate, up = (self.linear(x, f"{stem}.{name}_proj") for name in ("gate", "up"))
        return self.linear(act(gate) * up, stem + ".down_proj")

    def linear(self, x, stem):
        return x @ self.w[stem + ".weight"].T + self.w.get(stem + ".bias", 0)

    def rms(self, x, name):
        return rms(x, self.w[name + ".weight"], self.raw["rms_norm_eps"])

    def head(self, x, embed):
        name = embed if self.raw.get("tie_word_embeddings") else "lm_head"
        return self.linear(self.rms(x, "model.norm"), name)


class Qwen(Network):
    def run(self, tokens, place, ends, cache):
        raw = self.raw
        count, theta = raw["num_attention_heads"], raw["rope_theta"]
        head = raw["hidden_size"] // count
        x = self.w["model.embed_tokens.weight"][tokens]
        for i in range(self.num_layers):
            at = f"model.layers.{i}."
            h = self.rms(x, at + "input_layernorm")
            q, k, v = (
                self.linear(h, f"{at}self_attn.{name}_proj").reshape(len(x), -1, head)
                for name in "qkv"
            )
            q, k = (turned(each, place, theta, head) for each in (q, k))
            h = self.attend(q, k, v, place, ends, cache[i])
            x = x + self.linear(h, at + "self_attn.o_proj")
            h = self.rms(x, at + "post_attention_layernorm")
            x = x + self.gated(h, at + "mlp")
        return self.head(x, "model.embed_tokens")


class Llada2(Network):
    def run(self, tokens, place, ends, cache):
        raw = self.raw
        heads, kv = raw["num_attention_heads"], raw["num_key_value_heads"]
        head = raw["head_dim"]
        dims, theta = int(head * raw["partial_rotary_factor"]), raw["rope_theta"]
        x = self.w["model.word_embeddings.weight"][tokens]
        for i in range(self.num_layers):
            at = f"model.layers.{i}."
            h = self.rms(x, at + "input_layernorm")
            fused = self.linear(h, at + "attention.query_key_value")
            fused = fused.reshape(len(x), heads + 2 * kv, head)
            q, k, v = np.split(fused, [heads, heads + kv], 1)
            if raw["use_qk_norm"]:
                q = self.rms(q, at + "attention.query_layernorm")
                k = self.rms(k, at + "attention.key_layernorm")
            q, k = (turned(each, place, theta, dims) for each in (q, k))
            h = self.attend(q, k, v, place, ends, cache[i])
            x = x + self.linear(h, at + "attention.dense")
            h = self.rms(x, at + "post_attention_layernorm")
            x = x + (
                self.gated(h, at + "mlp")
                if i < raw["first_k_dense_replace"]
                else self.mixed(h, at + "mlp.")
            )
        return self.head(x, "model.word_embeddings")

    def mixed(self, x, at):
        raw, out = self.raw, np.zeros_like(x)
        scores = 1 / (1 + np.exp(-x @ self.w[at + "gate.weight"].T))
        for n, score in enumerate(scores):
            ranked = score + self.w[at + "gate.expert_bias"]
            groups = ranked.reshape(raw["n_group"], -1)
            best = np.sort(groups, 1)[:, -2:].sum(1)
            kept = np.argsort(-best)[: raw["topk_group"]]
            barred = np.full_like(groups, -np.inf)
            barred[kept] = groups[kept]
            chosen = np.argsort(-barred.ravel())[: raw["num_experts_per_tok"]]
            share = score[chosen] * raw["routed_scaling_factor"]
            if len(chosen) > 1:
                share = share / score[chosen].sum()
            for weight, expert in zip(share, chosen):
                out[n] += weight * self.gated(x[n], f"{at}experts.{expert}")
        if raw["num_shared_experts"] is None:
            return out
        return out + self.gated(x, at + "shared_experts")


class Dit(Network):
    def run(self, tokens, place, ends, cache):
        raw, w = self.raw, self.w
        width, count = raw["hidden_dim"], raw["n_heads"]
        told = None
        if raw.get("adaln", True):
            waves = np.concatenate([np.ones(128), np.zeros(128)])
            told = silu(self.linear(waves, "backbone.sigma_map.mlp.0"))
            told = silu(self.linear(told, "backbone.sigma_map.mlp.2"))

        def turns(stem, number):
            if told is None:
                return [0, 0, 1, 0, 0, 1][:number]
            return np.split(self.linear(told, stem + "adaLN_modulation"), number)

        x = w["backbone.vocab_embed.embedding"][tokens]
        for i in range(self.num_layers):
            at = f"backbone.blocks.{i}."
            shift, scale, gate, shift_2, scale_2, gate_2 = turns(at, 6)
            h = centered(x, w[at + "norm1.weight"]) * (1 + scale) + shift
            q, k, v = np.split(h @ w[at + "attn_qkv.weight"].T, 3, -1)
            q, k, v = (each.reshape(len(x), count, -1) for each in (q, k, v))
            q, k = (turned(each, place, 1e4, width // count) for each in (q, k))
            h = self.attend(q, k, v, place, ends, cache[i])
            x = x + gate * (h @ w[at + "attn_out.weight"].T)
            h = centered(x, w[at + "norm2.weight"]) * (1 + scale_2) + shift_2
            h = gelu_tanh(self.linear(h, at + "mlp.0"))
            x = x + gate_2 * self.linear(h, at + "mlp.2")
        shift, scale = turns("backbone.output_layer.", 2)
        x = centered(x, w["backbone.output_layer.norm_final.weight"])
        return self.linear(x * (1 + scale) + shift, "backbone.output_layer.linear")


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def rms(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def centered(x, weight):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


def turned(x, place, theta, dims):
    """Heads [Q, H, D], of which the first `dims` dimensions turn, halves paired."""
    angles = place[:, None, None] * theta ** (-np.arange(0, dims, 2) / dims)
    one, two = x[..., : dims // 2], x[..., dims // 2 : dims]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate(
        [one * cos - two * sin, two * cos + one * sin, x[..., dims:]], -1
    )


# Decode loops. They stop as soon as the text up to its first EOS or its end is there.


def is_done(text, begin, end, mask, eos):
    made = [token for token in text[begin:end]] + [mask] * (end - len(text))
    if eos in made:
        made = made[: made.index(eos)]
    return mask not in made


def fast_dllm_v2(net, prompt, new, part, threshold, use_block_cache=False, eos=None):
    """(text, calls), prefill apart. A block's first token comes with the one before."""
    size, mask = net.size, net.raw["mask_token_id"]
    cache, text, calls = net.empty(), list(prompt), 0
    begin, end = len(prompt), len(prompt) + new
    whole = begin // size * size
    if whole:
        logits = net(text[:whole], 0, cache)
    if whole == begin:
        text.append(int(logits[-1].argmax()))
        calls += 1  # of ours; theirs has it from the prefill
    while not is_done(text, begin, end, mask, eos):
        start, is_kept = len(text) // size * size, False
        text += [mask] * (start + size - len(text))
        for first in range(start, start + size, part):
            while mask in text[first : first + part]:
                narrow = use_block_cache and is_kept and text[first] != mask
                at, count = (first, part) if narrow else (start, size)
                logits, is_kept = net(text[at : at + count], at, cache), True
                calls += 1
                # A row predicts the position behind its own.
                fill(text, {at + 1 + n: row for n, row in enumerate(logits)},
                     range(first, first + part), threshold, mask)  # fmt: skip
                if is_done(text, begin, end, mask, eos):
                    return text, calls
        text.append(int(net(text[start : start + size], start, cache)[-1].argmax()))
        calls += 1
    return text, calls


def fill(text, law, places, threshold, mask):
    """Fills what is likely enough, and what is likeliest."""
    sure = {p: softmax(law[p]).max() for p in places if text[p] == mask}
    best = max(sure, key=lambda p: sure[p])
    for p in sure:
        if sure[p] >= threshold or p == best:
            text[p] = int(law[p].argmax())


def llada2(net, prompt, new, threshold, editing_threshold=None, max_post_steps=0):
    """(text, calls) of LLaDA 2.0, or with an `editing_threshold` of LLaDA 2.1."""
    size, mask = net.size, net.raw["mask_token_id"]
    begin, end = len(prompt), len(prompt) + new
    text = list(prompt) + [mask] * (-(-end // size) * size - begin)
    calls, cache = 0, net.empty()
    if begin >= size:
        net(text[: begin // size * size], 0, cache)
    for start in range(begin // size * size, len(text), size):
        here, post = range(start, start + size), 0
        while True:
            is_full = all(text[p] != mask for p in here)
            post += is_full
            if post > max_post_steps or (is_full and editing_threshold is None):
                break
            law = dict(zip(here, net(text[start : start + size], start, cache)))
            calls, before = calls + 1, list(text)
            if not is_full:
                fill(text, law, here, threshold, mask)
            if editing_threshold is not None:
                for p in here:
                    token = int(law[p].argmax())
                    is_new = p >= begin and before[p] not in (mask, token)
                    if is_new and softmax(law[p]).max() > editing_threshold:
                        text[p] = token
            if is_full and text == before:
                break
        net(text[start : start + size], start, cache)
    return text, calls
