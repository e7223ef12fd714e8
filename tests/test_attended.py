"""What attention tells of positions, and the order that it guides."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.masked import SHOWS
from test_caches import BIDIRECTIONAL, SMALL
from test_masked_rules import chosen, row, rule_of
from test_revising import scripted, sure_of

from pdecode import methods, prompts, run
from pdecode.contracts import Query, Visibility
from pdecode.decode import decode
from pdecode.models import observed
from pdecode.rules import attended

ROWS = prompts.from_rows([[0, 1], [2], [1, 0, 2]], max_new_tokens=[9, 5, 9])
ALL = dict(max_new_tokens=9, steps=4)


def on_toy(method, **settings):
    knobs = {"temperature": 1.0, **settings.pop("knobs", {})}
    result = run(
        method, SHOWS, cases.TARGET, ROWS, jax.random.key(2), knobs=knobs, **settings
    )
    return jax.tree.map(np.asarray, result)


@pytest.mark.parametrize("end", [14, 11])
def test_contrast_equals_a_loop(end):
    maps = np.random.default_rng(0).random((14, 3)).astype(np.float32)
    now = row([True] * 14, prompt_end=jnp.int32(2), end=jnp.int32(end))
    now = now._replace(observed=jnp.asarray(maps))
    found = jax.jit(lambda now: attended.contrast(now, (3, 4)))(now)
    share = {-1: 1, 0: 2, 1: 1}
    smooth = np.zeros((end - 2, 3))
    for i in range(end - 2):
        near = [
            (share[a - i // 4] * share[b - i % 4], maps[2 + 4 * a + b])
            for a in range(3)
            for b in range(4)
            if abs(a - i // 4) < 2 and abs(b - i % 4) < 2 and 4 * a + b < end - 2
        ]
        smooth[i] = sum(w * m for w, m in near) / sum(w for w, _ in near)
    smooth -= smooth.min(0)
    smooth /= smooth.max(0)
    two = np.sort(smooth, 1)
    np.testing.assert_allclose(found[: end - 2], two[:, 2] - two[:, 1], atol=1e-5)


def test_the_highest_contrast_is_first_and_what_attends_to_both_is_not():
    """One cell of three is drawn; the one that attends most attends to both."""
    rule = rule_of(methods.uncage, SHOWS, steps=8, row_length=1, choice_temperature=0.0)
    maps = np.zeros((8, 2))
    maps[0] = maps[1] = [5, 5]
    maps[4] = maps[5] = [3, 0]
    now = row([True] * 8)._replace(observed=jnp.asarray(maps, jnp.float32))
    assert chosen(rule, now, log_prob=np.zeros(8))[0] == 4
    # Negative control: by attention alone it would be the other.
    alone = row([True] * 8)._replace(
        observed=jnp.asarray(maps.sum(1, keepdims=True), jnp.float32)
    )
    assert chosen(rule, alone, log_prob=np.zeros(8))[0] == 0


def test_without_weight_it_is_maskgit():
    plain = on_toy(methods.maskgit, **ALL)
    for changed in ({"knobs": {"weight": 0.0}}, {"guided_steps": 0}):
        same = on_toy(methods.uncage, row_length=3, **ALL, **changed)
        jax.tree.map(np.testing.assert_array_equal, plain, same)
    other, _ = on_toy(methods.uncage, row_length=3, **ALL, knobs={"weight": 50.0})
    assert (other.tokens != plain[0].tokens).any()


def test_the_order_is_guided_and_no_token():
    model = scripted(lambda tokens, positions: sure_of(positions % 3))
    model = model._replace(observed=lambda cache: cache["keys"][:, 0] + 1.0)
    outs = [
        jax.jit(functools.partial(decode, methods.uncage(model, weight=w, **ALL)))(
            {}, ROWS, jax.random.key(0)
        )[0].tokens
        for w in (0.0, 50.0)
    ]
    np.testing.assert_array_equal(*outs)


def test_groups_are_what_a_slot_attends_to(monkeypatch):
    """Scripted weights, mean over layers; the prompt's padding is in no group."""
    model, size = observed.groups(SMALL, 2), 8
    shares = np.float32([[[1, 0, 0.5], [0, 2, 9]]])
    made = prompts.from_rows([[3, 4]], max_new_tokens=1, pad_to=3)
    made = made._replace(context=jnp.asarray(shares))
    maps = np.random.default_rng(0).dirichlet(np.ones(size), (2, 1, 3))
    left = iter(jnp.asarray(maps, jnp.float32))
    monkeypatch.setattr(observed.plain, "weights", lambda *_, **__: next(left))
    place = jnp.asarray([[2, 5, 6]], jnp.int32)
    query = Query(place, place, place, Visibility(place * 0, place * 0 + 6))
    _, cache = model.apply(BIDIRECTIONAL[1], query, model.init_cache(made, size))
    told = np.zeros((size, 2))
    mean = maps.mean(0)[0]
    told[[2, 5]] = np.stack([mean[:2, 0], 2 * mean[:2, 1]], 1)
    np.testing.assert_allclose(model.observed(cache)[0], told, atol=1e-6)
    with pytest.raises(ValueError, match=r"must be \[B, C, P\] = \(1, 2, 3\)"):
        model.init_cache(made._replace(context=None), size)


def test_a_network_is_guided_by_its_own_attention():
    made = ROWS._replace(
        context=jnp.broadcast_to(jnp.eye(2, 3)[None], (3, 2, 3)).astype(jnp.float32)
    )
    outs = [
        run(
            methods.uncage, observed.groups(SMALL, 2), BIDIRECTIONAL[1], made,
            jax.random.key(0), knobs={"weight": w}, row_length=3, **ALL,
        )[0].tokens
        for w in (0.0, 20.0)
    ]  # fmt: skip
    assert (outs[0] != outs[1]).any()
    with pytest.raises(ValueError, match=r"observed\.groups"):
        methods.uncage(cases.MASKED, max_new_tokens=8)
