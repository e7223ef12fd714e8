"""Several blocks at once, and what is computed again of a canvas."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_revising import SCALE, tiny

from pdecode import cache as caches
from pdecode import decode, methods, prompts, run
from pdecode.contracts import CanvasShape, Query, Row, Sampling, Visibility
from pdecode.families import masked
from pdecode.kernels.attention import plain
from pdecode.models import observed, reused, toy, transformer
from pdecode.rules import blocks, commit, windows

VOCAB = 4
LAW = toy.chain(5, VOCAB, 20)
TOY = toy.make_model(VOCAB, 20, predicts="masked")
ROWS = prompts.from_rows(
    [[0, 1], [2], [1, 3, 0, 2], [1]], max_new_tokens=[12, 12, 12, 7]
)

BLOCK_CAUSAL = tiny(attention="block_causal", block_len=4, seed=1)
BIDIRECTIONAL = tiny()
# Prompts on and off the grid of 4.
LENGTHS = (8, 5, 6, 7, 1, 4, 3, 2)
_DRAW = np.random.default_rng(0)
TEXTS = [_DRAW.integers(0, 11, n).tolist() for n in LENGTHS]
NEW = (12, 8, 12, 9, 12, 5, 12, 12)
EVERY_LENGTH = prompts.from_rows(TEXTS, max_new_tokens=NEW)


def decoded(decoder, params, prompt=EVERY_LENGTH, key=0):
    program = jax.jit(functools.partial(decode.decode, decoder))
    return jax.tree.map(np.asarray, program(params, prompt, jax.random.key(key)))


def on_toy(method, **settings):
    knobs = {"temperature": 1.0, **settings.pop("knobs")}
    result = run(
        method, TOY, LAW, ROWS, jax.random.key(1), knobs=knobs, max_new_tokens=12,
        block_length=3, **settings,
    )  # fmt: skip
    return jax.tree.map(np.asarray, result)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def generated(out):
    return [
        row[start : start + length].tolist()
        for row, start, length in zip(out.tokens, out.start, out.lengths)
    ]


# Several blocks at once.


@pytest.mark.parametrize("add", [1.0, 0.3])
def test_a_pipeline_that_waits_is_a_row_of_blocks(add):
    """Bit for bit at thresholds of 1; an earlier start is another decode."""
    plain = on_toy(methods.fast_dllm, knobs={"threshold": 0.5 * SCALE})
    knobs = {
        "threshold": 0.5 * SCALE,
        "block_add_threshold": add,
        "decoded_token_threshold": 1.0,
    }
    piped = on_toy(methods.d2f, knobs=knobs)
    if add == 1:
        assert_same(plain, piped)
        return
    assert (piped[1].num_calls < plain[1].num_calls).any()
    assert (piped[1].num_proposed > plain[1].num_proposed).any()


def test_a_pipeline_needs_at_most_a_call_a_token():
    """With nothing ever sure, each forced block commits one."""
    never = {"threshold": 1.0, "block_add_threshold": 0.3}
    first = on_toy(methods.d2f, forced="first", knobs=never)[1]
    assert first.num_calls.tolist() == [12, 12, 12, 7]
    both = {**never, "decoded_token_threshold": 0.3}
    active = on_toy(methods.d2f, knobs=both)[1]
    assert (active.num_calls < first.num_calls).all()


def test_open_blocks_equal_a_loop():
    grid = blocks.generation(3)
    draw = np.random.default_rng(1)
    active = jax.jit(
        lambda row, add: blocks.pipelined(grid, add, 3).active(row),
    )
    for _ in range(20):
        masked_ = draw.random(14) < draw.random()
        masked_[:2] = False
        masked_[13] = True
        generated_ = np.arange(14) >= 2
        add = float(draw.choice([0.0, 0.3, 0.34, 0.6, 1.0]))
        block = (int(np.flatnonzero(masked_)[0]) - 2) // 3
        row = Row(*[None] * len(Row._fields))._replace(
            prompt_end=jnp.int32(2), block=jnp.int32(block),
            masked=jnp.asarray(masked_), generated=jnp.asarray(generated_),
        )  # fmt: skip
        expected, now = set(), block
        while now < 4 and now < block + 3:
            here = range(2 + 3 * now, 5 + 3 * now)
            expected |= set(here)
            if 1 - masked_[list(here)].mean() < np.float32(add):
                break
            now += 1
        found = np.flatnonzero(np.asarray(active(row, add)) & generated_)
        assert set(found) == expected


# Block-causal models: an exact cache.


def on_blocks(method, **settings):
    model, params = BLOCK_CAUSAL
    knobs = settings.pop("knobs")
    result = run(
        method, model, params, EVERY_LENGTH, jax.random.key(0), knobs=knobs,
        max_new_tokens=12, **settings,
    )  # fmt: skip
    return jax.tree.map(np.asarray, result)


def test_the_cache_of_a_pipeline_is_exact_for_every_prompt_length():
    knobs = {"threshold": 0.3, "block_add_threshold": 0.4}
    whole, stats = on_blocks(methods.d2f, knobs=knobs)
    kept, its = on_blocks(methods.d2f, knobs=knobs, cache="block", max_blocks=4)
    assert generated(whole) == generated(kept)
    np.testing.assert_array_equal(stats.num_calls, its.num_calls)
    assert (its.num_query_tokens < stats.num_query_tokens).all()
    # Blocks were open beside one another.
    alone = on_blocks(methods.fast_dllm, knobs={"threshold": 0.3})[1]
    assert (stats.num_calls < alone.num_calls).any()


@pytest.mark.parametrize("behind", [True, False])
def test_a_finished_block_must_be_stored_once_more(behind):
    """Negative control: without it, keys of masks stay in the cache."""
    model, params = BLOCK_CAUSAL
    grid = blocks.of(model, None)
    refresh = windows.finished(grid)
    if not behind:
        refresh = refresh._replace(window=windows.unit)
    made = [
        masked.masked_diffusion(
            model, commit.threshold(0.3), max_new_tokens=12, sampling=Sampling(0.0),
            blocks=grid, window=window, refresh=again,
        )
        for window, again in (
            (windows.canvas, None),
            (windows.unit, refresh),
        )
    ]  # fmt: skip
    (whole, _), (kept, stats) = (decoded(each, params) for each in made)
    assert (generated(whole) == generated(kept)) == behind
    if behind:
        # A block of 4 a call, its predecessor once more where it begins, no canvas.
        assert (stats.num_query_tokens <= 4 * stats.num_calls + 4 * 4).all()
        assert stats.num_prefill_tokens.tolist() == list(LENGTHS)


def test_the_exact_cache_serves_prompts_with_holes():
    model, params = BLOCK_CAUSAL
    holes = [[i in (1, 2, 5) for i in range(n)] for n in LENGTHS]
    made = prompts.from_rows(TEXTS, max_new_tokens=6, holes=holes)
    results = []
    for cache in ("none", "dual"):
        out, _ = run(
            methods.fast_dllm, model, params, made, jax.random.key(0),
            knobs={"threshold": 0.3}, max_new_tokens=6, cache=cache,
        )  # fmt: skip
        results.append([out.tokens[b, : n + 6].tolist() for b, n in enumerate(LENGTHS)])
    assert results[0] == results[1]


def test_first_hitting_needs_a_call_a_token():
    out, stats = on_blocks(methods.bd3lm, knobs={})
    new = np.array(NEW)
    # Of a last block that reaches beyond the row's end some may be filled for nothing.
    beyond = -(np.array(LENGTHS) + new) % 4
    assert (stats.num_calls >= new).all() and (stats.num_calls <= new + beyond).all()
    assert (beyond == 0).any()
    np.testing.assert_array_equal(out.lengths, NEW)
    decoder = methods.bd3lm(BLOCK_CAUSAL[0], max_new_tokens=12)
    assert decoder.guarantee == "exact"


# Parts of a block.


def v2(**settings):
    return on_blocks(
        methods.fast_dllm_v2, knobs={"threshold": 0.3, "top_p": 1.0}, **settings
    )


def test_one_part_a_block_is_fast_dllm():
    whole, stats = on_blocks(methods.fast_dllm, knobs={"threshold": 0.3}, cache="dual")
    parts, its = v2(small_block_size=4)
    assert generated(whole) == generated(parts)
    np.testing.assert_array_equal(stats.num_calls, its.num_calls)
    smaller, _ = v2(small_block_size=2)
    assert generated(smaller) != generated(whole)


@pytest.mark.parametrize("is_shifted", [False, True])
def test_parts_over_the_exact_cache_equal_the_canvas(is_shifted):
    model, params = BLOCK_CAUSAL
    if is_shifted:
        model = transformer.shifted(model, 16)
    grid = blocks.parts(2, 4)

    def result(window, refresh):
        decoder = masked.masked_diffusion(
            model, commit.threshold(0.6), max_new_tokens=12, sampling=Sampling(0.0),
            blocks=grid, window=window, refresh=refresh,
        )  # fmt: skip
        return decoded(decoder, params)

    whole, _ = result(windows.canvas, None)
    kept, stats = result(windows.unit, windows.finished(grid))
    assert generated(kept) == generated(whole)
    # Inside a block the cache of parts is an approximation, of fewer lanes.
    inner = windows.finished(grid, is_inner=True)
    near, its = result(windows.active_block, inner)

    def gap(out):
        told = whole.committed & out.committed
        return np.abs(np.where(told, out.log_probs - whole.log_probs, 0)).max()

    assert gap(near) > 10 * gap(kept)  # no rounding
    few = (its.num_query_tokens / its.num_calls).mean()
    assert few < (stats.num_query_tokens / stats.num_calls).mean()


# Approximate caches.


@pytest.mark.parametrize("name", ["prefix", "dual", "delayed", "open"])
def test_a_cache_refreshed_every_step_is_no_cache(name):
    """Bit for bit; and refreshed less often it differs, so that it is one."""
    model, params = BIDIRECTIONAL
    grid = blocks.generation(4)
    window = {
        "prefix": windows.from_block_on,
        "dual": windows.active_block,
        "delayed": windows.delayed,
        "open": windows.open_blocks(1),
    }[name]

    def result(window, refresh):
        decoder = masked.masked_diffusion(
            model, commit.threshold(0.3), max_new_tokens=12, sampling=Sampling(0.0),
            blocks=grid, window=window, refresh=refresh,
        )  # fmt: skip
        out, stats = decoded(decoder, params)
        return out, stats.num_calls, stats.num_query_tokens

    whole = result(windows.canvas, None)
    assert_same(whole, result(window, windows.every(1)))
    rarely = windows.every(3) if name == "delayed" else windows.at_block_start
    kept = result(window, rarely)
    assert np.abs(kept[0].log_probs - whole[0].log_probs).max() > 1e-3
    assert (kept[2] / kept[1] < whole[2] / whole[1]).any()


def test_a_delayed_cache_of_one_step_is_llada():
    model, params = BIDIRECTIONAL

    def result(method, **knobs):
        out = run(
            method, model, params, EVERY_LENGTH, jax.random.key(0), max_new_tokens=12,
            knobs=knobs,
        )  # fmt: skip
        return jax.tree.map(np.asarray, out)

    whole = result(methods.llada)
    assert_same(whole, result(methods.dkv_cache, cache_steps=1))
    kept, stats = result(methods.dkv_cache, cache_steps=4)
    assert generated(kept) != generated(whole[0])
    # A step asks for what is open and for the one token that was just filled.
    n, new = np.array(LENGTHS), np.array(NEW)
    asked = [
        sum(
            length + total if turn % 4 == 0 else total - turn + 1
            for turn in range(total)
        )
        for length, total in zip(n, new)
    ]
    np.testing.assert_array_equal(stats.num_query_tokens, asked)
    np.testing.assert_array_equal(stats.num_calls, new)


def test_keys_of_masks_kept_for_tokens_are_caught():
    """Negative control: without the delay a committed token's keys are those of M."""
    model, params = BIDIRECTIONAL

    def hasty(*facts):
        window = windows.delayed(*facts)

        def apply(row):
            return window.apply(row._replace(fresh=row.fresh & False))

        return window._replace(apply=apply)

    outs = [
        decoded(
            masked.masked_diffusion(
                model, commit.threshold(0.3), max_new_tokens=12,
                sampling=Sampling(0.0), window=window, refresh=windows.every(4),
            ),
            params,
        )[0]
        for window in (windows.delayed, hasty)
    ]  # fmt: skip
    assert generated(outs[0]) != generated(outs[1])


