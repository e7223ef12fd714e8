"""Methods that take back or replace what they committed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pdecode import decode, methods, prompts
from pdecode.contracts import CanvasShape, Lanes, Query, Row, Sampling, Visibility
from pdecode.families import masked
from pdecode.models import toy, transformer
from pdecode.rules import blocks, commit, windows

VOCAB, LENGTH = 4, 12
TOY = toy.make_model(VOCAB, LENGTH, predicts="masked")
ROWS = prompts.from_rows([[0, 1], [2], [1, 3, 0, 2]], max_new=8)


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


# WINO. The mask has weight e^2 in the toy's law and is never drawn: with it in the
# softmax, as in LLaDA's, probabilities are so much smaller.
SCALE = 1 / (1 + np.exp(2.0))


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
        cache = model.init_cache(prompts.from_rows([[0]], max_new=1), 1)
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
