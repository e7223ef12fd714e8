"""Methods that take back or replace what they committed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import decode, methods, prompts
from pdecode.contracts import (
    CanvasShape,
    Head,
    Lanes,
    Output,
    Prediction,
    Query,
    Row,
    Sampling,
    Visibility,
)
from pdecode.families import masked
from pdecode.models import toy, transformer
from pdecode.rules import blocks, commit, guidance, remask, spans, windows

VOCAB, LENGTH = 4, 12
TOY = toy.make_model(VOCAB, LENGTH, predicts="masked")
ROWS = prompts.from_rows([[0, 1], [2], [1, 3, 0, 2]], max_new_tokens=8)


def tiny(num_layers=2, seed=0, **changes):
    """A small random transformer, untied and sharp."""
    settings = dict(
        vocab_size=12, width=16, num_layers=num_layers, num_heads=2, num_kv_heads=1,
        head_dim=8, mlp_width=24, mask_id=11, max_positions=64,
        attention="bidirectional", predicts="masked",
    ) | changes  # fmt: skip
    config = transformer.Config(**settings)
    params = transformer.init(config, jax.random.key(seed))
    params = jax.tree.map(lambda leaf: 3 * leaf if leaf.ndim > 1 else leaf, params)
    return transformer.make_model(config), params


def decoded(decoder, params, prompt=ROWS, key=0):
    program = jax.jit(functools.partial(decode.decode, decoder))
    return jax.tree.map(np.asarray, program(params, prompt, jax.random.key(key)))


# WINO. The mask has weight e^-2 in the toy's law and is never drawn: with it in the
# softmax, as in LLaDA's, probabilities are so much smaller.
SCALE = 1 / (1 + np.exp(-2.0))


def test_a_probe_does_not_see_its_twin_and_is_not_seen():
    model, params = tiny(num_layers=1)
    grid = blocks.generation(3)
    row = Row(*[None] * len(Row._fields))._replace(
        prompt_end=jnp.int32(2), start=jnp.int32(2), block=jnp.int32(1)
    )
    window = windows.shadowed(grid, CanvasShape(8, 6, False))
    lanes = window.apply(row)
    assert lanes.positions[8:].tolist() == [5, 6, 7]

    @jax.jit
    def hidden(tokens, lanes):
        tokens = jnp.where(lanes.probe, model.mask_id, tokens[lanes.positions])
        zero = jnp.zeros_like(tokens)[None]
        query = Query(
            tokens[None], lanes.positions[None], None,
            Visibility(zero, zero, among=lanes.among[None]),
        )  # fmt: skip
        cache = model.init_cache(prompts.from_rows([[0]], max_new_tokens=1), 1)
        return model.apply(params, query, cache)[0].hidden[0]

    text = jnp.array([1, 2, 3, 4, 5, 6, 7, 8])
    both = hidden(text, lanes)
    place = jnp.arange(8)
    alone = hidden(text, Lanes(place, place >= 0, place < 0, jnp.ones((8, 8), bool)))
    np.testing.assert_allclose(both[:8], alone, atol=1e-5)
    changed = hidden(text.at[5].set(9), lanes)
    np.testing.assert_array_equal(changed[8], both[8])
    assert (changed[9] != both[9]).any()  # the others do see it


WINO = functools.partial(
    methods.wino, TOY, max_new_tokens=8, threshold=0.4 * SCALE,
    threshold_back=0.6 * SCALE, temperature=1.0,
)  # fmt: skip


def test_wino_needs_at_most_a_call_a_token_and_revokes():
    decoder = WINO(block_length=4)
    program = jax.jit(lambda law: decode.decode(decoder, law, ROWS, jax.random.key(0)))
    laws = [toy.chain(seed, VOCAB, LENGTH) for seed in range(200)]
    results = [program(law) for law in laws]
    revoked = sum(int(stats.num_revoked.sum()) for _, stats in results)
    assert revoked > 50
    for out, stats in results:
        assert (stats.num_calls <= 8).all()
        assert (out.lengths == 8).all()
        np.testing.assert_array_equal(out.tokens[0, :2], [0, 1])


def test_wino_that_doubts_nothing_is_a_capped_threshold():
    law = toy.chain(3, VOCAB, LENGTH)

    def rule(key, row, prediction):
        sure = jnp.exp(prediction.log_prob) >= 0.3 * SCALE
        sure |= commit.best(prediction.log_prob, row.open, 1)
        return commit.best(prediction.log_prob, row.open & sure, 5)

    plain = masked.masked_diffusion(
        TOY, commit.stateless(rule), max_new_tokens=8,
        sampling=Sampling(1.0, undrawn=masked.undrawn(TOY)),
    )  # fmt: skip
    expected, stats = decoded(plain, law)
    for back, is_same in ((0.0, True), (0.6 * SCALE, False)):
        method = WINO(threshold=0.3 * SCALE, threshold_back=back)
        out, its = decoded(method, law)
        assert np.array_equal(out.tokens, expected.tokens) == is_same
        assert np.array_equal(its.num_calls, stats.num_calls) == is_same
        assert (its.num_revoked.sum() == 0) == is_same


def test_a_probe_that_sees_its_twin_is_caught(monkeypatch):
    """Negative control: on the toy it is then sure of every token."""
    whole = windows.shadowed

    def leaky(*facts):
        window = whole(*facts)

        def apply(row):
            lanes = window.apply(row)
            return lanes._replace(among=lanes.among | ~lanes.probe[None])

        return window._replace(apply=apply)

    def num_revoked():
        return decoded(WINO(), toy.chain(3, VOCAB, LENGTH))[1].num_revoked.sum()

    assert num_revoked() > 0
    monkeypatch.setattr(windows, "shadowed", leaky)
    assert num_revoked() == 0


# What a row looks like after each step.


def traced(decoder, params, prompt=ROWS, key=0):
    """(result, committed bool [T, B, L] after each step)."""
    plain = decoder
    decoder = decode.with_trace(
        plain, lambda state, info: plain.output(state).committed, 24
    )

    @jax.jit
    def program(params, prompt, key):
        state, stats = decode.decode_state(decoder, params, prompt, key)
        return decode.finish(decoder, state), stats, state.saved

    out = program(params, prompt, jax.random.key(key))
    return jax.tree.map(np.asarray, out)


def scripted(vote, vocab=4):
    """A model without weights: `vote(tokens [B, Q], positions)` -> logits [B, Q, V].

    It sees the tokens of its call; the mask is id `vocab`.
    """

    def apply(params, query, cache):
        del params
        logits = vote(query.tokens, query.positions)
        return Output(jnp.pad(logits, ((0, 0), (0, 0), (0, 1)))), cache

    return TOY._replace(
        apply=apply, encode=apply, vocab_size=vocab + 1, mask_id=vocab,
        head=lambda params: Head(jnp.eye(vocab + 1)), max_positions=None,
    )  # fmt: skip


def sure_of(token):
    """Logits that give `token` all but 1e-8."""
    return 20.0 * jax.nn.one_hot(token, 4)


# RCR, and ReMDM on LLaDA.


def left_open(saved, stats, ends):
    """Masks after each step, row by row."""
    return [
        [int(end - saved[t, b].sum()) for t in range(calls)]
        for b, (end, calls) in enumerate(zip(ends, stats.num_calls))
    ]


def num_survivors_reopened(saved):
    """Positions that stood after one step and not after the next."""
    return int((saved[:-1] & ~saved[1:] & saved[1:].any((1, 2), keepdims=True)).sum())


def test_rcr_leaves_as_many_as_the_schedule_says():
    law = toy.chain(3, VOCAB, LENGTH)
    decoder = methods.rcr(TOY, max_new_tokens=8, steps=4, temperature=1.0)
    _, stats, saved = traced(decoder, law)
    assert left_open(saved, stats, [8] * 3) == [[6, 4, 2, 0]] * 3
    assert num_survivors_reopened(saved) > 0
    # Negative control: LLaDA keeps what it committed.
    plain = methods.llada(TOY, max_new_tokens=8, steps=4, temperature=1.0)
    _, stats, saved = traced(plain, law)
    assert left_open(saved, stats, [8] * 3) == [[6, 4, 2, 0]] * 3
    assert num_survivors_reopened(saved) == 0


def test_the_least_sure_are_reopened():
    row = Row(*[None] * len(Row._fields))._replace(
        generated=jnp.array([False, True, True, True, True, True]),
        masked=jnp.array([False, False, False, True, False, False]),
        positions=jnp.arange(6), block_of=jnp.array([0, 0, 0, 0, 0, 1]),
        block=jnp.int32(0), probe=jnp.zeros(6, bool),
        log_probs=jnp.array([-9.0, -1.0, -3.0, -8.0, -2.0, -7.0]),
    )  # fmt: skip
    for count, expected in ((0, []), (1, [2]), (2, [2, 4]), (5, [1, 2, 4])):
        rule = remask.least_sure(lambda row, count=count: count)
        chosen, _ = rule.apply(None, None, row, None, ())
        assert np.flatnonzero(chosen).tolist() == expected


def test_remdm_on_llada_puts_steps_in_at_seven_eighths():
    law = toy.chain(3, VOCAB, LENGTH)
    decoder = methods.remdm_llada(
        TOY, max_new_tokens=8, remdm_steps=3, remdm_number=2, temperature=1.0
    )
    _, stats, saved = traced(decoder, law)
    expected = [7, 6, 5, 4, 3, 2, 3, 3, 3, 1, 0]
    assert left_open(saved, stats, [8] * 3) == [expected] * 3
    assert stats.num_revoked.tolist() == [6] * 3


# Rewriting what stands.


def test_refining_rewrites_from_its_first_step_on():
    """A model that changes its mind with every token known."""
    model = scripted(
        lambda tokens, positions: sure_of(
            jnp.broadcast_to((tokens != 4).sum(1, keepdims=True) % 3, tokens.shape)
        )
    )
    one = prompts.from_rows([[0, 1]], max_new_tokens=6)
    # The step that knows n tokens votes n % 3.
    for start, expected in ((0, [1] * 6), (5, [1] * 6), (6, [2, 0, 1, 2, 0, 1])):
        decoder = methods.refine(model, max_new_tokens=6, revise_start=start)
        out, stats = decoded(decoder, {}, one)
        assert out.tokens[0, 2:].tolist() == expected
        assert stats.num_calls.tolist() == [6]
        assert (stats.num_revoked[0] > 0) == (start < 6)


def test_refining_nothing_is_llada():
    model, params = tiny()
    prompt = prompts.from_rows([[0, 1], [2], [1, 3, 0, 2]], max_new_tokens=8)
    plain = decoded(methods.llada(model, max_new_tokens=8, steps=4), params, prompt)
    for fraction, is_same in ((0.0, True), (1.0, False)):
        method = methods.refine(
            model, max_new_tokens=8, steps=4, revise_fraction=fraction
        )
        out, stats = decoded(method, params, prompt)
        assert np.array_equal(out.tokens, plain[0].tokens) == is_same
        assert (stats.num_revoked.sum() == 0) == is_same


@pytest.mark.parametrize("stubborn", [True, False])
def test_a_full_block_is_edited_while_that_changes_it(stubborn):
    def vote(tokens, positions):
        other = jnp.where(tokens == 4, 0, (tokens + 1) % 3)
        return sure_of(jnp.where(stubborn, other, jnp.minimum(tokens, 3)))

    made = prompts.from_rows([[0, 1], [2]], max_new_tokens=6)
    decoder = methods.llada2(
        scripted(vote), max_new_tokens=6, block_length=3, max_post_steps=5
    )
    out, stats = decoded(decoder, {}, made)
    # Two blocks, each filled by one call and then looked at again.
    assert stats.num_calls.tolist() == [2 * (1 + (5 if stubborn else 1))] * 2
    assert stats.num_revoked.tolist() == [2 * 3 * 5 if stubborn else 0] * 2
    assert out.lengths.tolist() == [6, 6]
    # Its edits are told apart from what only a lower threshold lets pass.
    never = methods.llada2(
        scripted(vote), max_new_tokens=6, block_length=3, editing_threshold=1.0
    )
    _, stats = decoded(never, {}, made)
    assert stats.num_revoked.tolist() == [0, 0]
    assert stats.num_calls.tolist() == [4, 4]


# Schedules.


def test_mmm_has_a_schedule_for_every_length():
    model = scripted(lambda tokens, positions: sure_of(positions % 3))
    made = prompts.from_rows([[0]] * 3, max_new_tokens=[49, 24, 10])
    out, stats = decoded(methods.mmm(model, max_new_tokens=49), {}, made)
    # S = 10, 5, 2 for 49, 24, 10 tokens, and one step more; never more than 10.
    assert stats.num_calls.tolist() == [10, 6, 3]
    assert out.lengths.tolist() == [49, 24, 10]
    pinned = prompts.from_rows(
        [[3, 3, 3, 3]], max_new_tokens=2, holes=[[False, True, True, False]]
    )
    out, _ = decoded(methods.mmm(model, max_new_tokens=2), {}, pinned)
    assert out.tokens[0].tolist() == [3, 1, 2, 3, 1, 2]


def test_secondary_remasking_keeps_to_the_schedule():
    law = toy.chain(3, VOCAB, LENGTH)
    settings = dict(max_new_tokens=8, steps=5, temperature=1.0)
    plain = decoded(methods.maskgit(TOY, choice_temperature=1.0, **settings), law)
    off = methods.discrete_diffusion_vla(TOY, eta=0.0, drop=1.0, **settings)
    jax.tree.map(np.testing.assert_array_equal, plain, decoded(off, law))

    model, params = tiny()
    made = prompts.from_rows([[0, 1], [2], [1, 3, 0, 2]], max_new_tokens=8)
    decoder = methods.discrete_diffusion_vla(model, eta=0.6, drop=0.3, **settings)
    _, stats, saved = traced(decoder, params, made)
    assert stats.num_revoked.sum() > 3
    expected = [max(1, int(8 * np.cos(np.pi / 2 * j / 5))) for j in range(1, 5)]
    assert left_open(saved, stats, [8] * 3) == [[*expected, 0]] * 3


def test_only_a_token_that_fell_is_reopened():
    """Position 3 is unlikely as soon as it stands: it alone comes back, each step."""

    def vote(tokens, positions):
        falls = (positions == 3) & (tokens != 4)
        token = jnp.where(tokens == 4, positions % 3, tokens)
        return sure_of(jnp.where(falls, (token + 1) % 3, token))

    decoder = methods.discrete_diffusion_vla(
        scripted(vote), max_new_tokens=6, steps=6, eta=0.0, schedule="linear",
        temperature=0.0, choice_temperature=0.0,
    )  # fmt: skip
    _, stats, saved = traced(decoder, {}, prompts.from_rows([[0]], max_new_tokens=6))
    fell = saved[:-1] & ~saved[1:]
    fell = fell[: int(stats.num_calls[0]) - 1]
    assert stats.num_revoked[0] == fell.sum() > 0
    assert set(np.flatnonzero(fell.any((0, 1)))) == {3}


def test_hmar_goes_from_scale_to_scale():
    model = scripted(lambda tokens, positions: sure_of(positions % 3))
    made = prompts.from_rows([[0], [1, 2]], max_new_tokens=14)
    sides = (1, 2, 3)
    decoder = methods.hmar(model, max_new_tokens=14, sides=sides, counts=(1, 4, 9))
    _, stats, saved = traced(decoder, {}, made)
    assert left_open(saved, stats, [14] * 2) == [[13, 9, 0]] * 2  # plain next-scale
    counts = (1, 1, 3, 1, 1, 2, 5)  # the authors' first scales
    decoder = methods.hmar(model, max_new_tokens=14, sides=sides, counts=counts)
    _, stats, saved = traced(decoder, {}, made)
    assert left_open(saved, stats, [14] * 2) == [[13, 12, 9, 8, 7, 5, 0]] * 2
    with pytest.raises(ValueError, match="14 positions, but max_new_tokens=13"):
        methods.hmar(model, max_new_tokens=13, sides=sides, counts=(1, 4, 9))
    with pytest.raises(ValueError, match="must make up each scale"):
        methods.hmar(model, max_new_tokens=14, sides=sides, counts=(1, 5, 8))


# A poorer context.


def test_a_part_of_the_known_tokens_is_hidden():
    tokens = jnp.array([[0, 1, 4, 2, 3, 1, 4, 0, 2, 2, 1, 0]] * 2)
    place = jnp.broadcast_to(jnp.arange(12), tokens.shape)
    query = Query(tokens, place, None, Visibility(place, place))
    for fraction, count in ((0.0, 0), (0.35, 3), (1.0, 10)):
        after = guidance.hide_some(4, fraction)(query, None).tokens
        assert ((after == 4) & (tokens != 4)).sum(1).tolist() == [count] * 2
        assert (after[after != 4] == tokens[after != 4]).all()


def test_guidance_from_a_poorer_context():
    law = toy.chain(3, VOCAB, LENGTH)

    def tokens(**settings):
        method = methods.genmol(TOY, max_new_tokens=8, **settings)
        out, stats = decoded(method, law)
        return out.tokens, stats.num_calls.tolist()

    plain, calls = tokens()
    assert calls == [8] * 3
    same, calls = tokens(guidance_scale=2.0, gamma=0.0)
    assert calls == [16] * 3
    np.testing.assert_array_equal(plain, same)
    other, _ = tokens(guidance_scale=5.0, gamma=0.9)
    assert (plain != other).any()
    llada, _ = decoded(methods.llada(TOY, max_new_tokens=8, temperature=1.0), law)
    calm, _ = tokens(randomness=0.0)
    np.testing.assert_array_equal(calm, llada.tokens)


def test_a_fragment_is_reopened_and_the_others_stay():
    row = [1, 1, 3, 2, 2, 2, 3, 0, 0]  # 3 parts the fragments
    tokens, holes = prompts.reopened(row, 3, 6, 4)
    assert tokens[:3] == row[:3] and tokens[7:] == row[6:]
    assert np.flatnonzero(holes).tolist() == [3, 4, 5, 6]
    made = prompts.from_rows([tokens], max_new_tokens=1, holes=[holes])
    out, _ = decoded(methods.genmol(TOY, max_new_tokens=1), toy.chain(3, 4, 12), made)
    assert out.tokens[0, :3].tolist() == row[:3]
    assert out.tokens[0, 7:10].tolist() == row[6:]
    with pytest.raises(ValueError, match="no span of a row of 9"):
        prompts.reopened(row, 3, 10, 4)


def test_magnet_decodes_spans_codebook_by_codebook():
    model, params = tiny()
    made = prompts.from_rows([[0], [1, 2]], max_new_tokens=24)
    decoder = methods.magnet(
        model, max_new_tokens=24, decoding_steps=(5, 2), span_len=3, top_p=None
    )
    _, stats, saved = traced(decoder, params, made)
    # Of four spans cos(pi / 8 * j) stay open; in the second codebook one, then none.
    first = [int(4 * np.cos(np.pi / 8 * j)) for j in (1, 2, 3)] + [0]
    left = [12 + 3 * n for n in first] + [3, 0]
    assert left_open(saved, stats, [24] * 2) == [left] * 2
    assert num_survivors_reopened(saved) == 0
    for b, start in enumerate((1, 2)):
        whole = saved[:, b, start : start + 24].reshape(24, 8, 3)
        assert (whole.all(-1) == whole.any(-1)).all()  # never a part of a span
        before = saved[: stats.num_calls[b] - 2, b, start + 12 :]
        assert not before.any()  # the second codebook waits
    with pytest.raises(ValueError, match="no multiple of the 2 codebooks"):
        methods.magnet(model, max_new_tokens=25, decoding_steps=(5, 2))


def test_a_judge_has_a_say_in_which_spans_stay():
    """At w = 0 none, at w = 1 alone; its law is that of the tokens drawn, in turn."""
    law, near = toy.chain(3, VOCAB, LENGTH), toy.chain(8, VOCAB, LENGTH)
    judge = toy.make_model(VOCAB, LENGTH)
    sizes = dict(max_new_tokens=8, decoding_steps=(4,), span_len=2, top_p=None)

    def canvases(decoder, params):
        _, stats, saved = traced(decoder, params)
        return saved, stats

    plain, stats = canvases(methods.magnet(TOY, **sizes), law)
    assert stats.num_draft_calls.tolist() == [0] * 3
    by_role = {"model": law, "judge": near}
    for weight in (0.0, 0.5, 1.0):
        decoder = methods.magnet_rescored(TOY, judge, rescore_weight=weight, **sizes)
        saved, its = canvases(decoder, by_role)
        assert np.array_equal(saved, plain) == (weight == 0)
        np.testing.assert_array_equal(its.num_draft_calls, its.num_calls)
    with pytest.raises(ValueError, match="must read the model's tokens"):
        methods.magnet_rescored(TOY, toy.make_model(5, LENGTH), **sizes)


def test_what_a_judge_reads_is_the_canvas_as_drawn():
    """Against the chain itself; a judge that read the masks would say other things."""
    near, tokens = toy.chain(8, VOCAB, LENGTH), jnp.array([1, 0, 4, 4, 2, 4])
    drawn, open_ = jnp.array([3, 3, 2, 1, 3, 0]), tokens == 4
    row = Row(*[None] * len(Row._fields))._replace(
        tokens=tokens, open=open_, positions=jnp.arange(6)
    )
    prediction = Prediction(token=drawn)
    judge = toy.make_model(VOCAB, LENGTH)
    told = spans.judged(judge, near, row, prediction)
    text = np.where(open_, drawn, tokens)
    moves = np.log(near.moves)
    want = [0.0, *(moves[i, i, text[i - 1], text[i]] for i in range(1, 6))]
    np.testing.assert_allclose(told, want, atol=1e-5)