# Features of the context, kept between full calls (ReCAP).


def recap(**settings):
    model, params = BIDIRECTIONAL
    out = run(
        methods.recap, model, params, EVERY_LENGTH, jax.random.key(0),
        knobs={"temperature": 0.5, "choice_temperature": 1.0}, max_new_tokens=12,
        **settings,
    )  # fmt: skip
    return jax.tree.map(np.asarray, out)


def test_without_local_steps_it_is_a_decode_of_whole_canvases():
    """And with them it is another one; local calls ask for few positions."""
    model, params = BIDIRECTIONAL
    made = methods.recap(
        model, max_new_tokens=12, steps=6, local_steps=0, choice_temperature=1.0,
        temperature=0.5,
    )  # fmt: skip
    plan = made.step.args[0]
    whole = masked.masked_diffusion(
        model, plan.rules[0], max_new_tokens=12, sampling=plan.sampling
    )
    want, stats = decoded(whole, params)
    none, its = recap(steps=6, local_steps=0)
    assert generated(want) == generated(none)
    np.testing.assert_array_equal(stats.num_query_tokens, its.num_query_tokens)
    # 12 masks over (1 - (j / 6)^2.5): 12 11 11 9 7 4 0, and one step fills no less.
    counts, full = [1, 1, 2, 2, 3, 3], [0, 1, 4]
    kept, its = recap(steps=6, local_steps=2, full_steps=1)
    assert generated(kept) != generated(none)
    rows = [b for b, new in enumerate(NEW) if new == 12]
    groups = [sum(counts[:1]), sum(counts[1:4]), sum(counts[4:])]
    for b in rows:
        asked = len(full) * (LENGTHS[b] + 12) + 2 * groups[1] + groups[2]
        assert its.num_query_tokens[b] == asked and its.num_calls[b] == 6


