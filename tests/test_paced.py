"""Drafts as long as they are worth: the choice, its law, its price, its calls."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_accept import tables
from test_model_free import CAUSAL, LAW, homogeneous, turns_of

from pdecode import cache as caches
from pdecode import knobs, methods, prompts, trees
from pdecode.cli import arguments
from pdecode.contracts import Draft, Prediction, Prefix, Sampling
from pdecode.decode import decode_state, with_trace
from pdecode.drafters import causal, ngram, paced
from pdecode.families import speculative, speculative_calls
from pdecode.models import toy
from pdecode.rules import accept

CHOICES = (0, 1, 2, 4)
PRICES = paced.Prices((1.0, 1.1, 1.3, 1.8, 2.5, 4.0), 0.15)


def record(kept, tried):
    """A Pace of one row whose rounds all count."""
    kept, tried = (jnp.array([each], jnp.float32) for each in (kept, tried))
    return paced.Pace((), kept, tried, jnp.zeros(1, jnp.int32))


ONE = Prefix(None, jnp.ones(1, jnp.int32), jnp.full(1, 99, jnp.int32), None)


def by_hand(kept, tried, choices, prices, room=99):
    """Every length's tokens over its price, the best of them, by a plain loop."""
    pooled = paced.BEHIND * paced.TRIALS + sum(kept[1:])
    pooled /= paced.TRIALS + sum(tried[1:])
    speeds = []
    for length in choices:
        tokens = reached = 1.0
        for depth in range(min(length, room - 1)):
            prior, weight = (
                (pooled, paced.SHARED) if depth else (paced.FIRST, paced.TRIALS)
            )
            reached *= (kept[depth] + weight * prior) / (tried[depth] + weight)
            tokens += reached
        lanes = np.interp(np.log(length + 1), np.log(paced.WIDTHS), np.log(prices.call))
        speeds.append(tokens / (np.exp(lanes) + length * prices.draft))
    return speeds


def test_the_length_is_the_best_of_all_by_hand():
    draw = np.random.default_rng(0)
    pick = jax.jit(
        lambda kept, tried, call, draft, room: paced.chosen(
            record(kept, tried), ONE._replace(end=ONE.length + room), CHOICES,
            paced.Prices(call, draft),
        )[0]
    )  # fmt: skip
    seen = collections.Counter()
    for _ in range(300):
        tried = np.sort(draw.integers(0, 12, 4))[::-1]
        kept = np.minimum(draw.binomial(tried, draw.random()), tried)
        call = np.cumprod(np.append(1, 1 + draw.random(5) * draw.choice([0.1, 1.0])))
        prices = paced.Prices(tuple(call), draw.choice([0.0, 0.1, 0.5]))
        room = int(draw.integers(1, 9))
        speeds = by_hand(kept.tolist(), tried.tolist(), CHOICES, prices, room)
        got = int(pick(kept, tried, jnp.asarray(call), prices.draft, room))
        assert speeds[CHOICES.index(got)] > max(speeds) * (1 - 1e-5)
        seen[got] += 1
    assert set(seen) == set(CHOICES)


def test_a_row_that_stopped_drafting_tries_again():
    """Old refusals fade, so that a drafter that became good is found out."""
    pace = record([0.0] * 4, [12.0, 0, 0, 0])
    none = jnp.full((1, 4), -1, jnp.int32)
    round = speculative.Round(
        Draft(none, none), None, None, None, jnp.zeros(1, jnp.int32), None, ONE
    )
    waited = 0
    while int(paced.chosen(pace, ONE, CHOICES, PRICES)[0]) == 0:
        pace, waited = paced.recorded(pace, round), waited + 1
    assert 5 < waited < 150
    # Once it pays, it goes on; a row that is done does not.
    good = record([9.0] * 4, [9.0] * 4)
    assert int(paced.chosen(good, ONE, CHOICES, PRICES)[0]) == 4
    still = good._replace(seen=ONE.length)
    assert int(paced.chosen(still, ONE, CHOICES, PRICES)[0]) == 0


# Rates at each depth: one and the same, what is hard to begin and then goes on by
# itself, and what gets ever harder.
RATES = {
    **{str(rate): [rate] * 8 for rate in (0.1, 0.3, 0.5, 0.7, 0.9)},
    "copies": [0.25] + [0.97] * 7,
    "falling": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2],
}
MARKETS = {
    "flat": paced.Prices((1.0, 1.0, 1.0, 1.0, 1.2, 1.6), 0.1),
    "steep": paced.Prices((1.0, 1.5, 2.2, 4.0, 7.0, 14.0), 0.3),
    "flat, free drafts": paced.Prices((1.0, 1.0, 1.0, 1.0, 1.2, 1.6), 0.0),
    "steep, free drafts": paced.Prices((1.0, 1.5, 2.2, 4.0, 7.0, 14.0), 0.0),
}
LENGTHS, TEXT = (0, 1, 2, 4, 8), 72


