"""A drafter of nested sub-models: what each says, when it is asked, what it stores."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL, RUN, quiet

from pdecode import decode as decode_module
from pdecode import methods, prompts
from pdecode.contracts import NodeRule, Sampling
from pdecode.decode import run
from pdecode.drafters import nested
from pdecode.families import speculative
from pdecode.models import transformer
from pdecode.rules import accept
from pdecode.train import losses, objectives, passes, train
from pdecode.train.objectives import sorted_exits

CONFIG = transformer.Config(
    vocab_size=11, width=16, num_layers=3, num_heads=2, num_kv_heads=1, mlp_width=24,
    exits=(1, 2, 3), name="nested",
)  # fmt: skip
NESTED = transformer.make_model(CONFIG)
WHOLE = transformer.make_model(dataclasses.replace(CONFIG, exits=()))
FIRST = transformer.make_model(
    dataclasses.replace(CONFIG, num_layers=1, sliding=(), exits=())
)
OWN = jax.tree.map(lambda leaf: 1.5 * leaf, transformer.init(CONFIG, jax.random.key(0)))
NOISE = transformer.init(CONFIG, jax.random.key(1))
# A target that is near enough to accept some of what the drafter says.
TARGET = jax.tree.map(lambda a, b: a + 0.15 * b, OWN, NOISE)
PARAMS = {"model": TARGET, "drafter": OWN}
PROMPT = prompts.from_rows([[1, 2, 3], [4], [5, 6, 7, 8]], max_new_tokens=[14, 15, 9])


def test_each_sub_model_goes_on_where_the_one_before_it_stopped():
    """In any chunks: exits answer as models of the first layers, the last as all."""
    tokens = jnp.asarray([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], jnp.int32)
    cache = NESTED.exits[0].init_cache(PROMPT._replace(tokens=tokens), 7)

    def query(first, last):
        place = jnp.broadcast_to(
            jnp.arange(first, last, dtype=jnp.int32), (2, last - first)
        )
        visible = transformer.Visibility(jnp.zeros_like(place), place + 1)
        return transformer.Query(tokens[:, first:last], place, place, visible)

    found = {}
    for nth, first, last in [(0, 0, 2), (0, 2, 5), (1, 0, 5), (2, 0, 1), (2, 1, 5)]:
        asked = query(first, last)
        if nth:  # tokens are not read again
            asked = asked._replace(tokens=jnp.zeros_like(asked.tokens))
        output, cache = jax.jit(NESTED.exits[nth].apply)(OWN, asked, cache)
        found.setdefault(nth, []).append(output.hidden)
    for nth, stop in enumerate(CONFIG.exits):
        config = dataclasses.replace(CONFIG, num_layers=stop, sliding=(), exits=())
        wanted = whole(config, OWN, tokens)
        made = np.concatenate(found[nth], 1)
        np.testing.assert_allclose(made, wanted, atol=2e-5)


@functools.partial(jax.jit, static_argnums=0)
def whole(config, params, tokens):
    return transformer.forward(config, params, tokens, train=False).hidden


@functools.partial(jax.jit, static_argnums=0)
def decoded(num_draft, temperature, threshold):
    """(generation, stats, last state)."""
    decoder = methods.s2d(
        WHOLE, NESTED, max_new_tokens=15, num_draft=num_draft, threshold=threshold,
        temperature=temperature,
    )  # fmt: skip
    state, stats = decode_module.decode_state(
        decoder, PARAMS, PROMPT, jax.random.key(0)
    )
    return decode_module.finish(decoder, state), stats, state


def plain(temperature):
    return run(
        methods.autoregressive, WHOLE, TARGET, PROMPT, jax.random.key(0),
        knobs={"temperature": temperature}, max_new_tokens=15,
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_whatever_exits_are_taken_the_tokens_are_the_targets(temperature):
    wanted, slow = plain(temperature)
    calls, deep = [], []
    for threshold in (0.0, 0.35, 1.0):
        out, stats, _ = decoded(4, temperature, threshold)
        np.testing.assert_array_equal(out.tokens, wanted.tokens)
        assert stats.num_calls.sum() < slow.num_calls.sum()
        calls.append(stats.num_calls)
        deep.append(int(stats.num_draft_calls.sum()) / int(stats.num_calls.sum()))
    # The ends are drafters of their own: the first layers alone, and the whole model.
    for threshold, drafter, tree in ((0, FIRST, OWN), (2, WHOLE, OWN)):
        _, stats = run(
            methods.speculative_sampling, (WHOLE, drafter),
            {"model": TARGET, "drafter": tree}, PROMPT, jax.random.key(0),
            knobs={"temperature": temperature}, max_new_tokens=15, num_draft=4,
            acceptance="coupled",
        )  # fmt: skip
        np.testing.assert_array_equal(stats.num_calls, calls[threshold])
    assert deep[0] == 4 and 4 < deep[1] < deep[2]
    assert deep[2] >= 12


def test_drafts_kept_whatever_they_are_make_another_text():
    """The control: the same drafter under a rule that accepts all."""
    rule = NodeRule(lambda p, q, tokens: (jnp.ones(1), p), 1)

    @jax.jit
    def unverified():
        sampling = Sampling(1.0)
        decoder = speculative.draft_verify(
            WHOLE, nested.nested(NESTED, 4, 0.35, sampling), max_new_tokens=15,
            sampling=sampling, acceptance=accept.by_node(rule),
        )  # fmt: skip
        return decode_module.decode(decoder, PARAMS, PROMPT, jax.random.key(0))[0]

    tokens = np.asarray(unverified().tokens)
    assert (tokens != np.asarray(plain(1.0)[0].tokens)).any(1).all()


def filled(state):
    """Largest error of each sub-model's own layers where it says it has stored."""
    inner, prefix = state.drafter, state.prefix
    cache = WHOLE.init_cache(PROMPT, inner.cache["layers"][0]["k"].shape[2])
    text = prompts.from_rows(
        [row[:n].tolist() for row, n in zip(np.asarray(prefix.tokens), prefix.length)],
        max_new_tokens=1, pad_to=prefix.tokens.shape[1],
    )  # fmt: skip
    _, cache = jax.jit(functools.partial(prompts.prefill, WHOLE))(OWN, text, cache)
    errors = []
    for layer, written in enumerate(inner.written):
        count = np.minimum(written, np.asarray(prefix.length) - 1)
        errors.append(
            max(
                float(np.abs(mine[b, :, :n] - its[b, :, :n]).max(initial=0))
                for name in ("k", "v")
                for mine, its in [
                    (inner.cache["layers"][layer][name], cache[layer][name])
                ]
                for b, n in enumerate(count)
            )
        )
    return errors, cache


