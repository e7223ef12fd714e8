"""A network behind the `Model` record, tried against what the families ask of it.

Each property is a pair of calls that must answer alike: a window and the calls before
it, a ragged row and the same row alone, a branch of a tree and the same tokens as a
chain. What does not hold is said as what the model cannot serve.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdecode.checks.report import Finding, Report
from pdecode.contracts import Model, Params, Prompt, Query, SlotRun, Visibility
from pdecode.kernels.head import dense

TOKENS = 6
CLOSE = 2e-3  # of log-probabilities; float32 and several orders of summing


class Net(NamedTuple):
    """A model, its params, and one compiled call for each shape."""

    model: Model
    params: Params
    call: Any  # (params, query, cache) -> (log_probs [B, Q, V], cache)

    def empty(self, batch: int, num_slots: int) -> Any:
        """A cache for `batch` rows."""
        one = jnp.ones(batch, jnp.int32)
        blank = jnp.zeros((batch, 1), jnp.int32)
        prompt = Prompt(blank, one, jnp.arange(batch, dtype=jnp.int32), one)
        return self.model.init_cache(prompt, num_slots)


def report(model: Model, params: Params, name: str) -> Report:
    """What `model` with `params` serves, and what it does not."""
    if params is None:
        raise ValueError(f"{name} needs its params: pdecode.check(model, params)")
    net = Net(model, params, jax.jit(lambda *args: _answer(model, *args)))
    shape = _shapes(net)
    if not shape.holds:
        return Report(name, "model", (shape,))
    tried = [_windows, _ragged, _holes] if model.predicts == "next" else [
        _canvas, _ragged, _holes
    ]  # fmt: skip
    if model.predicts == "next":
        tried += [_trees, _move]
    findings = [shape, *(each(net) for each in tried)]
    return Report(name, "model", tuple(findings))


def _answer(model: Model, params, query, cache):
    output, cache = model.apply(params, query, cache)
    raw = dense.logits(model.head(params), output.hidden)
    return jax.nn.log_softmax(raw.astype(jnp.float32)), cache


def _tokens(net: Net, rows: int = 1, seed: int = 0) -> np.ndarray:
    most = min(net.model.vocab_size, 50)
    drawn = np.random.default_rng(seed).integers(0, most, (rows, TOKENS))
    if net.model.mask_id is not None and net.model.mask_id < most:
        drawn = np.where(drawn == net.model.mask_id, 0, drawn)
    return drawn.astype(np.int32)


def _ask(net: Net, tokens, positions, slots, start, stop, cache, **more):
    tokens, positions = (jnp.asarray(each, jnp.int32) for each in (tokens, positions))
    if not isinstance(slots, SlotRun) and slots is not None:
        slots = jnp.asarray(slots, jnp.int32)
    visible = Visibility(
        jnp.asarray(start, jnp.int32), jnp.asarray(stop, jnp.int32),
        **{k: jnp.asarray(v) for k, v in more.items()},
    )  # fmt: skip
    made, cache = net.call(net.params, Query(tokens, positions, slots, visible), cache)
    return np.asarray(made), cache


def _whole(net: Net, tokens: np.ndarray):
    """One call of all tokens: each sees those up to itself, or all of them."""
    batch, size = tokens.shape
    place = np.broadcast_to(np.arange(size), (batch, size))
    is_causal = net.model.predicts == "next"
    stop = place + 1 if is_causal else np.full_like(place, size)
    run = SlotRun(jnp.zeros(batch, jnp.int32))
    cache = net.empty(batch, size + 4)
    return _ask(net, tokens, place, run, np.zeros_like(place), stop, cache)


def _off(a: np.ndarray, b: np.ndarray) -> float:
    """The largest gap between two laws' probabilities."""
    return float(np.abs(np.exp(a) - np.exp(b)).max())


def _said(about: str, off: float, good: str, bad: str) -> Finding:
    if off < CLOSE:
        return Finding(about, True, good, off)
    return Finding(about, False, f"{bad} (probabilities differ by {off:.2g})", off)