def costs_a_token(rates, prices, fixed, key):
    """Mean over 400 rows of TEXT tokens; `fixed` -1: the length that is chosen."""
    batch, sizes = 400, jnp.arange(9)
    every = paced.cost_of(tuple(range(9)), prices)
    one = jnp.ones(batch, jnp.int32)  # the prompt
    begin = Prefix(None, one, one + TEXT, None)

    def turn(carry, key):
        pace, prefix, spent = carry
        live = prefix.length < prefix.end
        length = paced.chosen(pace, prefix, LENGTHS, prices)
        length = jnp.where(live, jnp.where(fixed < 0, length, fixed), 0)
        hit = jax.random.uniform(key, (batch, 8)) < rates[None]
        count = jnp.minimum(jnp.cumprod(hit, 1).sum(1), length)
        tokens = jnp.where(sizes[None, :8] < length[:, None], 1, -1)
        round = speculative.Round(Draft(tokens, None), *[None] * 3, count, None, prefix)
        noted = paced.recorded(pace._replace(seen=prefix.length), round)
        after = jnp.minimum(prefix.length + count + 1, prefix.end)
        pace = noted._replace(  # a row that is done learns nothing
            kept=jnp.where(live[:, None], noted.kept, pace.kept),
            tried=jnp.where(live[:, None], noted.tried, pace.tried),
        )
        spent += jnp.where(live, every[length], 0)
        return (pace, prefix._replace(length=after), spent), None

    start = paced.started((), begin, 8), begin, jnp.zeros(batch)
    (_, _, spent), _ = jax.lax.scan(turn, start, jax.random.split(key, TEXT))
    return spent.mean() / TEXT


def over_the_best():
    """{(rates, prices): cost of the chosen lengths over that of the best fixed one}."""
    one_of_each = jax.vmap(
        lambda *each: costs_a_token(*each), in_axes=(None, None, 0, None)
    )
    price, fixed = jax.jit(one_of_each), jnp.array([-1, *LENGTHS])  # traced anew
    found = {}
    for (rate, rates), (market, prices) in itertools.product(
        RATES.items(), MARKETS.items()
    ):
        own, *others = price(jnp.array(rates), prices, fixed, jax.random.key(1))
        found[rate, market] = float(own / min(others))
    return found


def test_learning_a_length_is_hardly_dearer_than_knowing_it(monkeypatch):
    """By the cost model, rates and prices as far apart as they come, short texts.

    What is left is what a row drafts before it knows better: about two rounds.
    """
    found = over_the_best()
    print({name: round(each, 3) for name, each in found.items()})
    assert max(found.values()) < 1.05
    assert np.mean(list(found.values())) < 1.02

    def pooled(pace, room):
        """Negative control: first drafts that fail speak against all behind them."""
        del room
        total = 0.85 * 3 + pace.kept.sum(1, keepdims=True)
        rate = total / (3 + pace.tried.sum(1, keepdims=True))
        rates = (pace.kept + 4 * rate) / (pace.tried + 4)
        reached = jnp.concatenate([jnp.ones_like(total), jnp.cumprod(rates, 1)], 1)
        return jnp.cumsum(reached, 1)

    monkeypatch.setattr(paced, "expected", pooled)
    assert max(over_the_best().values()) > 1.12


# The law of whole decodes, by enumeration.

VOCAB, NEW = 3, 4


def outcomes(rule, target, drafter, prefix, length, peeks):
    """[(emitted, probability, accepted, proposed)] of one round behind `prefix`."""
    found = collections.Counter()
    for draft in itertools.product(range(VOCAB), repeat=length):
        laws = [drafter[(*prefix, *draft[:i])] for i in range(length)]
        weight = float(np.prod([q[t] for q, t in zip(laws, draft)]))
        shown = length
        if peeks:  # the draft ends before the first token that looks unlikely
            doubts = [i for i in range(length) if laws[i][draft[i]] < 0.4]
            shown = min([length, *doubts])
        blank = Draft(
            jnp.asarray([[*draft, *[-1] * (2 - length)]], jnp.int32),
            jnp.asarray([[-1, 0]], jnp.int32),
            q=jnp.asarray([[*laws, *[np.ones(VOCAB) / VOCAB] * (2 - length)]]),
        )
        kept = paced.cut(blank, jnp.array([shown]))
        p = [target.get((*prefix, *draft[:i]), np.ones(VOCAB) / VOCAB)
             for i in range(length + 1)]  # fmt: skip
        p += [np.ones(VOCAB) / VOCAB] * (2 - length)
        stop, residual = rule(
            jax.tree.map(lambda leaf: leaf[0], kept), Prediction(probs=jnp.asarray(p))
        )
        for n, token in itertools.product(range(length + 1), range(VOCAB)):
            mass = weight * float(stop[n]) * float(residual[n, token])
            found[(*draft[:n], token), n, shown] += mass
    return [(*name, mass) for name, mass in found.items() if mass > 0]


