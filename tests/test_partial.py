"""SpecPV: a verifier that reads parts of a context, and all of it now and then."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import decode as decode_module
from pdecode import methods, prompts
from pdecode.decode import run
from pdecode.models import partial, transformer

CONFIG = transformer.Config(
    vocab_size=19, width=16, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=24
)
MODEL = transformer.make_model(CONFIG)
OWN = transformer.init(CONFIG, jax.random.key(0))
FAR = transformer.init(CONFIG, jax.random.key(1))
PARAMS = {
    "model": OWN,
    "drafter": jax.tree.map(lambda a, b: 0.8 * a + 0.2 * b, OWN, FAR),
}
_DRAW = np.random.default_rng(0)
ROWS = [_DRAW.integers(0, 19, size).tolist() for size in (40, 3, 21, 30)]
NEW = 20
PROMPT = prompts.from_rows(ROWS, max_new_tokens=[NEW, NEW, 15, NEW])
FEW = {"block_length": 4, "num_first": 1, "num_retrieved": 2, "num_last": 2}


def spec(num_draft=3, buffer_len=4, temperature=0.0, **sizes):
    sizes = {**FEW, **sizes}
    return run(
        methods.spec_pv, (MODEL, MODEL), PARAMS, PROMPT, jax.random.key(0),
        knobs={"temperature": temperature}, max_new_tokens=NEW, num_draft=num_draft,
        buffer_len=buffer_len, **sizes,
    )  # fmt: skip


def plain(temperature=0.0, num_draft=3):
    return run(
        methods.speculative_sampling, (MODEL, MODEL), PARAMS, PROMPT,
        jax.random.key(0), knobs={"temperature": temperature}, max_new_tokens=NEW,
        num_draft=num_draft,
    )  # fmt: skip


def test_parts_that_hold_everything_are_the_model_itself():
    """At any temperature the very draws, and where they do not, other tokens."""
    for temperature in (0.0, 1.0):
        wanted, slow = plain(temperature)
        out, stats = spec(temperature=temperature, num_retrieved=20)
        np.testing.assert_array_equal(out.tokens, wanted.tokens)
        np.testing.assert_allclose(out.log_probs, wanted.log_probs, atol=1e-4)
        np.testing.assert_array_equal(stats.num_calls, slow.num_calls)
        assert (stats.num_query_tokens > slow.num_query_tokens).all()
        # Negative control: a context beyond the parts.
        out, _ = spec(temperature=temperature)
        assert not np.array_equal(out.tokens, wanted.tokens)
        # The row that is short enough all along is exact even so.
        np.testing.assert_array_equal(out.tokens[1], wanted.tokens[1])


@functools.cache
def trace():
    """Every state of a decode on parts, and its program's step."""
    decoder = methods.spec_pv(
        MODEL, MODEL, max_new_tokens=NEW, num_draft=3, buffer_len=4, **FEW
    )
    carry = jax.jit(functools.partial(decode_module.start, decoder))(
        PARAMS, PROMPT, jax.random.key(0)
    )
    turn = jax.jit(functools.partial(decode_module.turn_once, decoder))
    states = [carry.state]
    while not bool(decoder.done(carry.state).all()):
        carry = turn(PARAMS, carry)
        states.append(carry.state)
    return states, carry


def exact_cache(state, like):
    length = np.asarray(state.prefix.length)
    text = [row[:n].tolist() for row, n in zip(np.asarray(state.prefix.tokens), length)]
    fresh = prompts.from_rows(
        text, max_new_tokens=1, pad_to=state.prefix.tokens.shape[1]
    )
    return prefilled(fresh, jax.tree.leaves(like)[0].shape[2])


@functools.partial(jax.jit, static_argnums=1)
def prefilled(text, slots):
    return prompts.prefill(MODEL, OWN, text, MODEL.init_cache(text, slots))[1]


