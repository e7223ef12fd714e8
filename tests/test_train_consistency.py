"""Jacobi trajectories and the consistency of their states: records, loss, gradients."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.objectives import MODEL
from tiny import RUN, case

from pdecode import decode, methods, prompts, rng
from pdecode.data import packing, texts
from pdecode.models import transformer
from pdecode.train import losses, passes, train, trajectories
from pdecode.train.objectives import consistency

EOS = 258
PROMPT, BLOCK, LENGTH = 3, 4, 13  # blocks of 4, 4 and 2
OWN = {"prompt_length": PROMPT, "block_length": BLOCK}
PARAMS = transformer.init(MODEL, jax.random.key(0))
NETWORK = transformer.make_model(MODEL)


def config_of(**options):
    return dataclasses.replace(
        RUN, objective="consistency", data="rows", row_len=4 * LENGTH,
        options={**OWN, **options},
    )  # fmt: skip


def hand_made():
    """Records [2, 4, L]: one with a text that ends, one with a block that is done."""
    draw = np.random.default_rng(0)
    parts = np.repeat(draw.integers(97, 103, (2, 1, LENGTH)), 4, 1)
    parts[0, 1, [4, 6, 8, 9]] += 1  # wrong: in block 0 from its second place, in 1
    parts[0, 2, [6, 9]] += 1
    parts[0, :, 9:] = np.where(parts[0, :, 9:] > 0, parts[0, :, 9:], 0)
    parts[1, 1, [7, 11, 12]] += 1
    parts[1, 0, 10:], parts[1, 3, 11:] = EOS, EOS
    return parts


def slow_laws(prefix, lanes):
    """Log-laws [N, V] behind each of `lanes` of a block that follows a prefix."""
    row = np.concatenate([prefix, lanes]).astype(np.int32)
    padded = np.zeros(LENGTH, np.int32)  # nobody sees what comes after it
    padded[: len(row)] = row
    return np.asarray(_log_laws(padded[None]), np.float64)[0, len(prefix) : len(row)]


@jax.jit
def _log_laws(rows):
    hidden = passes.hidden(passes.of_decoding(MODEL), PARAMS, rows)
    return jax.nn.log_softmax(losses.logits_of(MODEL, PARAMS, hidden))


def slow_loss(parts, ar_weight, is_local):
    """A block at a time, each after its own prefix; a label at a time."""
    total = 0.0
    for decoded, state, after, labels in parts:
        values = []
        end = list(decoded).index(EOS) if EOS in decoded else LENGTH
        for first in range(PROMPT, LENGTH, BLOCK):
            places = range(first, min(first + BLOCK, LENGTH))
            said = slow_laws(decoded[:first], state[places])
            target = after[places] if is_local else decoded[places]
            wanted = np.exp(slow_laws(decoded[:first], target))
            wrong = [i for i in places if decoded[i] != state[i]]
            for nth, i in enumerate(places):
                if wrong and wrong[0] <= i < end:
                    values.append(-(wanted[nth] * said[nth]).sum())
        total += np.mean(values) if values else 0.0
        log_p = slow_laws(labels[:1], labels[1:-1])
        first_eos = list(labels).index(EOS) if EOS in labels else LENGTH
        nats = [
            -log_p[i - 2, labels[i]]
            for i in range(PROMPT, LENGTH)
            if i <= first_eos and labels[i] != 257
        ]
        total += ar_weight * np.mean(nats)
    return total / len(parts)


@pytest.mark.parametrize("is_local", [False, True], ids=["global", "local"])
def test_the_loss_is_the_papers_by_hand(is_local):
    parts = hand_made()
    batch = {"tokens": jnp.asarray(parts.reshape(2, -1), jnp.int32)}
    config = config_of(ar_weight=3.0, is_local=is_local)
    found, _ = jax.jit(consistency.loss(config))(PARAMS, {}, batch, None, 0)
    np.testing.assert_allclose(found, slow_loss(parts, 3.0, is_local), rtol=1e-5)
    # The control: the other one of the two losses is another number.
    other = slow_loss(parts, 3.0, not is_local)
    assert abs(float(found) / other - 1) > 1e-4


def slope_of(parts, **options):
    batch = {"tokens": jnp.asarray(parts.reshape(len(parts), -1), jnp.int32)}
    loss = consistency.loss(config_of(**options))
    return jax.jit(jax.grad(lambda p: loss(p, {}, batch, None, 0)[0]))(PARAMS)


def size(tree):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_gradients_reach_the_student_and_not_through_its_target():
    parts = hand_made()
    slope = slope_of(parts, ar_weight=0.0)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope))
    # A state that is the end teaches nothing.
    done = parts.copy()
    done[:, 1] = done[:, 0]
    assert size(slope_of(done, ar_weight=0.0)) == 0.0
    # The slope is that of a loss whose target is a constant.
    own = consistency.Options(**OWN, ar_weight=0.0)
    rows = jnp.asarray(parts, jnp.int32)
    chosen = consistency.counted(rows[:, 0], rows[:, 1], own, MODEL.eos_ids)
    how = passes.of_decoding(MODEL)
    fixed = jax.nn.softmax(
        consistency._laws(MODEL, PARAMS, rows[:, 0], rows[:, 1], own, how)[0]
    )

    def constant(params):
        laws = consistency._laws(MODEL, params, rows[:, 0], rows[:, 1], own, how)
        nats = -(fixed * jax.nn.log_softmax(laws[1])).sum(-1)
        each = jnp.where(chosen, nats, 0.0).sum(1) / chosen.sum(1)
        return each.mean()

    again = jax.jit(jax.grad(constant))(PARAMS)
    for one, other in zip(jax.tree.leaves(slope), jax.tree.leaves(again)):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_no_prompt_is_counted():
    rows = jnp.asarray(hand_made(), jnp.int32)
    state = rows[:, 1].at[:, 1].add(1)  # wrong within the prompt, as none is
    own = consistency.Options(**OWN)
    chosen = consistency.counted(rows[:, 0], state, own, MODEL.eos_ids)
    assert not chosen[:, :PROMPT].any()
    wanted = np.zeros((2, LENGTH), bool)
    wanted[0, 4:7], wanted[0, 8:11] = True, True
    wanted[1, 7:10] = True  # ends at its EOS
    np.testing.assert_array_equal(chosen, wanted)


def test_records_are_checked():
    rows = hand_made().reshape(2, -1)
    assert consistency.prepare(config_of(), rows, 0) is rows
    rows[0, LENGTH] += 1
    with pytest.raises(ValueError, match="holds no records of prompt_length=3"):
        consistency.prepare(config_of(), rows, 0)
    config = dataclasses.replace(config_of(), row_len=4 * LENGTH + 1)
    with pytest.raises(ValueError, match="row_len=53 must be 4 parts"):
        consistency.start(config, None, PARAMS)
    with pytest.raises(ValueError, match="objective=consistency needs data='rows'"):
        dataclasses.replace(RUN, objective="consistency")
    with pytest.raises(ValueError, match=r"data='rows' reads train\.npy"):
        texts.read(None, "rows")


# Trajectories.

NEW = LENGTH - PROMPT


@pytest.fixture(scope="module")
def found():
    rows = np.random.default_rng(1).integers(97, 120, (5, PROMPT)).astype(np.int32)
    return rows, trajectories.traced(NETWORK, PARAMS, rows, BLOCK, NEW, seed=3)


def greedy(row, num):
    """Tokens that follow a row, one at a time."""
    row = list(row)
    for _ in range(num):
        row.append(int(np.delete(slow_laws([], np.array(row))[-1], [259]).argmax()))
    return row


def test_states_are_those_of_an_iteration_by_hand(found):
    """Each state is the target's answer to the one before it, up to its first error."""
    rows, trace = found
    num_states = 0
    for index, row in enumerate(rows):
        end = trace.ends[index]
        text = greedy(row, NEW)
        if EOS in text[PROMPT:]:
            text = text[: text.index(EOS, PROMPT) + 1]
        assert text == trace.tokens[index][:end].tolist()
        assert (trace.tokens[index][end:] == EOS).all()
        for block, some in enumerate(trajectories.states(trace, index, PROMPT, BLOCK)):
            first = PROMPT + block * BLOCK
            for before, after in itertools.pairwise(some[:-1]):
                prefix = trace.tokens[index][:first]
                laws = slow_laws([], np.concatenate([prefix, before]))
                said = np.delete(laws, [259], axis=1)[first - 1 :].argmax(1)
                num_right = int(
                    np.cumprod(
                        before == trace.tokens[index][first:][: len(before)]
                    ).sum()
                )
                np.testing.assert_array_equal(after, said[: len(after)])
                assert num_right < len(before)
                num_states += 1
            if some:
                np.testing.assert_array_equal(
                    some[-1], trace.tokens[index][first : first + len(some[-1])]
                )
    assert num_states > 5


