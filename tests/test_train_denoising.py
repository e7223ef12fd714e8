"""The objective of SJD2: what stands at a noisy position, its loss, and its decode."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from cases.objectives import MODEL
from tiny import RUN, quiet

from pdecode import decode, methods, prompts
from pdecode.data import packing
from pdecode.drafters import denoised
from pdecode.models import transformer
from pdecode.train import losses, passes, train
from pdecode.train.objectives import autoregressive, jacobi_denoising

LEVELS, LENGTH = 3, 12
PARAMS = transformer.init(MODEL, jax.random.key(0))
TOKENS = np.random.default_rng(0).integers(97, 123, (2, LENGTH)).astype(np.int32)


def config_of(**options):
    return dataclasses.replace(
        RUN, model=MODEL, objective="jacobi_denoising", row_len=LENGTH,
        options={"levels": LEVELS, "segment_length": 3, **options},
    )  # fmt: skip


def noised(**options):
    batch = {"tokens": jnp.asarray(TOKENS)}
    return jacobi_denoising.noise(config_of(**options))(batch, jax.random.key(4))


def slow_nats(batch):
    """A token at a time, from nothing but what stands before it."""
    table = np.asarray(PARAMS["embed"], np.float64)
    mean, scale = table.mean(0), table.std(0)
    alpha, sigma = denoised.schedule(LEVELS)
    level, drawn = np.asarray(batch["level"]), np.asarray(batch["noise"], np.float64)
    stands = np.zeros((2, LENGTH, MODEL.width))
    for row in range(2):
        for place in range(LENGTH):
            k = level[row, place]
            clean = (table[TOKENS[row, place]] - mean) / scale
            mixed = alpha[k] * clean + sigma[k] * drawn[row, place]
            stands[row, place] = mixed * scale + mean

    @jax.jit
    def law(stands, length):
        # All embeddings are given: the tokens are those of id 97 throughout.
        extra = jnp.where(
            (jnp.arange(LENGTH) < length)[:, None], stands - table[97:98], 0
        )
        hidden = passes.run(
            passes.of_decoding(MODEL), PARAMS, jnp.full((1, LENGTH), 97),
            extra=extra[None].astype(jnp.float32),
        ).hidden  # fmt: skip
        return jax.nn.log_softmax(losses.logits_of(MODEL, PARAMS, hidden))[0]

    nats = np.zeros((2, LENGTH - 1))
    for row in range(2):
        for place in range(1, LENGTH):
            last = law(stands[row].astype(np.float32), place)[place - 1]
            nats[row, place - 1] = -last[TOKENS[row, place]]
    return nats


def test_the_loss_is_the_papers_by_hand():
    batch = noised()
    assert len(np.unique(batch["level"])) == LEVELS + 1
    loss = jax.jit(jacobi_denoising.loss(config_of()))
    value, aux = loss(PARAMS, {}, batch, None, 0)
    wanted = slow_nats(batch)
    np.testing.assert_allclose(aux["nats"], wanted, rtol=1e-4)
    np.testing.assert_allclose(value, wanted.mean(), rtol=1e-5)
    # The control: other noise, and clean rows, are other numbers.
    other = {**batch, "level": jnp.where(batch["level"] > 0, 1, 0)}
    assert abs(float(loss(PARAMS, {}, other, None, 0)[0]) - value) > 1e-5


def test_without_noise_it_is_the_autoregressive_loss():
    config = dataclasses.replace(config_of(), objective="autoregressive", options=None)
    batch = noised(clean=1.0)
    assert not np.asarray(batch["level"]).any()
    mine, its = (
        jax.jit(jax.value_and_grad(lambda p, f=loss: f(p, {}, batch, None, 0)[0]))(
            PARAMS
        )
        for loss in (jacobi_denoising.loss(config_of()), autoregressive.loss(config))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mine, its)


def test_gradients_reach_every_parameter_and_noisy_tokens_their_embeddings():
    batch = noised(clean=0.0)

    def slope(params):
        return jacobi_denoising.loss(config_of())(params, {}, batch, None, 0)[0]

    grads = jax.jit(jax.grad(slope))(PARAMS)
    assert all(np.abs(leaf).max() > 1e-7 for leaf in jax.tree.leaves(grads))


def test_segments_have_one_level_each_and_every_level_comes():
    config = config_of(levels=4, segment_length=8, clean=0.25)
    batch = {"tokens": jnp.zeros((400, 60), jnp.int32)}
    level = jacobi_denoising.noise(config)(batch, jax.random.key(0))["level"]
    level = np.asarray(level)[:, 1:]
    shares = np.bincount(level.ravel()) / level.size
    np.testing.assert_allclose(shares, [0.25] + [0.75 / 4] * 4, atol=0.03)
    # A segment ends with chance 1/8; of those, some go on at the level they had.
    changes = (level[:, 1:] != level[:, :-1]).mean()
    np.testing.assert_allclose(changes, (1 - (shares**2).sum()) / 8, atol=0.01)


def test_a_noisy_slot_is_read_as_the_decoder_feeds_it():
    """The drafter's own lanes, one level from clean, are rows of the objective."""
    network = transformer.make_model(MODEL)
    mean, scale = (each[None, None] for each in denoised.statistics(network, PARAMS))
    batch = noised(clean=0.0)
    shown, extra = jacobi_denoising.noisy(
        MODEL, PARAMS, batch["tokens"], batch["level"], batch["noise"], LEVELS
    )
    alpha, sigma = denoised.schedule(LEVELS)
    clean = (PARAMS["embed"][TOKENS] - mean) / scale
    level = batch["level"][..., None]
    here = (
        jnp.asarray(alpha)[level] * clean + jnp.asarray(sigma)[level] * batch["noise"]
    )
    below = jnp.maximum(level - 1, 0)
    lower = jnp.asarray(alpha)[below] * clean
    lower += jnp.asarray(sigma)[below] * batch["noise"]
    # What stands there, a step of the decoder with the true token, and back again.
    stands = (PARAMS["embed"][shown] + extra - mean) / scale
    np.testing.assert_allclose(stands, here, atol=1e-4)
    moved = denoised.stepped(stands, clean, batch["level"], LEVELS)[:, 1:]
    np.testing.assert_allclose(moved, lower[:, 1:], atol=1e-4)


