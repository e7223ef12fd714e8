"""What fell between other files: numbers that are none, filters, bfloat16, names."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import table
from table import CASES, EOS, MAX_NEW

from pdecode import decode, knobs, methods, prompts, run, sampling
from pdecode.contracts import GUARANTEES, STOPPED_BY, Sampling
from pdecode.drafters import causal as causal_drafters
from pdecode.drafters import features
from pdecode.families import frontier, masked
from pdecode.models import toy, transformer
from pdecode.rules import commit, guidance, remask, schedules, windows

NOT_FINITE = STOPPED_BY.index("not_finite")


def decoded(decoder, params, prompt, seed=0):
    program = jax.jit(functools.partial(decode.decode, decoder))
    return jax.tree.map(np.asarray, program(params, prompt, jax.random.key(seed)))


# Numbers that are none. Row 1 turns bad at its third new position, the others do not.


def poisoned(model, value, at=4, row_length=2):
    """`model` whose hidden state is `value` where row 1 predicts position `at` on."""

    def apply(params, query, cache):
        output, cache = model.apply(params, query, cache)
        predicted = query.positions + (model.predicts == "next")
        is_row = jnp.arange(query.tokens.shape[0])[:, None] == 1
        bad = is_row & (predicted >= at)
        hidden = jnp.where(bad[..., None], value, output.hidden)
        return output._replace(hidden=hidden), cache

    return model._replace(apply=apply, name="poisoned")


BAD_CASES = [
    "autoregressive", "prompt_lookup", "speculative", "specinfer", "blockwise",
    "jacobi", "mc_sjd", "llada", "dream_entropy", "threshold", "dual_cache", "remdm",
    "raster",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_CASES)
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_a_row_that_is_no_number_stops_there(name, value):
    case = CASES[name]
    method = getattr(methods, case.method)
    models = case.model if isinstance(case.model[0], type(table.CAUSAL)) else None
    one = case.model[0] if models else case.model
    bad = poisoned(one, value)
    models = (bad, *case.model[1:]) if models else bad
    rows, new = [[0, 1], [0, 1], [2, 0, 1]], [6, 6, 6]
    prompt = prompts.from_rows(rows, max_new_tokens=new, row_ids=[0, 1, 2])
    temperature = 1.0 if name == "remdm" else 0.0
    settings = {"knobs": {**case.knobs, "temperature": temperature}, **case.sizes}
    if "block_length" in settings:
        settings |= {"block_length": 3}
    if "steps" in settings:
        settings |= {"steps": 6}
    args = (prompt, jax.random.key(0))
    out, _ = run(method, models, case.params, *args, max_new_tokens=6, **settings)
    good, _ = run(method, case.model, case.params, *args, max_new_tokens=6, **settings)
    out, good = jax.tree.map(np.asarray, (out, good))
    assert out.stopped_by[1] == NOT_FINITE
    # What was right before is kept, and nothing was written from what is no number.
    assert out.lengths[1] <= 2
    end = 2 + out.lengths[1]
    np.testing.assert_array_equal(out.tokens[1, :end], good.tokens[1, :end])
    assert not out.committed[1, 4:].any() or case.kind == "lossy"
    for b in (0, 2):
        np.testing.assert_array_equal(out.tokens[b], good.tokens[b])
        assert out.lengths[b] == good.lengths[b]
        assert out.stopped_by[b] == good.stopped_by[b] != NOT_FINITE


@pytest.mark.parametrize("name", ["speculative", "block_verification", "specinfer"])
def test_a_drafter_that_is_no_number_stops_the_row(name):
    """A draft law of NaN may not pick a token, and its row says so."""
    case = CASES[name]
    model, drafter = case.model
    out, _ = run(
        getattr(methods, case.method), (model, poisoned(drafter, jnp.nan)),
        case.params, prompts.from_rows([[0, 1], [0, 1]], max_new_tokens=6),
        jax.random.key(0), knobs={"temperature": 1.0}, max_new_tokens=6, **case.sizes,
    )  # fmt: skip
    out = jax.tree.map(np.asarray, out)
    assert out.stopped_by[1] == NOT_FINITE and out.stopped_by[0] != NOT_FINITE
    assert ((out.tokens >= 0) & (out.tokens < table.VOCAB)).all()


# Lossless methods under filters of both laws, by whole decodes.


@pytest.mark.thorough
@pytest.mark.parametrize("filters", [{"top_k": 2}, {"top_p": 0.8}])
@pytest.mark.parametrize("name", ["speculative", "block_verification", "specinfer",
                                  "specinfer_without", "mc_sjd", "gs_sjd"])  # fmt: skip
def test_lossless_under_filters(name, filters):
    """The share of every string of three tokens is the autoregressive one's."""
    case, rows = CASES[name], 20_000
    prompt = prompts.from_rows([[0, 1]] * rows, max_new_tokens=3)
    sizes = {**case.sizes}
    for size in ("num_draft", "window"):
        if size in sizes:
            sizes[size] = 2
    made = []
    for method, model, params, more in (
        (methods.autoregressive, table.CAUSAL, table.TARGET, {}),
        (getattr(methods, case.method), case.model, case.params, sizes),
    ):
        out, _ = run(
            method, model, params, prompt, jax.random.key(len(made)),
            knobs={"temperature": 1.0, **filters}, max_new_tokens=3, **more,
        )  # fmt: skip
        text = np.asarray(out.tokens)[:, 2:5].astype(int)
        ended = np.cumsum(text == EOS, 1) - (text == EOS) > 0
        text = np.where(ended, EOS, text)
        made.append(np.bincount(text @ [16, 4, 1], minlength=64) / rows)
    variation = abs(made[0] - made[1]).sum() / 2
    floor = np.sqrt(made[0] / rows).sum()
    assert variation < 1.5 * floor, (variation, floor)


