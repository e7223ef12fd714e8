"""Slow references in numpy of what drafters are made of, one lane at a time."""

import numpy as np


def silu(x):
    return x / (1 + np.exp(-x))


def rms(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def rotated(x, position):
    """[H, D] turned as a Llama does."""
    half = x.shape[-1] // 2
    angle = position * 10_000.0 ** (-np.arange(half) / half)
    first, second = x[:, :half], x[:, half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], 1)


def layer(own, stream, first=0, *, full=False):
    """A layer of two heads of width 4 and one key head on `stream` [n, E].

    Causal and turned by positions from `first` on; `full`: neither.
    """
    kernel = {name: leaf["kernel"] for name, leaf in own["attention"].items()}
    normed = rms(stream, own["attention_norm"]["weight"])
    place = np.zeros(len(stream)) if full else first + np.arange(len(stream))
    query = [
        rotated((x @ kernel["query"]).reshape(2, 4), p) for x, p in zip(normed, place)
    ]
    keys = np.stack(
        [
            rotated((x @ kernel["key"]).reshape(1, 4), p)[0]
            for x, p in zip(normed, place)
        ]
    )
    values, out = normed @ kernel["value"], []
    for lane, x in enumerate(stream):
        stop = len(stream) if full else lane + 1
        score = query[lane] @ keys[:stop].T / 2  # sqrt(4)
        weight = np.exp(score - score.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        x = x + (weight @ values[:stop]).reshape(-1) @ kernel["out"]
        inner = rms(x, own["mlp_norm"]["weight"])
        mlp = {name: leaf["kernel"] for name, leaf in own["mlp"].items()}
        out.append(x + (silu(inner @ mlp["gate"]) * (inner @ mlp["up"])) @ mlp["down"])
    return np.stack(out)


def logs(raw, mask_id):
    """Logs of the law of logits [V], without the mask."""
    raw = np.array(raw, np.float64)
    raw[mask_id] = -1e9
    raw -= raw.max()
    return raw - np.log(np.exp(raw).sum())


def rounds(decoder, params, prompt, key, num_rounds=4):
    """(draft, committed tokens of each row) of the first rounds, as numpy.

    `decoder` is `speculative.draft_verify`'s.
    """
    import jax

    from pdecode import rng

    keys = rng.row_keys(key, prompt.row_ids)
    state, _ = jax.jit(decoder.init)(params, keys, prompt)
    drafter = decoder.init.args[0].drafter

    @jax.jit
    def turn(state):
        draft, _ = drafter.propose(params, keys, state.drafter, state.prefix)
        return draft, decoder.step(params, keys, state)[0]

    for _ in range(num_rounds):
        lengths, tokens = state.prefix.length.tolist(), np.asarray(state.prefix.tokens)
        draft, state = turn(state)
        rows = [row[:length].tolist() for row, length in zip(tokens, lengths)]
        yield jax.tree.map(np.asarray, draft), rows