def test_a_run_learns_to_denoise(tmp_path):
    """Fewer calls of `sjd2` than by a model of clean text, for tokens of its own."""
    text = packing.stream([b"def f(x):\n    return x + 1\n"])[:6].tolist()
    prompt = prompts.from_rows([text], max_new_tokens=24)
    own = {"levels": 2, "segment_length": 6}
    model = dataclasses.replace(MODEL, width=32, mlp_width=64, num_layers=2, sliding=())
    network, key, calls = transformer.make_model(model), jax.random.key(0), []
    for clean in (1.0, 0.4):
        config = dataclasses.replace(
            config_of(), options={**own, "clean": clean}, steps=250, row_len=32,
            batch_size=16, model=model, learning_rate=1e-2, eval_every=250,
            checkpoint_every=250,
        )  # fmt: skip
        made = train(config, tmp_path / str(clean), **quiet())
        out, stats = decode.run(
            methods.sjd2, network, made.params, prompt, key, max_new_tokens=24,
            window=8, levels=1, knobs={"temperature": 0.0},
        )  # fmt: skip
        plain, _ = decode.run(
            methods.autoregressive, network, made.params, prompt, key,
            max_new_tokens=24,
        )  # fmt: skip
        np.testing.assert_array_equal(out.tokens, plain.tokens)
        calls.append(int(stats.num_calls[0]))
    assert calls[1] <= calls[0] / 1.5, calls