# Draft-and-verify on a transformer: a row in company is the row alone.


def tiny(seed=0, **changes):
    config = transformer.Config(
        **{
            "vocab_size": 24, "width": 16, "num_layers": 2, "num_heads": 2,
            "num_kv_heads": 1, "head_dim": 8, "mlp_width": 24, "max_positions": 48,
            **changes,
        }
    )  # fmt: skip
    params = transformer.init(config, jax.random.key(seed))
    params = jax.tree.map(lambda leaf: 2 * leaf if leaf.ndim > 1 else leaf, params)
    return transformer.make_model(config), params


@pytest.mark.parametrize("method, sizes", [
    ("prompt_lookup", {"num_draft": 4}), ("jacobi", {"window": 4}),
    ("specinfer", {"branching": (2, 2)}), ("speculative_sampling", {"num_draft": 3}),
])  # fmt: skip
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_of_a_transformer_do_not_see_each_other(method, sizes, temperature):
    model, params = tiny()
    is_paired = method in ("specinfer", "speculative_sampling")
    models = (model, model) if is_paired else model
    near = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, params, tiny(1)[1])
    trees = {"model": params, "drafter": near} if is_paired else params
    rows = [[1, 2, 3, 1, 2], [4], [5, 6, 7], [1, 1]]

    def go(rows, ids):
        out, stats = run(
            getattr(methods, method), models, trees,
            prompts.from_rows(rows, max_new_tokens=12, row_ids=ids, pad_to=5),
            jax.random.key(3), knobs={"temperature": temperature}, max_new_tokens=12,
            **sizes,
        )  # fmt: skip
        return np.asarray(out.tokens), np.asarray(stats.num_calls)

    together, calls = go(rows, [0, 1, 2, 3])
    mixed, mixed_calls = go([rows[2], [9], [8, 8], rows[0]], [2, 7, 8, 0])
    for there, here in ((0, 2), (3, 0)):
        end = len(rows[here]) + 12
        np.testing.assert_array_equal(together[here, :end], mixed[there, :end])
        assert calls[here] == mixed_calls[there]


@pytest.mark.parametrize("method, predicts", [
    ("prompt_lookup", "next"), ("jacobi", "next"), ("llada", "masked"),
    ("any_order", "masked"),
])  # fmt: skip
def test_bfloat16_decodes(method, predicts):
    changes = {} if predicts == "next" else {
        "attention": "bidirectional", "predicts": "masked", "mask_id": 23
    }  # fmt: skip
    model, params = tiny(dtype="bfloat16", **changes)
    prompt = prompts.from_rows([[1, 2, 3], [4]], max_new_tokens=8)
    out, stats = run(
        getattr(methods, method), model, params, prompt, jax.random.key(0),
        max_new_tokens=8,
    )  # fmt: skip
    assert out.lengths.tolist() == [8, 8]
    assert ((np.asarray(out.tokens) >= 0) & (np.asarray(out.tokens) < 24)).all()
    assert np.isfinite(np.asarray(out.log_probs)).all()
    assert stats.num_committed.tolist() == [8, 8]


# Guidance with a window, and controls that fail.

CHAIN = toy.chain(2, 3, 16)
ON_MASKS = toy.make_model(3, 16, predicts="masked")


def windowed(model, window, refresh, rule=None):
    decoder = masked.masked_diffusion(
        model,
        rule or commit.one_by_one(commit.order("max_prob")),
        max_new_tokens=9,
        sampling=Sampling(0.0),
        blocks=masked.grids.generation(3),
        window=window,
        refresh=refresh,
    )
    prompt = prompts.from_rows([[0, 1], [1, 2, 0, 1], [2, 2]], max_new_tokens=[9, 7, 9])
    return decoded(decoder, CHAIN, prompt)


def test_guidance_through_a_window_is_guidance():
    """On the toy a key says only (token, position), so cached guidance is exact."""
    model = guidance.guided(ON_MASKS, 1.5, guidance.mask_prompt(3))
    whole, stats = windowed(model, windows.canvas, None)
    cached, fewer = windowed(model, windows.active_block, windows.at_block_start)
    np.testing.assert_array_equal(whole.tokens, cached.tokens)
    assert (stats.num_calls == 2 * stats.num_committed).all()
    assert fewer.num_query_tokens.sum() < stats.num_query_tokens.sum()


