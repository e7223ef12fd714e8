"""The cache in codes against a slow one, and QuantSpec against plain decoding on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import decode as decode_module
from pdecode import methods, prompts
from pdecode.contracts import Prompt, Query, SlotRun, Visibility
from pdecode.decode import run
from pdecode.drafters import narrow
from pdecode.models import quantized, transformer

CONFIG = transformer.Config(
    vocab_size=19, width=16, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=24
)
MODEL = transformer.make_model(CONFIG)
PARAMS = transformer.init(CONFIG, jax.random.key(0))
GROUP, NEW = 4, 22
PROMPT = prompts.from_rows(
    [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1, 2, 3, 3, 1, 2]], max_new_tokens=[22, 20, 13]
)


coded = jax.jit(quantized.coded, static_argnums=1)
read = jax.jit(quantized.read, static_argnums=1)


@pytest.mark.parametrize("axis", [-2, -1])
def test_codes_are_as_near_as_they_say(axis):
    values = np.random.default_rng(0).normal(size=(3, 2, 5, GROUP, 8))
    values = values.astype(np.float32)
    codes = coded(values, axis)
    step = np.broadcast_to(codes.step, values.shape)
    upper, both = (np.abs(read(codes, bits) - values) for bits in (4, 8))
    assert (upper <= step / 2 * 1.0001).all() and (both <= step / 16 * 1.0001).all()
    # A lower nibble reaches from -8 to 7: only above 7.5 / 16 of a step is it clipped.
    is_whole = read(codes, 4) + step * 7.5 / 16 >= values
    assert (both <= step / 32 * 1.0001)[is_whole].all()
    assert (upper > step / 4).any() and (both > step / 64).any()
    grid = coded(np.ones_like(values), axis)
    assert (np.asarray(read(grid, 4)) == 1).all()


def eight_bits(values, axis):
    """`values` as eight bits give them back, in numpy."""
    low = values.min(axis, keepdims=True)
    step = (values.max(axis, keepdims=True) - low) / 15
    upper = np.clip(np.round((values - low) / step), 0, 15)
    lower = np.clip(np.round((values - upper * step - low) / (step / 16)), -8, 7)
    return upper * step + low + lower * step / 16


def by_hand(tokens, prompt_len, code=eight_bits):
    """Hidden states of one row from the prompt's last token on, a call a token."""
    slots = len(tokens)
    one = jnp.ones(1, jnp.int32)
    fresh = Prompt(jnp.asarray([tokens[:prompt_len]]), one * prompt_len, one, one)
    exact = MODEL.init_cache(fresh, slots)
    _, exact = prompts.prefill(MODEL, PARAMS, fresh, exact, drop=1)
    exact = jax.tree.map(np.array, exact)
    found = []
    for place in range(prompt_len - 1, len(tokens)):
        read = jax.tree.map(np.array, exact)
        for first in range(0, GROUP * max(0, place // GROUP - 1), GROUP):
            here = np.s_[:, :, first : first + GROUP]
            for layer, old in zip(read, exact):
                layer["k"][here] = code(old["k"][here], 2)
                layer["v"][here] = code(old["v"][here], 3)
        at = jnp.full((1, 1), place, jnp.int32)
        query = Query(
            jnp.asarray([[tokens[place]]]), at, SlotRun(at[0]),
            Visibility(jnp.zeros_like(at), at + 1),
        )  # fmt: skip
        output, after = one_call(MODEL, query, read)
        for layer, new in zip(exact, after):
            for name in ("k", "v"):
                layer[name][:, :, place] = new[name][:, :, place]
        found.append(np.asarray(output.hidden[0, 0]))
    return np.array(found)


@functools.partial(jax.jit, static_argnums=0)
def one_call(model, query, cache):
    return model.apply(PARAMS, query, cache)


@functools.partial(jax.jit, static_argnums=0)
def read_through(model, tokens, prompt):
    """The same from the model on codes, rows at once: hidden [T, B, E]."""
    cache = model.init_cache(prompt, tokens.shape[1])
    _, cache = prompts.prefill(model, PARAMS, prompt, cache, drop=1)

    def turn(cache, nth):
        place = (prompt.lengths - 1 + nth)[:, None]
        query = Query(
            jnp.take_along_axis(tokens, jnp.minimum(place, tokens.shape[1] - 1), 1),
            place, SlotRun(place[:, 0], place < tokens.shape[1]),
            Visibility(jnp.zeros_like(place), place + 1),
        )  # fmt: skip
        output, cache = model.apply(PARAMS, query, cache)
        return cache, output.hidden[:, 0]

    return jax.lax.scan(turn, cache, jnp.arange(tokens.shape[1]))[1]


def test_the_model_on_codes_is_the_model_on_keys_coded_by_hand():
    lengths = np.asarray(PROMPT.lengths)
    total = 21
    tokens = np.array(
        jax.random.randint(jax.random.key(3), (3, total), 0, 19, jnp.int32)
    )
    for row, length in enumerate(lengths):
        tokens[row, :length] = PROMPT.tokens[row, :length]
    model = quantized.quantized(MODEL, GROUP)
    found = np.asarray(read_through(model, jnp.asarray(tokens), PROMPT))
    for row, length in enumerate(lengths):
        wanted = by_hand(tokens[row].tolist(), int(length))
        mine = found[: len(wanted), row]
        np.testing.assert_allclose(mine, wanted, atol=2e-5)
    # Negative control: eight bits are not the numbers themselves.
    plain = by_hand(tokens[row].tolist(), int(length), lambda values, axis: values)
    assert np.abs(plain - wanted).max() > 1e-3


@functools.partial(jax.jit, static_argnames=("method", "bits"))
def decoded(method, temperature, seed, bits=8):
    """(generation, stats, last state) of QuantSpec, or of plain decoding in `bits`."""
    sizes = {"max_new_tokens": NEW, "temperature": temperature}
    if method is methods.autoregressive:
        decoder = method(quantized.quantized(MODEL, GROUP, bits=bits), **sizes)
    else:
        decoder = method(MODEL, num_draft=3, group=GROUP, acceptance="coupled", **sizes)
    state, stats = decode_module.decode_state(
        decoder, PARAMS, PROMPT, jax.random.key(seed)
    )
    return decode_module.finish(decoder, state), stats, state


def gap(found, wanted):
    """The largest difference of log-probabilities; None if a token differs."""
    if not np.array_equal(found[0].tokens, wanted[0].tokens):
        return None
    return float(np.abs(found[0].log_probs - wanted[0].log_probs).max())


def test_tokens_are_those_of_plain_decoding_on_eight_bits():
    for temperature, seed in ((0.0, 0), (1.0, 0), (1.0, 1), (1.0, 2)):
        wanted = decoded(methods.autoregressive, temperature, seed)
        found = decoded(methods.quantspec, temperature, seed)
        assert gap(found, wanted) < 1e-5
        assert (found[1].num_calls < wanted[1].num_calls).all()
        _nothing_refused_is_left(found[2], wanted[2])
    # Negative control: the law of 4 bits is not that of 8.
    other = gap(found, decoded(methods.autoregressive, temperature, seed, bits=4))
    assert other is None or other > 5e-4


def test_a_draft_across_groups_reads_other_bits(monkeypatch):
    """Negative control: what is coded then depends on where a call begins."""

    def uncut(*models, **settings):  # another function: another program
        return methods.quantspec(*models, **settings)

    monkeypatch.setattr(narrow, "is_inside", lambda place, root, group: place > root)
    found = decoded(uncut, 1.0, 0)
    other = gap(found, decoded(methods.autoregressive, 1.0, 0))
    assert other is None or other > 5e-4


def _nothing_refused_is_left(mine, its):
    """The caches of two decodes of one text say the same: codes and recent tokens."""
    length = np.asarray(mine.prefix.length)
    mine, its = mine.cache, its.cache
    count = np.minimum(mine.num_coded, its.num_coded)
    later = np.maximum(mine.num_coded, its.num_coded)
    assert (count >= GROUP).all()
    is_leaf = lambda node: isinstance(node, quantized.Leaf)  # noqa: E731
    for one, other in zip(
        jax.tree.leaves(mine.leaves, is_leaf=is_leaf),
        jax.tree.leaves(its.leaves, is_leaf=is_leaf),
    ):
        one = np.asarray(whole(one, mine.num_coded))
        other = np.asarray(whole(other, its.num_coded))
        for b in range(3):
            for first, last in ((0, count[b]), (later[b], length[b] - 2)):
                here = np.s_[b, :, first:last]
                np.testing.assert_allclose(one[here], other[here], atol=1e-3)


whole = jax.jit(functools.partial(quantized._whole, bits=8))


def test_four_bit_weights_are_near_and_smaller():
    wide = jax.jit(lambda tree: quantized.widened(quantized.narrow(tree)))(PARAMS)
    for leaf, its in zip(jax.tree.leaves(PARAMS), jax.tree.leaves(wide)):
        assert leaf.shape == its.shape
        reach = (
            leaf.max(-2, keepdims=True) - leaf.min(-2, keepdims=True)
            if leaf.ndim > 1
            else 0
        )
        assert (np.abs(leaf - its) <= reach / 30 * 1.001 + 1e-7).all()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="num_draft=4 tokens"):
        methods.quantspec(MODEL, max_new_tokens=4, num_draft=4, group=4)
    with pytest.raises(ValueError, match="bits=5"):
        quantized.quantized(MODEL, 4, bits=5)
    model = quantized.quantized(MODEL, 4)
    with pytest.raises(ValueError, match="a call of 6 lanes"):
        run(
            methods.prompt_lookup, model, PARAMS, PROMPT, jax.random.key(0),
            max_new_tokens=4, num_draft=5,
        )  # fmt: skip