def test_after_a_full_pass_the_cache_is_exact_and_before_it_is_not():
    states, _ = trace()
    num_full = 0
    for before, after in itertools.pairwise(states):
        passed = np.asarray(after.cache.since > before.cache.since)
        if not passed.any():
            continue
        wanted = exact_cache(after, after.cache.whole)
        for b in np.flatnonzero(passed):
            root = int(after.prefix.length[b]) - 1
            num_full += 1
            for mine, its in zip(
                jax.tree.leaves(after.cache.whole), jax.tree.leaves(wanted)
            ):
                np.testing.assert_allclose(
                    mine[b, :, :root], its[b, :, :root], atol=1e-5
                )
    assert num_full >= 8
    # Negative control: what partial calls stored of a long row is not exact.
    last = states[-1]
    held = last.cache.is_held.shape[1]
    wanted = exact_cache(last, last.cache.whole)
    since, root = int(last.cache.since[0]), int(last.prefix.length[0]) - 1
    assert root - since > 1
    mine = last.cache.part[1]["k"][0, :, held : held + root - since]
    assert np.abs(mine - wanted[1]["k"][0, :, since:root]).max() > 1e-3


def test_full_passes_come_when_the_buffer_is_full_and_are_counted():
    states, carry = trace()
    num_lanes = 4
    asked = np.zeros(4, int)
    for before, after in itertools.pairwise(states):
        root = np.asarray(before.prefix.length) - 1
        behind = root - np.asarray(before.cache.since)
        is_due = behind + num_lanes > 4 + num_lanes
        is_on = np.asarray(before.prefix.length < before.prefix.end)
        moved = np.asarray(after.cache.since) == root
        np.testing.assert_array_equal(
            moved[is_on & (behind > 0)], is_due[is_on & (behind > 0)]
        )
        asked += np.where(is_on, num_lanes + np.where(is_due, behind, 0), 0)
    stats = decode_module.stats_of(carry.counts)
    np.testing.assert_array_equal(stats.num_query_tokens, asked)
    assert (stats.num_query_tokens < stats.num_query_tokens_computed).all()
    assert stats.num_dispatches > stats.num_steps


def test_the_block_that_matters_is_retrieved():
    """One block's keys are like the asker's; it is read whatever stands beside it."""
    draw = np.random.default_rng(1)
    parts = partial.Parts(4, 1, 1, 2, 8)
    count, slots = 45, 48
    for planted in range(1, 9):
        keys = draw.normal(size=(1, 2, slots, 8)).astype(np.float32)
        asker = keys[0, :, 44]
        keys[0, :, 4 * planted + draw.integers(4)] = 3 * asker
        cache = ({"k": jnp.asarray(keys), "v": jnp.zeros_like(keys)},)
        found, is_held = jax.jit(partial.chosen, static_argnums=0)(
            parts, cache, jnp.array([count]), jnp.array([[44]])
        )
        blocks = np.asarray(found[0, ::4] // 4)
        np.testing.assert_array_equal(blocks, [0, planted, 10, 11])
        assert is_held.sum() == 12 + 1
        # The bound holds for every key of every block.
        bound = partial._score(
            jnp.asarray(keys), jnp.array([count]), jnp.array([[44]]), 4
        )
        own = np.einsum("hsd,hd->hs", keys[0], asker).mean(0)[:44].reshape(11, 4)
        assert (own.max(1) <= np.asarray(bound)[0, :11] + 1e-4).all()


def test_what_parts_cannot_serve_is_refused():
    with pytest.raises(ValueError, match="need a last block"):
        partial.partial(MODEL, partial.Parts(4, 1, 1, 0, 8))
    with pytest.raises(ValueError, match="layers that see a window"):
        partial.partial(MODEL._replace(slides=True), partial.Parts(4, 1, 1, 1, 8))
    model = partial.partial(MODEL, partial.Parts(4, 1, 1, 1, 8))
    with pytest.raises(ValueError, match="judges chains"):
        run(
            methods.specinfer, (model, MODEL), PARAMS, PROMPT, jax.random.key(0),
            max_new_tokens=4, branching=(2, 1),
        )  # fmt: skip


def test_default_sizes_serve_a_short_context():
    prompt = prompts.from_rows([[1, 2, 3]], max_new_tokens=4)
    out, _ = run(
        methods.spec_pv, (MODEL, MODEL), PARAMS, prompt, jax.random.key(0),
        max_new_tokens=4, num_draft=2,
    )  # fmt: skip
    plain, _ = run(
        methods.autoregressive, MODEL, PARAMS["model"], prompt, jax.random.key(0),
        max_new_tokens=4,
    )  # fmt: skip
    assert out.tokens.tolist() == plain.tokens.tolist()