def _shapes(net: Net) -> Finding:
    """The record's own claims: shapes, a law over the vocabulary, numbers."""
    tokens = _tokens(net, rows=2)
    try:
        made, _ = _whole(net, tokens)
    except Exception as error:
        what = " ".join(str(error).split())[:300]
        says = f"a call of {tokens.shape} tokens failed: {type(error).__name__}: {what}"
        return Finding("calls", False, says)
    want = (*tokens.shape, net.model.vocab_size)
    if made.shape != want:
        return Finding("calls", False, f"a call answers {made.shape}, not {want}")
    if not np.isfinite(made).all():
        return Finding("calls", False, "a call answers what is no number")
    return Finding("calls", True, f"a call answers a law over {want[-1]} tokens a lane")


def _windows(net: Net) -> Finding:
    """One token a call, and two windows, against one call of all."""
    tokens = _tokens(net)
    want, _ = _whole(net, tokens)
    off = 0.0
    for sizes in ([1] * TOKENS, [TOKENS - 3, 3]):
        cache, begin = net.empty(1, TOKENS + 4), 0
        for size in sizes:
            place = np.arange(begin, begin + size)[None]
            here = slice(begin, begin + size)
            got, cache = _ask(
                net,
                tokens[:, here],
                place,
                place,
                np.zeros_like(place),
                place + 1,
                cache,
            )
            off = max(off, _off(got, want[:, here]))
            begin += size
    return _said(
        "windows", off, "one token a call, windows and the whole text answer alike",
        "what a later call sees of earlier ones is not what it was: the cache does not "
        "hold them, so it can serve no method that keeps a prefix",
    )  # fmt: skip


def _canvas(net: Net) -> Finding:
    """An open position must see what stands behind it."""
    tokens = _tokens(net)
    tokens[0, [0, 2]] = net.model.mask_id
    want, cache = _whole(net, tokens)
    changed = tokens.copy()
    changed[0, 1] = (changed[0, 1] + 1) % min(net.model.vocab_size - 1, 50)
    other, _ = _whole(net, changed)
    if _off(want[:, 0], other[:, 0]) < 1e-7:
        says = (
            "the law of an open position does not change with the token behind it: it "
            "sees one side only, so it cannot fill holes or blocks"
        )
        return Finding("both sides", False, says)
    # A window of the middle, the rest from the cache of the whole.
    place = np.arange(2, 4)[None]
    full = np.full_like(place, TOKENS)
    got, _ = _ask(net, tokens[:, 2:4], place, place, 0 * place, full, cache)
    return _said(
        "windows", _off(got, want[:, 2:4]),
        "every position sees both sides, and a window answers as the whole canvas does",
        "a window of the canvas answers otherwise than the whole: serve it with whole "
        "canvases only (no cache, no window)",
    )  # fmt: skip


def _ragged(net: Net) -> Finding:
    """Rows of other lengths beside it, and junk behind it, must not change a row."""
    rows = _tokens(net, rows=3, seed=1)
    lengths = np.array([TOKENS, 3, 4])
    place = np.broadcast_to(np.arange(TOKENS), rows.shape)
    stop = np.minimum(place + 1, lengths[:, None])
    if net.model.predicts != "next":
        stop = np.broadcast_to(lengths[:, None], place.shape)
    run = SlotRun(jnp.zeros(3, jnp.int32))
    got, _ = _ask(net, rows, place, run, 0 * place, stop, net.empty(3, TOKENS + 4))
    off = 0.0
    for row, length in enumerate(lengths):
        want, _ = _whole(net, rows[row : row + 1, :length])
        off = max(off, _off(got[row : row + 1, :length], want))
    return _said(
        "ragged rows", off, "a row answers the same alone and beside longer ones",
        "a row's answer changes with the padding behind it or with its company: it "
        "looks at slots beyond `stop`; decode rows of one length, one at a time",
    )  # fmt: skip


