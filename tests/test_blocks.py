"""Holes, blocks, windows and caches against a slow decoder written from the definition.

The definition: a canvas holds the prompt, its holes and what follows. Blocks are filled
in order. A step predicts every open position of the active block from what the cached
call would see, and fills those the schedule says, surest first.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import methods, prompts, run
from pdecode.contracts import Query, Row, Sampling, Visibility
from pdecode.families import masked
from pdecode.models import toy, transformer
from pdecode.rules import blocks, commit, windows

VOCAB = 4
LAW = toy.chain(11, VOCAB, 32)
TOY = toy.make_model(VOCAB, 32, predicts="masked")

# Rows of 16 with holes nowhere, at the front, inside, several, at the end.
HOLES = {"none": [], "front": [0], "one": [1], "several": [2, 5, 6], "end": [14, 15]}


def prompt_with(*names, max_new_tokens=4, length=16):
    draw = np.random.default_rng(3)
    rows = [draw.integers(0, VOCAB, length).tolist() for _ in names]
    holes = [[p in HOLES[name] for p in range(length)] for name in names]
    return prompts.from_rows(rows, max_new_tokens=max_new_tokens, holes=holes)


# The four numbers that were wrong when blocks were counted from the first hole.


@pytest.mark.parametrize("steps, calls", [(1, 1), (4, 4)])
def test_a_hole_in_front_adds_no_call_to_llada(steps, calls):
    _, stats = run(
        methods.llada, TOY, LAW, prompt_with("one"), jax.random.key(0),
        max_new_tokens=4, steps=steps,
    )  # fmt: skip
    assert stats.num_calls.tolist() == [calls]
    assert stats.num_committed.tolist() == [5]


def test_a_hole_in_front_adds_no_call_to_maskgit():
    _, stats = run(
        methods.maskgit, TOY, LAW, prompt_with("one"), jax.random.key(0),
        max_new_tokens=4, steps=3,
    )  # fmt: skip
    assert stats.num_calls.tolist() == [3]


def test_mdlm_with_a_hole_keeps_its_binomial_law():
    """Before the last of 16 steps each of five positions is open with chance 1/16."""
    rows = 2000
    one = prompt_with("one")
    many = jax.tree.map(lambda leaf: jnp.repeat(leaf, rows, 0), one)
    many = many._replace(row_ids=jnp.arange(rows))
    _, stats = run(
        methods.mdlm, TOY, LAW, many, jax.random.key(0), max_new_tokens=4, steps=16,
        max_steps=15,
    )  # fmt: skip
    left = 5 - np.asarray(stats.num_committed)
    mean, error = 5 / 16, math.sqrt(5 * (1 / 16) * (15 / 16) / rows)
    assert abs(left.mean() - mean) < 4 * error
    # A block of its own for the hole would leave two positions on average.
    assert abs(2.0 - mean) > 4 * error


# The slow decoder.


def reference(model, params, row, holes, max_new_tokens, block_length, steps, cache):
    """(tokens, calls) of one row: LLaDA's shares, surest first, greedy."""
    n = model.block_len if model.attention == "block_causal" else None
    prompt_end, end = len(row), len(row) + max_new_tokens
    reach = end if n is None else -(-end // n) * n
    open_ = {p for p in range(len(row)) if holes[p]} | set(range(prompt_end, reach))
    first_open = min(open_)
    tokens = [model.mask_id if p in open_ else t for p, t in enumerate(row)]
    tokens += [model.mask_id] * (reach - prompt_end)

    def block_of(p):
        if n is not None:
            return p // n
        return 0 if block_length is None else max(p - prompt_end, 0) // block_length

    size = n or block_length or max_new_tokens
    share = None if steps is None else steps // -(-max_new_tokens // size)
    keys, calls, block, step, initial = (
        model.init_cache(
            prompts.from_rows([row], max_new_tokens=max_new_tokens), reach + 1
        ),
        0,
        None,
        0,
        0,
    )
    ask = functools.partial(_ask, model, params)
    while any(p in open_ for p in range(end)):
        now = block_of(min(open_))
        if now != block:
            block, step = now, 0
            initial = sum(block_of(p) == block for p in open_)
        here = [p for p in range(reach) if block_of(p) == block]
        if n is None:
            here = [p for p in here if p >= first_open]
        lanes = {
            "none": range(reach),
            "dual": here,
            "prefix": range(here[0], reach),
        }[cache]
        if step == 0 and cache != "none":
            lanes = range(reach)
        keys, law = ask(keys, tokens, list(lanes), reach, n)
        calls += 1
        law = {p: law[p] for p in here if p in open_}
        count = 1
        if share is not None:
            whole = n or initial
            count = max(whole // share + (step < whole % share), 1)
        order = sorted(law, key=lambda p: (-law[p][1], p))[:count]
        for p in order:
            tokens[p] = law[p][0]
            open_.remove(p)
        step += 1
    return tokens[:end], calls


def _ask(model, params, keys, tokens, lanes, reach, n):
    """One call of `lanes`: the cache after it, and {position: (token, log prob)}."""
    place = jnp.asarray([lanes], jnp.int32)
    stop = [reach if n is None else min((p // n + 1) * n, reach) for p in lanes]
    query = Query(
        jnp.asarray([[tokens[p] for p in lanes]], jnp.int32),
        place,
        place,
        Visibility(jnp.zeros_like(place), jnp.asarray([stop], jnp.int32)),
    )
    output, keys = _apply(model)(params, query, keys)
    head = model.head(params)
    logits = np.asarray(output.hidden[0] @ head.weight.T, np.float64)
    total = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))
    total += logits.max(-1)
    logits[:, model.mask_id] = -np.inf  # never drawn, though its mass counts
    best = logits.argmax(-1)
    return keys, {
        p: (int(best[i]), logits[i, best[i]] - total[i]) for i, p in enumerate(lanes)
    }


@functools.cache
def _apply(model):
    return jax.jit(model.apply)


def tiny(attention, block_len=None, seed=0):
    config = transformer.Config(
        vocab_size=12, width=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
        mlp_width=24, mask_id=11, max_positions=32, attention=attention,
        block_len=block_len, predicts="masked",
    )  # fmt: skip
    params = transformer.init(config, jax.random.key(seed))
    # Untied and sharper, so that no two tokens are near a tie.
    params = jax.tree.map(lambda leaf: 3 * leaf if leaf.ndim > 1 else leaf, params)
    return transformer.make_model(config), params


BIDIRECTIONAL = tiny("bidirectional")


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("block_length, steps", [(None, 4), (2, 4), (2, None), (4, 2)])
def test_holes_equal_the_slow_decoder(cache, block_length, steps):
    if block_length is None and cache == "dual":
        pytest.skip("one block has nothing outside it")
    model, params = BIDIRECTIONAL
    made = prompt_with(*HOLES)
    grid = blocks.of(model, block_length)
    decoder = masked.masked_diffusion(
        model,
        commit.shared(commit.order("low_confidence"), 4, steps, grid),
        max_new_tokens=4,
        sampling=Sampling(0.0, undrawn=masked.undrawn(model)),
        blocks=grid,
        window={"none": windows.canvas, "prefix": windows.from_block_on,
                "dual": windows.active_block}[cache],
        refresh=None if cache == "none" else windows.at_block_start,
    )  # fmt: skip
    out, stats = decoded(decoder, params, made)
    for b, name in enumerate(HOLES):
        row = np.asarray(made.tokens[b]).tolist()
        holes = np.asarray(made.masked[b]).tolist()
        tokens, calls = reference(
            model, params, row, holes, 4, block_length, steps, cache
        )
        assert out.tokens[b, :20].tolist() == tokens, name
        assert int(stats.num_calls[b]) == calls, name


def decoded(decoder, params, prompt):
    from pdecode import decode

    program = jax.jit(functools.partial(decode.decode, decoder))
    return jax.tree.map(np.asarray, program(params, prompt, jax.random.key(0)))


BLOCK_CAUSAL = tiny("block_causal", 4, seed=1)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_block_causal_decoding_equals_the_slow_decoder(cache):
    """Prompts on and off the grid; the cache is exact for every length."""
    model, params = BLOCK_CAUSAL
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 11, n).tolist() for n in (8, 5, 6, 7, 1, 4, 3, 2)]
    made = prompts.from_rows(rows, max_new_tokens=8)
    for settings in ({"steps": 8}, {"steps": 4}, {"threshold": 0.3}):
        knobs = {k: v for k, v in settings.items() if k == "threshold"}
        sizes = {k: v for k, v in settings.items() if k == "steps"}
        out, stats = run(
            methods.fast_dllm, model, params, made, jax.random.key(0), knobs=knobs,
            max_new_tokens=8, cache=cache, **sizes,
        )  # fmt: skip
        if "steps" not in settings:
            expected, _ = run(
                methods.fast_dllm, model, params, made, jax.random.key(0), knobs=knobs,
                max_new_tokens=8,
            )  # fmt: skip
            for b, row in enumerate(rows):
                end = len(row) + 8
                np.testing.assert_array_equal(
                    out.tokens[b, :end], expected.tokens[b, :end]
                )
            continue
        for b, row in enumerate(rows):
            tokens, calls = reference(
                model, params, row, [False] * len(row), 8, None, settings["steps"],
                cache,
            )  # fmt: skip
            assert out.tokens[b, : len(tokens)].tolist() == tokens, (settings, b)
            assert int(stats.num_calls[b]) == calls, (settings, b)


def test_a_grid_counted_from_the_prompt_is_caught():
    """Negative control: decode blocks off the attention's grid make a stale cache."""
    model, params = BLOCK_CAUSAL
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 11, 5).tolist() for _ in range(8)]
    made = prompts.from_rows(rows, max_new_tokens=8)

    def tokens(window, refresh):
        decoder = masked.masked_diffusion(
            model,
            commit.one_by_one(commit.order("low_confidence")),
            max_new_tokens=8,
            sampling=Sampling(0.0),
            blocks=blocks.generation(4),
            window=window,
            refresh=refresh,
        )
        return decoded(decoder, params, made)[0].tokens

    whole = tokens(windows.canvas, None)
    cached = tokens(windows.active_block, windows.at_block_start)
    assert (whole != cached).any()