def test_guidance_that_leaves_its_null_cache_behind_is_caught():
    model = guidance.guided(ON_MASKS, 1.5, guidance.mask_prompt(3))

    def forgetful(params, query, cache):
        output, after = model.apply(params, query, cache)
        return output, after._replace(null=cache.null)

    broken = model._replace(apply=forgetful)
    whole, _ = windowed(model, windows.active_block, windows.at_block_start)
    stale, _ = windowed(broken, windows.active_block, windows.at_block_start)
    assert abs(whole.log_probs - stale.log_probs).max() > 0.01


def test_a_frontier_that_forgets_its_last_group_is_caught():
    """Any-order greedy decoding against a model that drops what was just committed."""

    def apply(params, query, cache):
        among = query.visible.among
        if among is not None:
            eye = jnp.eye(among.shape[1], dtype=bool)[None]
            query = query._replace(visible=query.visible._replace(among=among & eye))
        return ON_MASKS.apply(params, query, cache)

    broken = ON_MASKS._replace(apply=apply, name="broken")
    prompt = prompts.from_rows([[0, 1], [1, 2, 0, 1]], max_new_tokens=9)
    rank = np.arange(9)
    right, wrong = (
        decoded(
            frontier.frontier(model, rank, max_new_tokens=9, sampling=Sampling(0.0)),
            CHAIN,
            prompt,
        )[0].tokens
        for model in (ON_MASKS, broken)
    )
    expected, _ = windowed(
        ON_MASKS, windows.canvas, None, commit.one_by_one(commit.order("sequential"))
    )
    np.testing.assert_array_equal(right[0, :11], expected.tokens[0, :11])
    assert (right != wrong).any()


def test_a_remask_that_exceeds_its_bound_is_caught():
    """Open positions at half time: ReMDM keeps the binomial law, a larger sigma not."""
    steps, rows = 8, 4000
    plan = schedules.ancestral("linear", steps)
    bound = schedules.max_remask(plan)
    prompt = prompts.from_rows([[0]] * rows, max_new_tokens=10)

    def left(sigma, commits):
        decoder = masked.masked_diffusion(
            ON_MASKS,
            commit.bernoulli(commits),
            max_new_tokens=10,
            sampling=Sampling(1.0),
            remask=remask.bernoulli(sigma),
            progress="schedule",
            max_steps=steps,
        )
        program = jax.jit(functools.partial(decode.decode, decoder, max_steps=4))
        out, _ = program(CHAIN, prompt, jax.random.key(0))
        return 10 - np.asarray(out.committed).sum(1).mean()

    sigma = 0.5 * bound
    right = left(sigma, plan._replace(remask=sigma).commit)
    wrong = left(sigma, plan.commit)
    error = np.sqrt(10 * 0.25 / rows)
    assert abs(right - 5) < 4 * error < abs(wrong - 5)


def test_a_window_cache_on_a_bidirectional_transformer_is_an_approximation():
    """If it were not, the cache would not be on."""
    model, params = tiny(
        attention="bidirectional", predicts="masked", mask_id=23, seed=4
    )
    prompt = prompts.from_rows([[1, 2, 3, 4, 5, 6]] * 2, max_new_tokens=12)
    laws = [
        np.asarray(
            run(
                methods.fast_dllm, model, params, prompt, jax.random.key(0),
                max_new_tokens=12, block_length=4, cache=cache,
            )[0].log_probs
        )
        for cache in ("none", "dual")
    ]  # fmt: skip
    assert abs(laws[0] - laws[1]).max() > 1e-3


# Names that stand in two places.


@pytest.mark.parametrize("name", list(methods.__all__))
def test_choices_are_names_that_their_tables_know(name):
    tables = {
        "order": lambda n: n in commit.ORDERS or name == "any_order",
        "draws": lambda n: n in (*causal_drafters.DRAWS, *features.DRAWS),
    }
    for knob, each in knobs.parameters(getattr(methods, name)).items():
        if not isinstance(each.kind, knobs.Choice):
            continue
        if knob in tables:
            assert all(map(tables[knob], each.kind.names)), (name, knob)
        if knob == "schedule":
            known = schedules.ALPHAS if name == "mdlm" else schedules.MASK_SCHEDULES
            assert set(each.kind.names) == set(known)


def test_every_guarantee_is_a_word_of_the_list():
    assert {"lossless", "exact", "lossy"} == set(GUARANTEES)
    assert typing.get_type_hints(sampling.without_mask)


def test_greedy_dream_commits_before_its_last_step():
    _, stats = table.base("dream_entropy", 0.0)
    per_step = stats.committed_per_call
    # More than one step committed something, in every row that has room for it.
    assert (per_step[:, 1:].sum(1)[np.array(table.NEW) > 4] > 1).all()
    assert MAX_NEW >= max(table.NEW)