def test_the_trajectory_is_that_of_the_decode(found):
    """As many states as the decoder takes calls."""
    rows, trace = found
    prompt = prompts.from_rows(rows.tolist(), max_new_tokens=NEW)
    made, stats = decode.run(
        methods.jacobi, NETWORK, PARAMS, prompt, rng.key(3), max_new_tokens=NEW,
        window=BLOCK, block_length=BLOCK, start="text",
    )  # fmt: skip
    np.testing.assert_array_equal(made.start + made.lengths <= trace.ends, True)
    for index in range(len(rows)):
        some = trajectories.states(trace, index, PROMPT, BLOCK)
        num = sum(len(block) - 1 for block in some if block)
        assert num == stats.num_calls[index]


def test_records_hold_a_state_and_the_one_after_it(found):
    _, trace = found
    labels = np.arange(5 * LENGTH).reshape(5, LENGTH)
    draw = np.random.default_rng(0)
    made = list(trajectories.records(trace, labels, PROMPT, BLOCK, 8, draw))
    assert len(made) == 40
    for number, record in enumerate(made):
        row = number // 8
        decoded, state, after, told = record.reshape(4, LENGTH)
        np.testing.assert_array_equal(decoded, trace.tokens[row])
        np.testing.assert_array_equal(told, labels[row])
        for block, some in enumerate(trajectories.states(trace, row, PROMPT, BLOCK)):
            at = PROMPT + block * BLOCK
            if not some:
                np.testing.assert_array_equal(state[at:], decoded[at:])
                continue
            pairs = [np.concatenate(pair).tolist() for pair in itertools.pairwise(some)]
            here = slice(at, at + len(some[0]))
            assert [*state[here], *after[here]] in pairs