def test_blocks_of_another_length_are_refused_by_a_block_causal_model():
    with pytest.raises(ValueError, match=r"block_length=8, but .* blocks of 4"):
        methods.llada(BLOCK_CAUSAL[0], max_new_tokens=8, block_length=8)


def test_every_grid_covers_the_canvas_in_order():
    """The index never falls along the canvas, and `first` is where its block begins."""
    for grid, hole, end in itertools.product(
        (blocks.canvas(), blocks.generation(3), blocks.absolute(4)), (0, 2, 5), (5, 7)
    ):
        row = Row(*[None] * len(Row._fields))._replace(
            prompt_end=jnp.int32(end), start=jnp.int32(min(hole, end))
        )
        place = jnp.arange(16)
        index = np.asarray(grid.index(place, row))
        assert (np.diff(index) >= 0).all()
        for block in np.unique(index):
            first = int(grid.first(row._replace(block=jnp.int32(block))))
            inside = np.flatnonzero(index == block)
            assert inside[0] <= first <= inside[-1]


# EOS kept out, as LLaDA's own code does.


def test_eos_is_left_out_as_asked():
    model = TOY._replace(eos_ids=(3,))
    made = prompts.from_rows([[0, 1], [2]], max_new_tokens=8)

    def tokens(**settings):
        out, _ = run(
            methods.llada, model, LAW, made, jax.random.key(0), max_new_tokens=8,
            **settings,
        )  # fmt: skip
        return out

    plain, without = tokens(), tokens(logits_eos_inf=True)
    assert (np.asarray(plain.stopped_by) == 1).any()
    assert not (np.asarray(without.tokens)[:, 2:] == 3).any()
    assert (np.asarray(without.stopped_by) == 0).all()
    with pytest.raises(ValueError, match="order='entropy'"):
        tokens(confidence_eos_eot_inf=True, order="entropy")


@pytest.mark.parametrize("excluded, first", [(False, 2), (True, 1)])
def test_eos_outside_the_confidence_comes_last(excluded, first):
    """EOS is sure at 2 and 3: first by confidence, last where it does not count."""
    law = toy.table([[0, 0, 3, 3], [0, 1, 3, 3], [0, 2, 3, 3]], [0.4, 0.3, 0.3])
    model = toy.make_model(4, 4, predicts="masked", eos_ids=(3,))
    out, _ = run(
        methods.llada, model, law, prompts.from_rows([[0]], max_new_tokens=3),
        jax.random.key(0), max_new_tokens=3, max_steps=1,
        confidence_eos_eot_inf=excluded,
    )  # fmt: skip
    assert np.flatnonzero(np.asarray(out.committed[0])).tolist() == [first]
    assert out.lengths.tolist() == [int(first == 1)]