def whole_law(rule, seed, peeks=False):
    """({string: probability}, the target's own, lengths that were chosen)."""
    target, drafter = tables(seed, NEW)
    prices = paced.Prices((1.0, 1.25, 1.5, 3.0, 4.0, 5.0), 0.25)
    choices = (0, 1, 2)
    pick = jax.jit(lambda pace: paced.chosen(pace, ONE, choices, prices)[0])
    note = jax.jit(paced.recorded)
    round_of = functools.cache(
        lambda prefix, length: outcomes(rule, target, drafter, prefix, length, peeks)
    )

    @functools.cache
    def after(history):
        """(record, length that it chooses) of rounds [(accepted, proposed)]."""
        if not history:
            pace = record([0.0] * 2, [0.0] * 2)
        else:
            accepted, proposed = history[-1]
            tokens = jnp.asarray([[0] * proposed + [-1] * (2 - proposed)], jnp.int32)
            pace = note(
                after(history[:-1])[0],
                speculative.Round(
                    Draft(tokens, tokens), None, None, None,
                    jnp.array([accepted], jnp.int32), None, ONE,
                ),
            )  # fmt: skip
        return pace, int(pick(pace))

    law, used = collections.Counter(), set()

    def go(prefix, history, mass):
        if len(prefix) >= NEW:
            law[prefix[:NEW]] += mass
            return
        length = after(history)[1]
        used.add((length, len(history)))
        for emitted, accepted, proposed, chance in round_of(prefix, length):
            go((*prefix, *emitted), (*history, (accepted, proposed)), mass * chance)

    go((), (), 1.0)
    exact = {}
    for string in itertools.product(range(VOCAB), repeat=NEW):
        chances = [target[string[:i]][string[i]] for i in range(NEW)]
        exact[string] = float(np.prod(chances))
    return law, exact, used


def variation(law, exact):
    return 0.5 * sum(abs(law[string] - exact[string]) for string in exact)


@pytest.mark.parametrize("name", ["rejection", "block"])
def test_lengths_chosen_from_earlier_rounds_keep_the_law(name):
    with jax.enable_x64(True):
        made = {
            "rejection": lambda: accept.by_node(accept.rejection()),
            "block": accept.block_verification,
        }[name]()
        rule = jax.jit(made.apply)
        law, exact, used = whole_law(rule, 0)
        assert len({length for length, _ in used}) >= 2, used
        assert variation(law, exact) < 1e-12
        # Negative control: the length depends on what was drawn.
        assert variation(*whole_law(rule, 0, peeks=True)[:2]) > 1e-3


# What is drafted, and what a call evaluates.


def test_lookup_is_the_fixed_one_cut():
    fixed = ngram.prompt_lookup(4, 3)
    rows = turns_of(paced.paced(fixed, CHOICES, PRICES))
    sizes = collections.Counter()
    for turn in (turn for row in rows for turn in row):
        whole = ngram.lookup(
            jnp.asarray(turn.text + [0] * (40 - len(turn.text))), len(turn.text), 4, 3
        ).tolist()
        size = sum(token >= 0 for token in turn.tokens)
        assert turn.tokens == whole[:size] + [-1] * (4 - size)
        sizes[size] += 1
    assert len(sizes) >= 3, sizes


DEAR = {
    "with_replacement": paced.Prices((1.0, 1.1, 1.3, 1.8, 2.5, 4.0), 0.12),
    "coupled": paced.Prices((1.0, 1.5, 2.2, 4.0, 7.0, 14.0), 0.3),
}


