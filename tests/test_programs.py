"""One loop: what `generate`, `compare`, `--watch` and `stream` run is `run`'s."""

import jax
import numpy as np
import pytest
import table

from pdecode import decode, knobs, methods
from pdecode import programs as programs_module
from pdecode.contracts import Model

# One of each family and kind of drafter; the others are the same code again.
FEW = (
    "autoregressive",
    "prompt_lookup",
    "speculative",
    "jacobi",
    "dual_cache",
    "remdm",
)
FEW += ("random_order", "blockwise")
EACH = [
    name if name in FEW else pytest.param(name, marks=pytest.mark.thorough)
    for name in table.CASES
]


@pytest.fixture(autouse=True)
def no_program_is_kept():
    yield
    programs_module.forget()


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("name", EACH)
def test_every_entry_decodes_what_run_does(name):
    case = table.CASES[name]
    settings = {**case.sizes, **case.knobs, "temperature": 0.7, "max_new_tokens": 10}
    prompt, key = table.prompt(), jax.random.key(0)
    method = getattr(methods, case.method)
    # `generate` and `compare` time these two programs ...
    programs = programs_module.compiled(
        method, case.model, case.params, prompt, **settings
    )
    made = programs_module.timed(programs, case.params, prompt, key)
    assert made.decode_s > 0 and programs.compile_s > 0
    wanted, stats = table.base(name, 0.7)
    same((made.generation, made.stats), (wanted, stats))
    # ... `--watch` drives them step by step, and `stream` any decoder.
    watched = list(programs_module.steps(programs, case.params, prompt, key))
    same(tuple(watched[-1]), (wanted, stats, made.commit_step))
    traced, sizes = knobs.split(method, settings)
    models = case.model if not isinstance(case.model, Model) else (case.model,)
    decoder = method(*models, **sizes, **traced)
    streamed = list(decode.stream(decoder, case.params, prompt, key))
    same(streamed[-1], (wanted, stats))
    assert len(watched) == len(streamed) == stats.num_steps
    for seen, told in zip(watched, streamed):
        same((seen.generation, seen.stats), told)
    assert_dated(made, wanted, stats)


def assert_dated(made, wanted, stats):
    """Every generated token is dated, by a step that the loop took, prompts never."""
    place = np.arange(made.commit_step.shape[1])[None]
    inside = place >= wanted.start[:, None]
    inside &= place < (wanted.start + wanted.lengths)[:, None]
    assert (made.commit_step[inside] >= 0).all()
    assert (made.commit_step < stats.num_steps).all()
    assert (made.commit_step[place < wanted.start[:, None]] == -1).all()


def compiled(name, **changes):
    case = table.CASES[name]
    settings = {**case.sizes, **case.knobs, "max_new_tokens": 10, **changes}
    method = getattr(methods, case.method)
    found = programs_module.compiled(
        method, case.model, case.params, table.prompt(), **settings
    )
    return found, case


def test_knobs_share_programs_and_one_token_a_call_is_dated_in_order():
    programs, case = compiled("autoregressive", temperature=0.7)
    again, _ = compiled("autoregressive", temperature=0.3)
    assert again.compile_s == 0 and again.loop is programs.loop
    made = programs_module.timed(again, case.params, table.prompt(), jax.random.key(0))
    steps = np.arange(made.commit_step.shape[1]) - made.generation.start[:, None]
    inside = (steps >= 0) & (steps < made.generation.lengths[:, None])
    np.testing.assert_array_equal(made.commit_step[inside], steps[inside])


def test_a_position_that_was_reopened_is_dated_by_its_last_commit():
    programs, case = compiled("remdm", temperature=0.7, eta=1.0)
    prompt, key = table.prompt(), jax.random.key(0)
    seen = list(programs_module.steps(programs, case.params, prompt, key))
    committed = np.array([each.generation.committed for each in seen])
    assert (committed[:-1] & ~committed[1:]).any()  # some are reopened
    before = np.pad(committed, ((1, 0), (0, 0), (0, 0)))[:-1]
    step = np.arange(len(seen))[:, None, None]
    wanted = np.where(committed & ~before, step, -1).max(0)
    np.testing.assert_array_equal(
        seen[-1].commit_step, np.where(committed[-1], wanted, -1)
    )


def test_undated_loop_is_the_same_decode():
    programs, case = compiled("prompt_lookup", temperature=0.0)
    bare, _ = compiled("prompt_lookup", temperature=0.0, is_dated=False)
    prompt, key = table.prompt(), jax.random.key(0)
    made = programs_module.timed(bare, case.params, prompt, key)
    wanted = programs_module.timed(programs, case.params, prompt, key)
    same((made.generation, made.stats), (wanted.generation, wanted.stats))
    assert (made.commit_step == -1).all() and (wanted.commit_step >= 0).any()
    settings = {**case.sizes, "temperature": 0.0, "max_new_tokens": 10}
    step = programs_module.host_step(methods.prompt_lookup, case.model, settings)
    carry, is_done = bare.start(case.params, prompt, key, bare.knobs), False
    while not is_done:
        carry, is_done = step(case.params, carry, bare.knobs)
    same(jax.tree.map(np.asarray, decode.stats_of(carry.counts)), made.stats)


def test_max_steps_leaves_lengths_of_what_is_there():
    """Three tokens of a random order are no text of 16."""
    case, prompt = table.CASES["random_order"], table.prompt()
    made, stats = jax.tree.map(
        np.asarray,
        decode.run(
            methods.any_order, case.model, case.params, prompt, jax.random.key(0),
            max_new_tokens=10, max_steps=3,
        ),
    )  # fmt: skip
    assert (stats.num_committed <= 3).all()
    for b, start in enumerate(made.start):
        length = made.lengths[b]
        assert made.committed[b, start : start + length].all()
        assert made.committed[b].sum() <= 3 and length <= 3
        is_whole = length == prompt.max_new_tokens[b] or made.stopped_by[b] == 1
        assert is_whole or not made.committed[b, start + length]
