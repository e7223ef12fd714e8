"""Set block decoding: the loss of both kinds of token, and the decoder of both."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.objectives import MODEL
from tiny import RUN, quiet

from pdecode import decode, methods, prompts
from pdecode.contracts import Visibility
from pdecode.data import packing
from pdecode.families import set_blocks
from pdecode.models import transformer
from pdecode.models.bytes import BOS_ID
from pdecode.train import losses, passes, train
from pdecode.train.objectives import autoregressive, set_block

SMALL = dataclasses.replace(
    MODEL, vocab_size=12, mask_id=11, eos_ids=(), num_layers=2, width=16, sliding=()
)
NETWORK = transformer.make_model(SMALL)
# Untrained laws are flat; sharper ones fill several positions a call.
PARAMS = jax.tree.map(lambda p: 2.5 * p, transformer.init(SMALL, jax.random.key(0)))
LENGTH, BLOCK = 11, 4
TOKENS = np.random.default_rng(0).integers(0, 11, (2, LENGTH)).astype(np.int32)


def config_of(**options):
    return dataclasses.replace(
        RUN, model=SMALL, objective="set_block", row_len=LENGTH, unit="token",
        options={"block_length": BLOCK, **options},
    )  # fmt: skip


def noisy():
    return set_block.noise(config_of())(
        {"tokens": jnp.asarray(TOKENS)}, jax.random.key(2)
    )


ROOM = 16  # of the slow pass: one program for all


@jax.jit
def _slow_laws(params, tokens, length, num_text):
    place = jnp.arange(ROOM)
    masks = jnp.where((tokens == SMALL.mask_id) & (place >= num_text), place, ROOM)
    sees = (place[None] <= place[:, None]) | (place >= masks.min())[:, None]
    sees &= (place < length)[None]
    where = place[None]
    nowhere = jnp.zeros_like(where)
    hidden = passes.run(
        passes.of_decoding(SMALL), params, tokens[None], positions=where,
        visible=Visibility(nowhere, nowhere, among=sees[None]),
    ).hidden  # fmt: skip
    return jax.nn.log_softmax(losses.logits_of(SMALL, params, hidden))[0]


def slow_laws(tokens, num_text):
    """Log-laws [L, V] of one row whose lanes from `num_text` on are its block.

    Text sees text before it; the block sees all from its first mask on.
    """
    padded = np.zeros(ROOM, np.int32)
    padded[: len(tokens)] = tokens
    laws = _slow_laws(PARAMS, padded, len(tokens), num_text)
    return np.asarray(laws, np.float64)[: len(tokens)]


def slow_nats(batch):
    """Of every token but the first: as a next token, and in its block, one by one."""
    ahead, inside = np.zeros((2, LENGTH - 1)), np.zeros((2, LENGTH - 1))
    for row in range(2):
        tokens = np.asarray(batch["tokens"][row])
        block, masked = (
            np.asarray(batch["block"][row]),
            np.asarray(batch["masked"][row]),
        )
        for place in range(1, LENGTH):
            before = slow_laws(tokens[:place], place)
            ahead[row, place - 1] = -before[-1, tokens[place]]
            first = np.flatnonzero(block == block[place])[0]
            lanes = np.where(masked, SMALL.mask_id, tokens)[block == block[place]]
            seen = np.concatenate([tokens[:first], lanes])
            law = slow_laws(seen, first)
            inside[row, place - 1] = -law[place - 1, tokens[place]]
    return ahead, inside


def test_the_loss_is_the_papers_by_hand():
    batch = noisy()
    ahead, inside = slow_nats(batch)
    found = jax.jit(functools.partial(set_block.both_nats, SMALL))(
        PARAMS, batch["tokens"], batch["block"], batch["masked"]
    )
    masked = np.asarray(batch["masked"])[:, 1:]
    assert masked.sum() > 5 and not masked.all()
    np.testing.assert_allclose(found[0], ahead, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1][masked], inside[masked], rtol=1e-4, atol=1e-5)
    loss = jax.jit(set_block.loss(config_of(masked_weight=0.5)))
    value, aux = loss(PARAMS, {}, batch, None, 0)
    by_hand = (ahead.sum() + 0.5 * inside[masked].sum()) / ahead.size
    np.testing.assert_allclose(value, by_hand, rtol=1e-5)
    assert float(aux["weight"]) == ahead.size
    # The control: what is masked first in a block is a next token, the others are not.
    behind = np.asarray(set_block.behind_mask(batch["block"], batch["masked"]))[:, 1:]
    gap = np.abs(inside - ahead)
    assert gap[masked & ~behind].max() < 1e-4 < gap[masked & behind].min()


def test_blocks_are_cut_anywhere_and_shares_are_their_own():
    config = dataclasses.replace(config_of(), model=MODEL, row_len=62, unit="byte")
    tokens = jnp.full((3000, 62), 97).at[:, 7].set(BOS_ID)
    batch = set_block.noise(config)({"tokens": tokens}, jax.random.key(0))
    block, masked = np.asarray(batch["block"]), np.asarray(batch["masked"])
    assert not masked[:, [0, 7]].any() and (block[:, 0] == -1).all()
    sizes = [np.bincount(row[1:]) for row in block]
    assert {size[0] for size in sizes} == {1, 2, 3, 4}
    assert all((size[1:-1] == BLOCK).all() for size in sizes)
    # At a uniform rate each number of masks of a block is as likely.
    whole = masked[block[:, 1] == block[:, 4]][:, 9:61].reshape(-1, BLOCK).sum(1)
    np.testing.assert_allclose(np.bincount(whole) / len(whole), 0.2, atol=0.02)


def test_gradients_reach_every_parameter_by_either_loss():
    batch = noisy()

    def slope(**options):
        loss = set_block.loss(config_of(**options))
        return jax.jit(jax.grad(lambda p: loss(p, {}, batch, None, 0)[0]))(PARAMS)

    both, text = slope(), slope(masked_weight=0.0)
    masked = jax.tree.map(jnp.subtract, both, text)
    for tree in (both, text, masked):
        assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(tree))
    # Without masked tokens it is the autoregressive objective.
    config = dataclasses.replace(config_of(), objective="autoregressive", options=None)
    loss = autoregressive.loss(config)
    plain = jax.jit(jax.grad(lambda p: loss(p, {}, batch, None, 0)[0]))(PARAMS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5), plain, text
    )


PROMPT = prompts.from_rows(
    [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 1]], max_new_tokens=[9, 9, 6, 9]
)


def run(method, **settings):
    """One program for all values of the knobs."""
    knobs = {"temperature": settings.pop("temperature", 0.0)}
    if "gamma" in settings:
        knobs["gamma"] = settings.pop("gamma")
    return decode.run(
        method, NETWORK, PARAMS, PROMPT, jax.random.key(3), knobs=knobs,
        max_new_tokens=9, **settings,
    )  # fmt: skip


def slow_decode(row, new, gamma):
    """Greedy tokens and the number of calls, everything made anew in each."""
    text, calls = list(row), 0
    end = len(row) + new
    while len(text) < end:
        first = len(text)
        lanes = [SMALL.mask_id] * min(BLOCK, end - first)
        while SMALL.mask_id in lanes:
            calls += 1
            laws = slow_laws(text + lanes, first)[first - 1 : -1]
            p = np.exp(laws)
            entropy = -(p * np.where(p > 0, laws, 0)).sum(1)
            still = [i for i, token in enumerate(lanes) if token == SMALL.mask_id]
            still.sort(key=lambda i: entropy[i])
            nats = 0.0
            for nth, i in enumerate(still):
                if nth and nats > gamma:  # the sum without the largest, the last
                    break
                nats += entropy[i]
                lanes[i] = int(laws[i].argmax())
        text += lanes
    return text, calls


def test_the_decode_is_the_slow_one():
    out, stats = run(methods.set_block, block_length=BLOCK, gamma=0.8)
    shares = []
    for row in range(4):
        length = int(PROMPT.lengths[row])
        new = int(PROMPT.max_new_tokens[row])
        text, calls = slow_decode(
            np.asarray(PROMPT.tokens[row, :length]).tolist(), new, 0.8
        )
        assert out.tokens[row, : len(text)].tolist() == text
        assert int(stats.num_calls[row]) == calls
        shares.append(calls / new)
    assert min(shares) < 0.8, "nothing was filled in sets"


def test_one_place_a_call_from_the_left_is_the_autoregressive_decode():
    one = {"order": "sequential", "block_length": BLOCK, "gamma": 0.0}
    for temperature in (0.0, 1.0):
        plain, _ = run(methods.autoregressive, temperature=temperature)
        for settings in (one, {**one, "block_length": 1, "gamma": 5.0}):
            out, _ = run(methods.set_block, temperature=temperature, **settings)
            np.testing.assert_array_equal(out.tokens, plain.tokens)
            np.testing.assert_allclose(out.log_probs, plain.log_probs, atol=1e-4)
        # The control: sets.
        out, _ = run(
            methods.set_block, temperature=temperature, **{**one, "gamma": 9.0}
        )
        assert (out.tokens != plain.tokens).any()


def test_text_in_a_block_that_saw_its_masks_would_be_another_law(monkeypatch):
    monkeypatch.setattr(
        set_blocks, "seen", lambda place, first: jnp.ones((4, place.shape[1], 1), bool)
    )
    plain, _ = run(methods.autoregressive, temperature=1.0)
    decoder = methods.set_block(
        NETWORK, max_new_tokens=9, block_length=BLOCK, gamma=0.0, order="sequential",
        temperature=1.0,
    )  # fmt: skip
    go = jax.jit(functools.partial(decode.decode, decoder))
    out, _ = go({"model": PARAMS}, PROMPT, jax.random.key(3))
    assert (out.tokens != plain.tokens).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_id": None}, "has none: train one with"),
        ({"attention": "bidirectional", "predicts": "masked"}, "use eb_sampler"),
        ({"sliding": (True, False), "window": 4}, "layers that see a window"),
    ],
)
def test_models_that_cannot_are_refused(changes, message):
    model = transformer.make_model(dataclasses.replace(SMALL, **changes))
    with pytest.raises(ValueError, match=message):
        methods.set_block(model, max_new_tokens=4)


def test_a_run_learns_to_fill_sets(tmp_path):
    """Fewer calls for the same text than by a model that learned next tokens alone."""
    model = dataclasses.replace(MODEL, width=32, mlp_width=64, num_layers=2, sliding=())
    text = packing.stream([b"def f(x):\n    return x + 1\n"])[:6].tolist()
    prompt = prompts.from_rows([text], max_new_tokens=16)
    calls, bits = [], []
    for weight in (0.0, 1.0):
        config = dataclasses.replace(
            RUN, objective="set_block", steps=40, learning_rate=2e-2, eval_every=40,
            checkpoint_every=40, model=model,
            options={"block_length": BLOCK, "masked_weight": weight},
        )  # fmt: skip
        made = train(config, tmp_path / str(weight), **quiet())
        bits.append(made.record["validation"]["bits_per_masked_byte"])
        _, stats = decode.run(
            methods.set_block, transformer.make_model(model), made.params, prompt,
            jax.random.key(0), max_new_tokens=16, block_length=BLOCK,
        )  # fmt: skip
        calls.append(int(stats.num_calls[0]))
    assert calls[1] < calls[0] and bits[1] < bits[0]