@pytest.mark.parametrize("draws", DEAR)
def test_a_paced_chain_has_the_tokens_of_a_fixed_one(draws):
    """Whatever was drafted before, also behind rounds without a draft."""
    near = toy.mixed(LAW, toy.chain(3, 4, 40), 0.4)
    params = {"model": LAW, "drafter": near}
    auto = paced.draft_model(CAUSAL, CHOICES, DEAR[draws], Sampling(1.0), draws=draws)
    alone = {}
    for size in (1, 2, 4):
        fixed = causal.draft_model(
            CAUSAL, trees.chain(size), Sampling(1.0), draws=draws
        )
        for turn in (turn for row in turns_of(fixed, params=params) for turn in row):
            alone[tuple(turn.text)] = turn.tokens
    num_same = 0
    sizes = collections.Counter()
    for row in turns_of(auto, params=params):
        for turn in row:
            size = sum(token >= 0 for token in turn.tokens)
            sizes[size] += 1
            whole = alone.get(tuple(turn.text))
            # Noise is a place, so one text has one draft where rounds coincide.
            if whole is not None:
                shared = min(size, len(whole))
                assert turn.tokens[:shared] == whole[:shared], turn
                num_same += shared
    assert num_same > 30 and sizes[0] > 0 and len(sizes) >= 3, (num_same, sizes)


@pytest.mark.parametrize("is_stale", [False, True])
def test_what_was_committed_without_it_is_made_up_for(is_stale, monkeypatch):
    """Seven tokens behind: the draft is that of a model which has read them all."""
    if is_stale:  # negative control
        monkeypatch.setattr(
            paced, "_made_up", lambda plan, own, state, prefix, drafts: (state, 0)
        )
    text = jnp.asarray([[0, 1, 2, 0, 1, 2, 3, 1, 0, 2], [3, 1, 0, 0, 2, 1, 3, 3, 1, 2]])
    whole = prompts.from_rows(text.tolist(), max_new_tokens=8)
    begun = prompts.from_rows(text[:, :3].tolist(), max_new_tokens=15)
    room = jnp.pad(text, ((0, 0), (0, 8)))
    prefix = Prefix(room, whole.lengths, whole.lengths + 8, whole.lengths)
    keys = jax.random.split(jax.random.key(0), 2)
    params = {"drafter": LAW}
    free = paced.Prices((1.0,) * 6, 0.0)

    @functools.partial(jax.jit, static_argnums=0)
    def draft_of(drafter, prompt):
        state = drafter.init(params, keys, prompt, prefix, None)
        draft, _ = drafter.propose(params, keys, state, prefix)
        return draft

    auto = paced.draft_model(CAUSAL, (0, 4), free, Sampling(1.0))
    fixed = causal.draft_model(CAUSAL, trees.chain(4), Sampling(1.0))
    got, expected = draft_of(auto, begun), draft_of(fixed, whole)
    is_same = np.allclose(got.q, expected.q, atol=1e-5)
    assert is_same != is_stale
    if not is_stale:
        np.testing.assert_array_equal(got.tokens, expected.tokens)
        # Two calls store what is missing, one drafts from it, three go on.
        assert got.cost.num_calls.tolist() == [6, 6]
        assert expected.cost.num_calls.tolist() == [4, 4]


LONG = 72
STEADY = homogeneous(0, length=LONG + 8)
NEAR = toy.mixed(STEADY, toy.chain(3, 4, LONG + 8), 0.3)
TOY = toy.make_model(4, LONG + 8)
MADE = {
    "prompt_lookup": ((TOY,), STEADY, {}),
    "speculative_sampling": (
        (TOY, TOY), {"model": STEADY, "drafter": NEAR}, {"acceptance": "coupled"},
    ),
}  # fmt: skip
PROMPT = prompts.from_rows([[0, 1, 2, 0, 1]], max_new_tokens=LONG)


@functools.partial(jax.jit, static_argnames=("name", "num_draft", "draft_length"))
def counted(name, num_draft, draft_length, call, draft, key):
    """Lanes [steps] and drafter calls [steps] of every round, and the tokens."""
    models, params, more = MADE[name]
    if len(models) > 1:
        more = {**more, "draft_cost": draft}
    decoder = getattr(methods, name)(
        *models, max_new_tokens=LONG, num_draft=num_draft, temperature=1.0,
        draft_length=draft_length, call_costs=call, **more,
    )  # fmt: skip
    made = with_trace(
        decoder,
        lambda state, info: (info.num_query_tokens_computed, info.num_draft_calls),
        LONG,
    )
    state, _ = decode_state(made, params, PROMPT, key)
    return state.saved, state.inner.prefix.tokens