def test_a_local_call_over_a_fresh_cache_is_a_part_of_the_full_one():
    """Nothing filled in between: the same laws, and other ones once something is."""
    model, params = BIDIRECTIONAL
    row = [3, 1, 4, 1, 5, 11, 11, 11]
    place = jnp.arange(8, dtype=jnp.int32)[None]

    @jax.jit
    def both(tokens, later, few):
        visible = Visibility(place * 0, place * 0 + 8)
        prompt = prompts.from_rows([row], max_new_tokens=1)
        cache = model.init_cache(prompt, 8)
        whole, cache = model.apply(params, Query(tokens, place, place, visible), cache)
        part = jax.tree.map(lambda leaf: leaf[:, few], visible)
        query = Query(later[:, few], place[:, few], place[:, few], part)
        return whole.hidden[:, few], model.apply(params, query, cache)[0].hidden

    few = jnp.array([5, 7])
    tokens = jnp.asarray([row])
    whole, part = both(tokens, tokens, few)
    np.testing.assert_allclose(whole, part, atol=1e-5)
    whole, part = both(tokens, tokens.at[0, 5].set(2), few)
    assert np.abs(whole - part).max() > 1e-2


# Features of layers, kept until values change (dLLM-Cache).

SMALL = transformer.Config(
    vocab_size=12, width=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
    mlp_width=24, mask_id=11, max_positions=64, attention="bidirectional",
    predicts="masked",
)  # fmt: skip