def test_late_caches_are_those_of_every_token_through_all_layers():
    _, _, state = decoded(4, 0.0, 0.35)
    errors, cache = filled(state)
    assert max(errors) < 1e-4
    ends = [
        np.minimum(w, np.asarray(state.prefix.length) - 1)
        for w in state.drafter.written
    ]
    assert (ends[2] <= ends[1]).all() and (ends[1] <= ends[0]).all()
    # The control: some wait, and what waits is not there.
    waits = [b for b in range(3) if ends[2][b] < ends[0][b]]
    assert waits
    for b in waits:
        mine = state.drafter.cache["layers"][2]["k"][b, :, ends[2][b] : ends[0][b]]
        its = cache[2]["k"][b, :, ends[2][b] : ends[0][b]]
        assert np.abs(mine - its).max() > 1e-3


def test_a_drafter_without_exits_and_odd_exits_are_refused():
    with pytest.raises(ValueError, match="nested has no exits: train it with objec"):
        methods.s2d(WHOLE, WHOLE, max_new_tokens=4)
    for exits in ((1, 2), (3, 2), (0, 3), (1, 1, 3), (1, 3, 4)):
        with pytest.raises(ValueError, match=r"exits=.* must rise from at least 1"):
            dataclasses.replace(CONFIG, exits=exits)
    with pytest.raises(ValueError, match=r"needs model.exits, such as \(1, 1\)"):
        dataclasses.replace(RUN, objective="sorted_exits")


SORTED = dataclasses.replace(MODEL, num_layers=3, sliding=(), exits=(1, 3))


def test_the_loss_is_the_mean_of_models_of_the_first_layers():
    params = transformer.init(SORTED, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 258, (3, 10)).astype(np.int32)
    config = dataclasses.replace(RUN, model=SORTED, objective="sorted_exits")
    loss = jax.jit(sorted_exits.loss(config))

    def value(params):
        return loss(params, {}, {"tokens": tokens}, None, 0)[0]

    def alone(params, stop):
        model = dataclasses.replace(SORTED, num_layers=stop, sliding=(), exits=())
        nats, counted = losses.next_token_loss(model, params, tokens)
        return jnp.where(counted, nats, 0).sum() / counted.sum()

    found, slopes = jax.value_and_grad(value)(params)
    first, last = (
        jax.jit(jax.value_and_grad(alone), static_argnums=1)(params, stop)
        for stop in (1, 3)
    )
    np.testing.assert_allclose(found, (first[0] + last[0]) / 2, rtol=1e-5)
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a, (b + c) / 2, atol=1e-5),
        slopes, first[1], last[1],
    )  # fmt: skip
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes))
    # Layers behind the first exit learn from the last alone.
    assert np.abs(first[1]["layer_1"]["mlp"]["up"]["kernel"]).max() == 0


def test_the_plain_pass_keeps_nothing_between_layers():
    own = {"model": SORTED, "objective": "sorted_exits", "forward": "plain"}
    with pytest.raises(ValueError, match="only forward='transformer' without remat"):
        objectives.find("sorted_exits").loss(dataclasses.replace(RUN, **own))
    assert passes.of_decoding(SORTED).forward == "transformer"


def test_a_run_makes_a_drafter_that_decodes(tmp_path):
    config = dataclasses.replace(
        RUN, model=SORTED, objective="sorted_exits", steps=3, eval_every=3
    )
    record = train(config, tmp_path, **quiet()).record
    assert len(record["validation"]["bits_per_byte_by_exit"]) == 2