def _holes(net: Net) -> Finding:
    """Slots in another order than positions, with one that is not written."""
    tokens = _tokens(net)[:, :4]
    place = np.arange(4)[None]
    is_causal = net.model.predicts == "next"
    want, _ = _whole(net, tokens)
    # The first three tokens in slots 5, 1, 3, and the last asks, seeing those three.
    slots = np.array([[5, 1, 3]])
    low = np.tril(np.ones((3, 3), bool)) if is_causal else np.ones((3, 3), bool)
    if is_causal:
        cache = net.empty(1, TOKENS + 4)
        zero = np.zeros((1, 3), int)
        _, cache = _ask(
            net, tokens[:, :3], place[:, :3], slots, zero, zero, cache, among=low[None]
        )
        written = np.zeros((1, TOKENS + 4), bool)
        written[0, [5, 1, 3]] = True
        got, _ = _ask(
            net, tokens[:, 3:], place[:, 3:], [[TOKENS + 9]], [[0]], [[TOKENS + 4]],
            cache, written=written, among=np.ones((1, 1, 1), bool),
        )  # fmt: skip
        off = _off(got[:, 0], want[:, 3])
    else:
        cache = net.empty(1, TOKENS + 4)
        zero = np.zeros((1, 4), int)
        got, _ = _ask(
            net, tokens, place, [[5, 1, 3, 0]], zero, zero, cache,
            among=np.ones((1, 4, 4), bool),
        )  # fmt: skip
        off = _off(got, want)
    return _said(
        "positions", off,
        "positions are read from the query, wherever a token is stored",
        "it takes a token's slot for its position, or reads slots that are not "
        "written: any-order methods, probes and token trees would be wrong",
    )  # fmt: skip


def _trees(net: Net) -> Finding:
    """Two branches in one call against each as a chain."""
    tokens = _tokens(net)
    prefix = tokens[:, :3]
    place = np.arange(3)[None]
    run = SlotRun(jnp.zeros(1, jnp.int32))
    _, cache = _ask(net, prefix, place, run, 0 * place, place + 1,
                    net.empty(1, TOKENS + 4))  # fmt: skip
    # Lanes: root (position 3), then two children (position 4) of it.
    branch = tokens[0, 3:6]
    lanes, at = branch[None], np.array([[3, 4, 4]])
    among = np.array([[[1, 0, 0], [1, 1, 0], [1, 0, 1]]], bool)
    three = np.full((1, 3), 3)
    slots = np.array([[3, 4, 5]])
    got, _ = _ask(net, lanes, at, slots, 0 * three, three, cache, among=among)
    off = 0.0
    for node in (1, 2):
        chain = np.concatenate([prefix, branch[None, [0, node]]], 1)
        want, _ = _whole(net, chain)
        off = max(off, _off(got[:, node], want[:, 4]))
    return _said(
        "trees", off, "a branch of a token tree answers as the same tokens in a row",
        "lanes of a tree see their siblings, or not their parents: draft chains only "
        "(prompt_lookup, speculative_sampling), no token trees",
    )  # fmt: skip


def _move(net: Net) -> Finding:
    """An accepted branch is moved next to the prefix."""
    tokens = _tokens(net)[:, :5]
    want, _ = _whole(net, tokens)
    place = np.arange(3)[None]
    run = SlotRun(jnp.zeros(1, jnp.int32))
    _, cache = _ask(net, tokens[:, :3], place, run, 0 * place, place + 1,
                    net.empty(1, TOKENS + 4))  # fmt: skip
    one = np.ones((1, 1, 1), bool)
    _, cache = _ask(net, tokens[:, 3:4], [[3]], [[6]], [[0]], [[3]], cache, among=one)
    move = jax.jit(net.model.move)
    cache = move(cache, jnp.array([[6]]), SlotRun(jnp.array([3])))
    got, _ = _ask(net, tokens[:, 4:5], [[4]], [[4]], [[0]], [[5]], cache)
    return _said(
        "move", _off(got[:, 0], want[:, 4]),
        "slots that are moved answer as if they had been written there",
        "`move` does not bring along what a slot holds: accepted branches of a tree "
        "would be lost",
    )  # fmt: skip