def with_features(**periods):
    """(generation, stats, lanes made anew) of LLaDA over kept features."""
    model = reused.reused(SMALL, **periods)
    decoder = methods.llada(model, max_new_tokens=12)
    program = jax.jit(functools.partial(decode.decode_state, decoder))
    params, key = BIDIRECTIONAL[1], jax.random.key(0)
    state, stats = program(params, EVERY_LENGTH, key)
    out = decode.finish(decoder, state)
    return jax.tree.map(np.asarray, (out, stats, state.cache["rows"]))


def test_features_made_anew_every_call_are_no_cache():
    model, params = BIDIRECTIONAL
    whole, stats = decoded(methods.llada(model, max_new_tokens=12), params)
    every = with_features(prompt_every=1, response_every=1, num_updated=1)
    assert generated(every[0]) == generated(whole)
    np.testing.assert_array_equal(stats.num_calls, every[1].num_calls)
    told = whole.committed
    gap = np.where(told, every[0].log_probs - whole.log_probs, 0)
    assert np.abs(gap).max() < 1e-5
    rarely = with_features(prompt_every=8, response_every=3, num_updated=2)
    gap = np.where(told, rarely[0].log_probs - whole.log_probs, 0)
    assert np.abs(gap).max() > 1e-3 and generated(rarely[0]) != generated(whole)
    # 12 calls, of which 0 and 8 make all anew, 3 6 9 the response, the others 2 lanes.
    n, new = np.array(LENGTHS), np.array(NEW)
    lanes = 2 * (n + new) + 3 * new + 7 * np.minimum(2, new)
    np.testing.assert_array_equal(rarely[2], 2 * lanes)