def price(name, num_draft, draft_length, told, prices):
    """(Cost a token at `prices`, drafts a call, tokens) where `told` is believed."""
    cost = drafts = calls = 0
    texts = []
    for seed in range(4):
        (lanes, made), text = counted(
            name, num_draft, draft_length, jnp.asarray(told.call, jnp.float32),
            jnp.float32(told.draft), jax.random.key(seed),
        )  # fmt: skip
        lanes, made = np.asarray(lanes)[:, 0], np.asarray(made)[:, 0]
        lanes, made = lanes[lanes > 0], made[lanes > 0]
        logs = np.interp(np.log(lanes), np.log(paced.WIDTHS), np.log(prices.call))
        cost += np.exp(logs).sum() + prices.draft * made.sum()
        drafts += (lanes - 1).sum()
        calls += len(lanes)
        texts.append(np.asarray(text))
    return cost / (4 * LONG), drafts / calls, np.stack(texts)


CURVES = {
    "flat": paced.Prices((1.0, 1.0, 1.0, 1.0, 1.2, 1.6), 0.1),
    "steep": paced.Prices((1.0, 1.5, 2.2, 4.0, 7.0, 14.0), 0.3),
}


@pytest.mark.parametrize(
    "name",
    [
        "prompt_lookup",
        pytest.param("speculative_sampling", marks=pytest.mark.thorough),
    ],
)
def test_no_neighbour_is_cheaper_by_the_predicted_cost(name):
    """Fixed lengths around the mean that it chose, at two curves; the same tokens.

    To learn what a draft is worth costs a few per cent of so short a text.
    """
    own = {}
    for curve, prices in CURVES.items():
        fixed = {0: 1.0}
        for size in (1, 2, 4, 8):
            fixed[size], _, text = price(name, size, "fixed", prices, prices)
        own[curve], mean, own_text = price(name, 8, "auto", prices, prices)
        np.testing.assert_array_equal(own_text, text)
        below = max(size for size in fixed if size <= mean)
        above = min(size for size in fixed if size > mean)
        best = min(fixed[below], fixed[above])
        told = (name, curve, own[curve], mean, fixed)
        print(told)
        assert own[curve] <= 1.05 * best, told
    # Negative control: believing in another machine's prices costs.
    wrong, _, _ = price(name, 8, "auto", CURVES["flat"], CURVES["steep"])
    assert wrong > 1.1 * own["steep"], (wrong, own)


def test_a_call_that_is_too_narrow_is_caught(monkeypatch):
    """Negative control: the last drafts of the batch are not evaluated."""
    key, flat = jax.random.key(0), CURVES["flat"]

    def tokens():
        jax.clear_caches()
        call = jnp.asarray(flat.call)
        return np.asarray(
            counted("speculative_sampling", 8, "auto", call, flat.draft, key)[1]
        )

    right, real = tokens(), caches.one_of
    monkeypatch.setattr(
        speculative_calls.caches,
        "one_of",
        lambda which, calls, cache: real(
            jnp.maximum(which - (len(calls) > 2), 0), calls, cache
        ),
    )
    assert (tokens() != right).any()
    jax.clear_caches()


def test_costs_are_read_from_a_command_line():
    read = arguments.value(methods.prompt_lookup, "call_costs", "1,1,1.5,2,3,4.25")
    assert read == (1.0, 1.0, 1.5, 2.0, 3.0, 4.25)
    traced, _ = knobs.split(
        methods.prompt_lookup, {"max_new_tokens": 4, "call_costs": read}
    )
    assert traced["call_costs"].dtype == jnp.float32
    with pytest.raises(ValueError, match="it takes 6 floats in"):
        arguments.value(methods.prompt_lookup, "call_costs", "1,x")


def test_bad_lengths_and_costs_are_named():
    with pytest.raises(ValueError, match=r"32 nodes must have at most 31.*num_draft"):
        methods.prompt_lookup(
            CAUSAL, max_new_tokens=4, num_draft=32, draft_length="auto"
        )
    with pytest.raises(ValueError, match=r"call_costs=.* must be 6 numbers in"):
        knobs.split(
            methods.prompt_lookup, {"max_new_tokens": 4, "call_costs": (1.0, 2.0)}
        )
    with pytest.raises(ValueError, match="must be 6 numbers in"):
        knobs.split(
            methods.prompt_lookup,
            {"max_new_tokens": 4, "call_costs": (1, 2, 3, 4, 5, float("nan"))},
        )
    with pytest.raises(ValueError, match="it must be a chain"):
        tree = causal.draft_model(CAUSAL, trees.expand((2,)), Sampling())
        paced.paced(tree, (0, 2), PRICES)
    with pytest.raises(ValueError, match=r"call_sizes=.* must lie in"):
        speculative.draft_verify(
            CAUSAL, ngram.prompt_lookup(2, 2), max_new_tokens=4, sampling=Sampling(),
            call_sizes=(3,),
        )  # fmt: skip
