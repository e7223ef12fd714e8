"""Every method of the table against every invariant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import table
from table import CASES, EOS, MAX_NEW, NEW, ROWS, WIDTH

from pdecode import contracts, knobs, methods, sharding
from pdecode import decode as decode_module
from pdecode.methods import describe

EVERY = pytest.mark.parametrize("name", CASES)
# What costs a compilation of its own runs for these by default: every way a family
# keeps its state.
FIRST = ("autoregressive", "speculative", "mc_sjd", "dual_cache", "random_order")
assert set(FIRST) <= set(CASES)
MOST_STATES = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FIRST else pytest.mark.thorough)
        for name in CASES
    ],
)
TEMPERATURES = pytest.mark.parametrize("temperature", [0.0, 1.0])
MORE_SEEDS = pytest.param(range(50, 200), marks=pytest.mark.slow)


def names(kind):
    return [name for name, case in CASES.items() if case.kind == kind]


def test_the_table_holds_every_method():
    tried = {case.method for case in CASES.values()}
    assert tried | table.WITHOUT == set(methods.__all__)
    assert not tried & table.WITHOUT


@pytest.mark.parametrize("name", names("plain") + names("law"))
def test_greedy_equals_autoregressive(name):
    expected, _ = table.base("autoregressive", 0.0)
    got, _ = table.base(name, 0.0)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_array_equal(got.lengths, expected.lengths)
    np.testing.assert_array_equal(got.stopped_by, expected.stopped_by)
    np.testing.assert_allclose(got.log_probs, expected.log_probs, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in names("plain") if n != "autoregressive"])
@pytest.mark.parametrize("seeds", [range(50), MORE_SEEDS])
def test_position_keyed_sampling_equals_plain_sampling(name, seeds):
    for seed in seeds:
        expected, _ = table.base("autoregressive", 1.0, seed)
        got, _ = table.decode(name, table.prompt(), 1.0, seed)
        np.testing.assert_array_equal(got.tokens, expected.tokens, err_msg=f"{seed=}")


@EVERY
@TEMPERATURES
def test_counts_add_up(name, temperature):
    for seed in range(5):
        out, stats = table.base(name, temperature, seed)
        prompt = table.prompt()
        for b, row in enumerate(ROWS):
            np.testing.assert_array_equal(out.tokens[b, : len(row)], row)
        saw_eos = out.stopped_by == contracts.STOPPED_BY.index("eos")
        np.testing.assert_array_equal(stats.num_committed, out.lengths + saw_eos)
        at_end = out.lengths == np.minimum(prompt.max_new_tokens, MAX_NEW)
        is_cut = out.stopped_by >= contracts.STOPPED_BY.index("truncated")
        np.testing.assert_array_equal(at_end, ~saw_eos & ~is_cut)
        for generated in table.rows_of(out):
            assert EOS not in generated
            assert all(0 <= token < table.VOCAB for token in generated)
        for b in np.flatnonzero(saw_eos):
            assert out.tokens[b, out.start[b] + out.lengths[b]] == EOS
        per_step = stats.committed_per_call
        assert (per_step.sum(1) <= stats.num_calls).all()
        if stats.num_revoked.sum() == 0 and CASES[name].kind != "lossy":
            spent = (per_step * np.arange(per_step.shape[1])).sum(1)
            np.testing.assert_array_equal(spent, stats.num_committed)
        assert (stats.num_calls >= 1).all()
        assert (stats.num_calls <= CASES[name].max_calls).all()
        assert (stats.num_query_tokens <= stats.num_query_tokens_computed).all()
        assert (out.log_probs <= 0).all()


@EVERY
@TEMPERATURES
def test_a_row_does_not_depend_on_its_company(name, temperature):
    out, stats = table.base(name, temperature, 1)
    order = np.array([3, 0, 7, 4, 2, 6, 1, 5])
    permuted, permuted_stats = table.decode(
        name,
        table.prompt([ROWS[i] for i in order], [NEW[i] for i in order], ids=order),
        temperature,
        1,
    )
    _same_rows(out, stats, permuted, permuted_stats, order)
    # Neighbours that finish at once, and other junk behind the text.
    for keep in (1, 3):
        rows = [ROWS[i] if i == keep else [2] for i in range(8)]
        new = [NEW[i] if i == keep else 1 for i in range(8)]
        alone, alone_stats = table.decode(
            name, table.prompt(rows, new, junk=EOS), temperature, 1
        )
        _same_rows(out, stats, alone, alone_stats, np.arange(8), only=[keep])


@MOST_STATES
def test_a_batch_of_eight_is_eight_batches_of_one(name):
    """Of the same row ids, tokens and counts: a program of its own for one row."""
    temperature, method = 1.0, getattr(methods, CASES[name].method)
    out, stats = table.base(name, temperature, 1)
    for row in range(8):
        prompt = table.prompt([ROWS[row]], [NEW[row]], ids=[row])
        alone, alone_stats = jax.tree.map(
            np.asarray, table.launch(name, prompt, temperature, 1, method=method)
        )
        end = out.start[row] + out.lengths[row]
        np.testing.assert_array_equal(alone.tokens[0, :end], out.tokens[row, :end])
        for field in ("num_calls", "num_committed", "num_proposed"):
            mine = getattr(alone_stats, field)[0]
            assert mine == getattr(stats, field)[row], (row, field)


def _same_rows(out, stats, other, other_stats, order, only=None):
    for place, row in enumerate(order):
        if only is not None and row not in only:
            continue
        end = out.start[row] + out.lengths[row]
        np.testing.assert_array_equal(
            out.tokens[row, :end], other.tokens[place, :end], err_msg=f"{row=}"
        )
        assert out.lengths[row] == other.lengths[place]
        for field in ("num_calls", "num_committed", "num_query_tokens", "num_revoked"):
            mine, its = getattr(stats, field)[row], getattr(other_stats, field)[place]
            assert mine == its, (field, row)
        np.testing.assert_array_equal(
            stats.committed_per_call[row], other_stats.committed_per_call[place]
        )


# One method of each cache behaviour: padding changes shapes, so it compiles anew.
@pytest.mark.parametrize(
    "name", ["specinfer", "mc_sjd", "dual_cache", "prefix_cache", "random_order"]
)
def test_extra_padding_changes_nothing(name):
    method = getattr(methods, CASES[name].method)
    out, _ = table.base(name, 1.0, 2)
    wide, _ = table.launch(name, table.prompt(width=WIDTH - 1), 1.0, 2, method=method)
    for mine, its in zip(table.rows_of(out), table.rows_of(wide)):
        assert mine == its


@EVERY
def test_no_retrace_when_a_knob_changes(name):
    """`table.traced_once` raises if the method is traced again."""
    known = knobs.parameters(getattr(methods, CASES[name].method))
    for scale in (0.3, 0.6, 1.0):
        values = {"temperature": scale}
        for knob in CASES[name].knobs:
            kind = known[knob].kind
            values[knob] = min(max(kind.low, 1e-3) + scale, kind.high)
        table.decode(name, table.prompt(), **values)
    table.decode(name, table.prompt(), 2)  # an int, where a float was


def test_a_retrace_is_caught():
    """Negative control: another shape traces the method again."""
    table.decode("autoregressive", table.prompt(), 0.0)
    with pytest.raises(AssertionError, match="traced > 1 times"):
        table.decode("autoregressive", table.prompt(width=WIDTH - 1), 0.0)


@MOST_STATES
def test_the_compiled_loop_equals_the_host_loop(name):
    case = CASES[name]
    static, traced = decode_module._bind(
        getattr(methods, case.method),
        case.model,
        {**case.knobs, **case.sizes, "max_new_tokens": MAX_NEW, "temperature": 1.0},
    )
    decoder = static["method"](*static["models"], **dict(static["sizes"]), **traced)
    expected, stats = table.base(name, 1.0, 3)
    last, previous = None, None
    for last, last_stats in decode_module.stream(
        decoder, case.params, table.prompt(), jax.random.key(3)
    ):
        if previous is not None:
            _finished_rows_are_frozen(*previous, last, last_stats)
        previous = last, last_stats
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        (expected, stats),
        jax.tree.map(np.asarray, (last, last_stats)),
    )


def _finished_rows_are_frozen(before, stats, after, after_stats):
    cut_short = contracts.STOPPED_BY.index("max_steps")
    done = np.asarray(before.stopped_by) != cut_short
    for a, b in zip(before, after):
        np.testing.assert_array_equal(np.asarray(a)[done], np.asarray(b)[done])
    for field in ("num_calls", "num_committed", "num_query_tokens"):
        a, b = getattr(stats, field), getattr(after_stats, field)
        np.testing.assert_array_equal(np.asarray(a)[done], np.asarray(b)[done])


def test_a_row_that_goes_on_after_its_end_is_caught():
    """Negative control: a family that does not freeze finished rows."""
    decoder = methods.prompt_lookup(table.CAUSAL, max_new_tokens=MAX_NEW)

    def step(params, keys, state):
        end = state.prefix.end
        thawed = state._replace(
            saw_eos=jnp.zeros_like(state.saw_eos),
            prefix=state.prefix._replace(end=end.max() + 0 * end),
        )
        after, info = decoder.step(params, keys, thawed)
        saw_eos = state.saw_eos | after.saw_eos
        prefix = after.prefix._replace(end=end)
        return after._replace(saw_eos=saw_eos, prefix=prefix), info

    thawing = decoder._replace(step=step)
    previous = None
    with pytest.raises(AssertionError):
        for now in decode_module.stream(
            thawing, table.TARGET, table.prompt(), jax.random.key(0)
        ):
            if previous is not None:
                _finished_rows_are_frozen(*previous, *now)
            previous = now


@MOST_STATES
def test_sharded_over_eight_devices(name):
    mesh = sharding.make_mesh(data=8)
    out, stats = table.launch(
        name,
        sharding.shard_rows(table.prompt(), mesh),
        1.0,
        1,
        method=getattr(methods, CASES[name].method),
        params=sharding.replicate(CASES[name].params, mesh),
    )
    assert len(out.tokens.sharding.device_set) == 8
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.tree.map(np.asarray, (out, stats)),
        table.base(name, 1.0, 1),
    )


# Negative controls on the verifying call: each must break greedy equality.


def _broken(change):
    """The causal toy whose multi-lane queries pass through `change`."""

    def apply(params, query, cache):
        if query.tokens.shape[1] > 1 and query.visible.among is not None:
            query = change(query)
        return table.CAUSAL.apply(params, query, cache)

    return table.CAUSAL._replace(apply=apply)


def _off_by_one(query):
    lane = jnp.arange(query.tokens.shape[1])
    return query._replace(positions=query.positions + (lane > 0)[None])


def _sees_siblings(query):
    size = query.tokens.shape[1]
    below = jnp.tril(jnp.ones((size, size), bool))
    among = jnp.broadcast_to(below, (len(ROWS), size, size))
    return query._replace(visible=query.visible._replace(among=among))


BROKEN = {
    "stale slot": table.CAUSAL._replace(move=lambda cache, source, target: cache),
    "position off by one": _broken(_off_by_one),
    "wrong tree mask": _broken(_sees_siblings),
}


@pytest.mark.parametrize("kind", ["none", *BROKEN])
def test_broken_calls_are_caught(kind):
    model = BROKEN.get(kind, table.CAUSAL)
    out, _ = decode_module.run(
        methods.specinfer,
        (model, table.CAUSAL),
        {"model": table.TARGET, "drafter": table.NEAR},
        table.prompt(),
        jax.random.key(0),
        knobs={"temperature": 1e-4},  # greedy, yet siblings differ in drafting noise
        max_new_tokens=MAX_NEW,
        branching=(2, 2),
        draws="without_replacement",
    )
    expected, _ = table.base("autoregressive", 0.0)
    is_same = np.array_equal(out.tokens, expected.tokens)
    assert is_same == (kind == "none")


@EVERY
def test_the_guarantee_is_composed_and_told(name):
    """What the parts make is what the case tests and the docstring says."""
    case = CASES[name]
    method = getattr(methods, case.method)
    models = case.model if isinstance(case.model[0], contracts.Model) else [case.model]
    decoder = method(*models, max_new_tokens=MAX_NEW, **case.sizes, **case.knobs)
    assert decoder.guarantee in contracts.GUARANTEES
    assert (decoder.guarantee == "lossless") == (case.kind in ("plain", "law"))
    told = describe.guarantee(method)
    assert decoder.guarantee in told, (decoder.guarantee, told)


@pytest.mark.parametrize("name", list(methods.__all__))
def test_documentation_says_what_is_guaranteed(name):
    text = getattr(methods, name).__doc__
    guarantee = text.split("Guarantee: ")[1].split()[0].rstrip(",;:.")
    assert guarantee in ("lossless", "lossy", "exact"), name
    assert "Cost: " in text
    kinds = {case.kind for case in CASES.values() if case.method == name}
    assert (guarantee == "lossless") == bool(kinds & {"plain", "law"}), name


def test_a_model_that_does_not_fit_is_refused():
    for case in CASES.values():
        several = isinstance(case.model[0], contracts.Model)
        first = case.model[0] if several else case.model
        wrong = table.CAUSAL if first.predicts == "masked" else table.MASKED
        models = (wrong, *case.model[1:]) if several else (wrong,)
        # Or for what it cannot tell of its attention, which is asked first.
        with pytest.raises(ValueError, match=r"predicts=|attention takes|attends"):
            getattr(methods, case.method)(
                *models, max_new_tokens=MAX_NEW, **case.sizes, **case.knobs
            )