def test_a_response_all_of_which_is_least_alike_is_made_anew():
    one = with_features(prompt_every=50, response_every=1, num_updated=1)
    all_ = with_features(prompt_every=50, response_every=50, num_updated=12)
    assert generated(one[0]) == generated(all_[0])
    np.testing.assert_array_equal(one[2], all_[2])
    few = with_features(prompt_every=50, response_every=50, num_updated=1)
    assert generated(few[0]) != generated(one[0])


def test_features_are_kept_of_plain_layers_and_whole_canvases_only():
    shifted = dataclasses.replace(SMALL, shift=True)
    sizes = dict(prompt_every=2, response_every=2, num_updated=2)
    with pytest.raises(ValueError, match="transformer has shift=True"):
        reused.reused(shifted, **sizes)
    with pytest.raises(ValueError, match="num_updated=0 must be at least 1"):
        reused.reused(SMALL, **sizes | {"num_updated": 0})
    model = reused.reused(SMALL, **sizes)
    decoder = methods.fast_dllm(
        model, max_new_tokens=12, block_length=4, threshold=0.5, cache="dual"
    )
    with pytest.raises(ValueError, match="leave out windows and caches"):
        decoded(decoder, BIDIRECTIONAL[1])


@pytest.mark.parametrize(
    "method, predicts, settings",
    [
        (methods.prompt_lookup, "next", {"num_draft": 3}),
        (methods.fast_dllm, "masked", {"threshold": 0.3, "block_length": 4}),
    ],
)
def test_slots_beyond_those_that_are_used_change_nothing(
    method, predicts, settings, monkeypatch
):
    # On a GPU slots are a multiple of 64.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [caches.num_slots(n) for n in (1, 64, 65)] == [64, 64, 128]
    monkeypatch.undo()
    assert caches.num_slots(65) == 65
    attention = "causal" if predicts == "next" else "bidirectional"
    config = dataclasses.replace(
        SMALL, attention=attention, predicts=predicts, name=f"slots {predicts}"
    )
    params, drawn = transformer.init(config, jax.random.key(0)), []
    for size in (1, 8):
        monkeypatch.setattr(caches, "num_slots", lambda n, s=size: -(-n // s) * s)
        model = transformer.make_model(dataclasses.replace(config, name=f"of {size}"))
        made = prompts.from_rows([[1, 2, 1], [3]], max_new_tokens=8, model=model)
        sizes = {"max_new_tokens": 8, **settings}
        drawn.append(run(method, model, params, made, jax.random.key(1), **sizes))
    jax.tree.map(np.testing.assert_array_equal, drawn[0][0].tokens, drawn[1][0].tokens)
    jax.tree.map(np.testing.assert_array_equal, drawn[0][1], drawn[1][1])


# What attention takes from (d2Cache).

TELLS = observed.rollout(SMALL)


def with_choice(model=TELLS, method=methods.d2cache, prompt=EVERY_LENGTH, **settings):
    knobs = settings.pop("knobs", {})
    out = run(
        method, model, BIDIRECTIONAL[1], prompt, jax.random.key(0), knobs=knobs,
        max_new_tokens=12, **settings,
    )  # fmt: skip
    return jax.tree.map(np.asarray, out)


@pytest.mark.parametrize("lanes", [[0, 1, 2, 3, 4, 5], [1, 4, 5]])
def test_rollout_equals_a_product_of_matrices(lanes, monkeypatch):
    """On scripted weights; slots that are no lanes keep the row of I."""
    draw, size, end = np.random.default_rng(0), 8, 6
    maps = draw.dirichlet(np.ones(size), (SMALL.num_layers, 1, len(lanes)))
    left = iter(jnp.asarray(maps, jnp.float32))
    monkeypatch.setattr(observed.plain, "weights", lambda *_, **__: next(left))
    place = jnp.asarray([lanes], jnp.int32)
    query = Query(place, place, place, Visibility(place * 0, place * 0 + end))
    cache = TELLS.init_cache(prompts.from_rows([[1]], max_new_tokens=1), size)
    _, cache = TELLS.apply(BIDIRECTIONAL[1], query, cache)
    product = np.eye(size)
    for weights in maps:
        full = np.eye(size)
        full[lanes] = (weights[0] + np.eye(size)[lanes]) / 2
        product = full @ product
    told = TELLS.observed(cache)[0, :, 0]
    np.testing.assert_allclose(told, product.sum(0), rtol=1e-5)


def test_weights_are_those_of_attention():
    """Mean over heads of what the values are mixed by; nothing seen is nothing told."""
    draw = np.random.default_rng(1)
    query, keys = draw.normal(size=(2, 3, 4, 8)), draw.normal(size=(2, 2, 6, 8))
    stop = np.array([[6, 4, 0], [1, 6, 3]])
    visible = Visibility(jnp.zeros((2, 3), jnp.int32), jnp.asarray(stop))
    found = plain.weights(
        jnp.asarray(query), jnp.asarray(keys), visible, scale=0.3, soft_cap=2.0
    )
    for b, q in np.ndindex(2, 3):
        expected = np.zeros(6)
        for head in range(4):
            score = 2 * np.tanh(0.15 * keys[b, head // 2] @ query[b, q, head])
            share = np.exp(score) * (np.arange(6) < stop[b, q])
            expected += share / max(share.sum(), 1e-30) / 4
        np.testing.assert_allclose(found[b, q], expected, atol=1e-6)


def test_lanes_for_the_whole_canvas_are_the_decode_without_a_cache():
    sizes = dict(sigma=2, block_length=4)
    whole, stats = with_choice(BIDIRECTIONAL[0], methods.certainty_density, **sizes)
    every, its = with_choice(
        current_k=12, num_rollout=20, knobs={"rollout_p": 1.0}, **sizes
    )
    assert generated(every) == generated(whole)
    gap = np.where(whole.committed, every.log_probs - whole.log_probs, 0)
    assert np.abs(gap).max() < 1e-5
    np.testing.assert_array_equal(its.num_calls, stats.num_calls)
    few, its = with_choice(
        current_k=2, num_rollout=2, knobs={"rollout_p": 0.3}, **sizes
    )
    gap = np.where(whole.committed, few.log_probs - whole.log_probs, 0)
    assert np.abs(gap).max() > 1e-3
    # The first call asks for all; a later one for what is open, fresh, and carries.
    n, new = np.array(LENGTHS), np.array(NEW)
    open_ = np.array([sum(min(2, k) for k in range(1, total)) for total in new])
    low, high = (n + new + open_ + k * (new - 1) for k in (2, 3))
    assert ((low <= its.num_query_tokens) & (its.num_query_tokens <= high)).all()


def test_the_choice_equals_a_loop():
    draw = np.random.default_rng(2)
    grid = blocks.generation(3)
    shape = CanvasShape(14, 12, False)
    score = np.float32(draw.random(14))
    made = windows.important(lambda row: jnp.asarray(score), 4, 2, 3, 0.4)
    look = jax.jit(made(grid, shape).apply)
    for _ in range(20):
        masked_ = (draw.random(14) < 0.6) & (np.arange(14) >= 2)
        masked_[12] = True
        fresh = ~masked_ & (draw.random(14) < 0.2)
        fresh &= np.cumsum(fresh) <= 2
        taken = np.float32(draw.random(14))
        block = (int(np.flatnonzero(masked_)[0]) - 2) // 3
        now = Row(*[None] * len(Row._fields))._replace(
            prompt_end=jnp.int32(2), block=jnp.int32(block), end=jnp.int32(13),
            masked=jnp.asarray(masked_), fresh=jnp.asarray(fresh),
            observed=jnp.asarray(taken)[:, None],
        )  # fmt: skip
        first = np.flatnonzero(masked_)[:4]
        far = (first[-1] - 2) // 3
        near = [p for p in np.flatnonzero(masked_) if (p - 2) // 3 <= far]
        near.sort(key=lambda p: ((p - 2) // 3 != block, -score[p]))
        expected = set(near[:4]) | set(np.flatnonzero(fresh))
        rest = sorted(set(range(13)) - expected, key=lambda p: -taken[p])
        total, summed = taken[rest].sum(), 0.0
        for k, place in enumerate(rest[:3]):
            summed += taken[place]
            if k and summed > 0.4 * total:
                break
            expected.add(place)
        lanes = look(now)
        assert set(lanes.positions[lanes.valid].tolist()) == expected
        assert lanes.valid.sum() == len(expected)


def test_a_choice_without_what_was_filled_is_caught(monkeypatch):
    """Negative control: the token's keys would stay those of the mask."""
    sizes = dict(current_k=2, num_rollout=1, sigma=2)
    true = with_choice(**sizes)[0]
    important = windows.important

    def hasty(*facts):
        def window(blocks, shape):
            made = important(*facts)(blocks, shape)
            return made._replace(
                apply=lambda row: made.apply(row._replace(fresh=row.fresh & False))
            )

        return window

    monkeypatch.setattr(windows, "important", hasty)
    jax.clear_caches()
    decoder = methods.d2cache(TELLS, max_new_tokens=12, rollout_p=0.1, **sizes)
    wrong = decoded(decoder, BIDIRECTIONAL[1])[0]
    assert generated(true) != generated(wrong)


def test_attention_is_told_by_plain_bidirectional_models_only():
    with pytest.raises(ValueError, match=r"observed\.rollout"):
        methods.d2cache(TOY, max_new_tokens=8)
    with pytest.raises(ValueError, match="shift=True"):
        observed.rollout(dataclasses.replace(SMALL, shift=True))
    with pytest.raises(ValueError, match="no probes"):
        decoded(methods.wino(TELLS, max_new_tokens=12), BIDIRECTIONAL[1])