def test_labels_are_mixed_by_how_far_the_texts_are_apart():
    own = np.array([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]])
    true = np.array([[1, 2, 3, 4, 9], [1, 7, 8, 9, 9]])
    for limit, wanted in ((1.0, own), (0.0, true), (0.5, [own[0], true[1]])):
        found = trajectories.mixed_labels(own, true, 1, limit)
        np.testing.assert_array_equal(found, wanted)
    assert trajectories.longest_run(np.array([1, 2, 2, 2, 3])) == 3


def test_what_collapsed_is_left_out_and_a_folder_is_written_whole(tmp_path):
    tokens = packing.stream([b"def f(x):\n    return x\n" * 20] * 4)
    sizes = {
        "num": 5, "prompt_length": PROMPT, "max_new": 6, "block_length": BLOCK,
        "copies": 2, "limit": 1.0, "seed": 0,
    }  # fmt: skip
    made = trajectories.collect(NETWORK, PARAMS, tokens, max_run=99, **sizes)
    assert made.shape == (5 * 2 * 4 * 9,)
    with pytest.raises(ValueError, match="says one token 1 times on end"):
        trajectories.collect(NETWORK, PARAMS, tokens, max_run=1, **sizes)
    packing.save_splits(tmp_path / "rows", train=made, validation=made)
    config = case(
        "consistency", tmp_path, data_dir=str(tmp_path / "rows"), row_len=36, steps=2,
        warmup_steps=1, eval_every=2,
    )  # fmt: skip
    config = dataclasses.replace(config, options=OWN)
    record = train(config, tmp_path / "run", log=lambda line: None).record
    assert 0 <= record["validation"]["right_after_one_call"] <= 1
    with pytest.raises(ValueError, match="rows exists"):
        packing.save_splits(tmp_path / "rows", train=made)

    def failing(path, tokens):
        raise OSError("full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "save", failing)
        with pytest.raises(OSError):
            packing.save_splits(tmp_path / "other", train=made)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["rows", "run"]
