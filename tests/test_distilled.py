"""Distilled decoding: pairs of noise and tokens, their student, and its decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import RUN

from pdecode import methods, prompts, rng
from pdecode.contracts import Embedding, Head, Output
from pdecode.decode import run
from pdecode.models import noised, toy, transformer
from pdecode.models.config import Config
from pdecode.rules import flows
from pdecode.train import noise_pairs
from pdecode.train.objectives import distilled_decoding as objective

# A first token that is given, then three that hang on each other.
VOCAB, LENGTH = 2, 3
_STRINGS = np.array(list(np.ndindex((VOCAB,) * (1 + LENGTH))))
JOINT = toy.table(_STRINGS, np.random.default_rng(5).dirichlet(np.full(16, 0.4)))
TEACHER = toy.make_model(VOCAB, 1 + LENGTH)
CODES = ((-1.0, 0.5), (1.0, 0.0))
TABLE = jnp.asarray(CODES)
ROWS = 4000


def law_of(first):
    """{string: probability} given its first token."""
    strings, probs = np.asarray(JOINT.strings), np.exp(np.asarray(JOINT.log_probs))
    fits = strings[:, 0] == first
    return {
        tuple(row.tolist()): p / probs[fits].sum()
        for row, p in zip(strings[fits], probs[fits])
    }


def apart(rows, law):
    """Total variation of the strings of `rows` from a law."""
    found = {}
    for row in np.asarray(rows).tolist():
        found[tuple(row)] = found.get(tuple(row), 0) + 1 / len(rows)
    return 0.5 * sum(abs(found.get(s, 0) - law.get(s, 0)) for s in {*found, *law})


@pytest.mark.parametrize("depth", [1, 2])
def test_what_the_teacher_draws_of_noise_has_its_joint_law(depth):
    firsts = jnp.ones(ROWS, jnp.int32)
    noise = jax.random.normal(jax.random.key(0), (ROWS, LENGTH, depth))
    table = TABLE[:, :depth]
    made = noise_pairs.drawn(TEACHER, JOINT, firsts, noise, table)
    law = law_of(1)
    whole = np.concatenate([firsts[:, None], made], 1)
    assert apart(whole, law) < 0.03
    again = noise_pairs.drawn(TEACHER, JOINT, firsts, noise, table)
    np.testing.assert_array_equal(again, made)
    # The control: each token by its own law, whatever stands before it.
    alone = np.stack([np.roll(whole[:, i], 7 * i) for i in range(1 + LENGTH)], 1)
    assert apart(alone, law) > 0.15


def test_records_name_the_noise_that_their_tokens_are_of():
    firsts = np.arange(20) % 2
    rows = noise_pairs.collect(TEACHER, JOINT, TABLE, firsts, LENGTH, 4090)
    assert rows.shape == (20, 1 + LENGTH + objective.NAME_LENGTH)
    names = (rows[:, 4:] * 16 ** np.arange(5)[None]).sum(1)
    assert names.tolist() == list(range(4090, 4110)) and rows[:, 4:].max() < 16
    noise = objective.named_noise(jnp.asarray(rows, jnp.int32), 2)
    assert len(np.unique(np.asarray(noise))) == noise.size
    again = noise_pairs.drawn(TEACHER, JOINT, jnp.asarray(firsts), noise, TABLE)
    np.testing.assert_array_equal(rows[:, 1:4], again)
    with pytest.raises(ValueError, match="more than 5 digits"):
        noise_pairs.collect(TEACHER, JOINT, TABLE, firsts, LENGTH, 16**5 - 4)


def student(is_blind=False):
    """A network that knows the teacher's function of noise, or only its own lane's."""

    def apply(params, query, cache):
        strings, log_probs = params
        tokens, noise = (
            query.tokens,
            jnp.where(query.has_extra[..., None], query.extra, 0),
        )
        for place in range(1, 1 + LENGTH):
            seen = (strings[None, :, :place] == tokens[:, None, :place]).all(-1)
            seen |= jnp.full_like(seen, is_blind)
            mass = jnp.where(seen, log_probs[None], -1e9)
            hot = strings[:, place][None, :] == jnp.arange(VOCAB)[:, None]
            law = jax.scipy.special.logsumexp(
                jnp.where(hot[None], mass[:, None], -1e9), axis=-1
            )
            made = flows.code_of(noise[:, place], jax.nn.log_softmax(law), TABLE)
            told = jnp.where(query.has_extra[:, place], made, tokens[:, place])
            tokens = tokens.at[:, place].set(told)
        return Output(20.0 * jax.nn.one_hot(tokens, VOCAB + 1)), cache

    return toy.make_model(VOCAB, 1 + LENGTH, predicts="masked")._replace(
        apply=apply,
        predicts="noised",
        init_cache=lambda prompt, slots: (),
        head=lambda params: Head(jnp.eye(VOCAB + 1)),
        embedding=Embedding(lambda params: TABLE, 2, "float32"),
    )


PROMPT = prompts.from_rows([[1]] * ROWS, max_new_tokens=LENGTH)


def decoded(model, starts):
    out, stats = run(
        methods.distilled_decoding, model, JOINT, PROMPT, jax.random.key(3),
        max_new_tokens=LENGTH, starts=starts,
    )  # fmt: skip
    assert (stats.num_calls == len(starts)).all()
    return np.asarray(out.tokens)[:, : 1 + LENGTH]


def test_a_student_that_knows_the_function_has_the_joint_law_in_one_call():
    perfect = student()
    tokens = decoded(perfect, (0,))
    # The function itself, on the row's own noise.
    keys = rng.row_keys(jax.random.key(3), PROMPT.row_ids)
    places = jnp.broadcast_to(jnp.arange(1, 1 + LENGTH), (ROWS, LENGTH))
    named = rng.noise(keys, rng.TRANSPORT, places)
    noise = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, (2,))))(named)
    firsts = jnp.ones(ROWS, jnp.int32)
    made = noise_pairs.drawn(TEACHER, JOINT, firsts, noise, TABLE)
    assert (tokens[:, 1:] == np.asarray(made)).all(1).mean() > 0.999
    assert apart(tokens, law_of(1)) < 0.03
    # A second call goes on from what the first said, with the same noise.
    np.testing.assert_array_equal(decoded(perfect, (0, 2)), tokens)
    # The control: tokens independent of each other.
    assert apart(decoded(student(is_blind=True), (0,)), law_of(1)) > 0.15


def test_starts_rise_from_nought_and_noise_is_read():
    for starts in ((), (1,), (0, 2, 2), (0, 3)):
        with pytest.raises(ValueError, match="must rise from 0"):
            methods.distilled_decoding(student(), max_new_tokens=LENGTH, starts=starts)
    deaf = toy.make_model(VOCAB, 4, predicts="masked")
    with pytest.raises(ValueError, match=r"predicts=.masked. and reads no noise"):
        methods.distilled_decoding(deaf, max_new_tokens=LENGTH)


# The network.
NET = Config(
    vocab_size=17, width=16, num_layers=2, num_heads=2, mlp_width=24,
    attention="bidirectional", predicts="masked", mask_id=16,
)  # fmt: skip
OWN = objective.Options(codes=CODES, starts=(0, 2), code_weight=0.7)
PARAMS = jax.tree.map(
    lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
    noised.init(NET, CODES, jax.random.key(1)),
)
RECORDS = jnp.asarray([[0, 1, 0, 1, 7, 3, 0, 2, 1], [1, 1, 1, 0, 8, 0, 0, 0, 0]])


def config_of(**more):
    own = {**dataclasses.asdict(OWN), **more}
    return dataclasses.replace(
        RUN, objective="distilled_decoding", data="rows", model=NET, row_len=9,
        options=own,
    )  # fmt: skip


def slow_nats(row, begin):
    """(nats, squared distance) of each drawn token of one record, a lane at a time."""
    noise = np.asarray(objective.named_noise(row[None], 2))[0]
    extra, tokens = [], []
    for place in range(1 + LENGTH):
        is_open = place > begin
        token = NET.mask_id if is_open else int(row[place])
        vector = np.zeros(2)
        if is_open:
            vector = noise[place - 1]
        elif token < len(CODES):
            vector = np.asarray(CODES[token])
        inner = PARAMS["noise"]["opening"]
        hidden = jax.nn.silu(vector @ inner["kernel"] + inner["bias"])
        outer = PARAMS["noise"]["closing"]
        extra.append(hidden @ outer["kernel"] + outer["bias"])
        tokens.append(token)
    out = transformer.forward(
        NET, PARAMS, jnp.asarray([tokens]), extra=jnp.stack(extra)[None]
    )
    logits = np.asarray(out.hidden[0] @ PARAMS["head"].T, np.float64)[:, :-1]
    laws = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    codes, found = np.pad(np.asarray(CODES), ((0, 14), (0, 0))), []
    for place in range(1 + begin, 1 + LENGTH):
        law, token = laws[place], int(row[place])
        distance = ((law @ codes - codes[token]) ** 2).sum()
        found.append((-np.log(law[token]), distance))
    return np.array(found)


def test_the_loss_is_its_definition_and_its_gradient_reaches_everything():
    batch = {"tokens": RECORDS, "start": jnp.array([0, 2])}
    loss = objective.loss(config_of())
    grad = jax.jit(jax.value_and_grad(lambda p: loss(p, {}, batch, None, 0)[0]))
    value, grads = grad(PARAMS)
    slow = np.concatenate([slow_nats(RECORDS[0], 0), slow_nats(RECORDS[1], 2)])
    assert len(slow) == 4
    np.testing.assert_allclose(value, (slow @ [1, 0.7]).mean(), rtol=1e-5)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads))
    # The noise in front of what is known is of no matter, and all other noise is.
    other = RECORDS.at[1, 4].set(9)
    changed, _ = jax.jit(loss)(PARAMS, {}, {**batch, "tokens": other}, None, 0)
    assert abs(float(changed) - float(value)) > 1e-4


def test_a_decode_says_what_the_student_was_trained_to(monkeypatch):
    model = noised.make_model(NET, CODES)
    prompt = prompts.from_rows([[0], [1], [16]] * 9, max_new_tokens=LENGTH)

    def tokens_of(starts):
        out, _ = run(
            methods.distilled_decoding, model, PARAMS, prompt, jax.random.key(0),
            max_new_tokens=LENGTH, starts=starts,
        )  # fmt: skip
        return np.asarray(out.tokens)[:, : 1 + LENGTH]

    keys = rng.row_keys(jax.random.key(0), prompt.row_ids)
    places = jnp.broadcast_to(jnp.arange(1, 1 + LENGTH), (27, LENGTH))
    draw = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, (2,))))
    noise = draw(rng.noise(keys, rng.TRANSPORT, places))
    monkeypatch.setattr(objective, "named_noise", lambda rows, depth: noise)

    def told(tokens, begin):
        rows = jnp.pad(jnp.asarray(tokens), ((0, 0), (0, objective.NAME_LENGTH)))
        begin = jnp.full(len(tokens), begin)
        return np.asarray(objective.laws(NET, OWN, PARAMS, rows, begin).argmax(-1))

    once, twice = tokens_of((0,)), tokens_of((0, 2))
    np.testing.assert_array_equal(once[:, 1:], told(once, 0))
    np.testing.assert_array_equal(twice[:, :3], once[:, :3])
    np.testing.assert_array_equal(twice[:, 3], told(twice, 2)[:, 2])
    assert len(np.unique(once[:, 1:], axis=0)) > 3
    # The control: without noise a class has one picture.
    noise = jnp.zeros_like(noise)
    assert (told(once, 0) != once[:, 1:]).any()


def test_what_is_no_codebook_or_no_record_is_refused():
    for more, message in (
        ({"codes": ((1.0,), (1.0,))}, "equal codes are one code"),
        ({"codes": ((1.0,), (1.0, 2.0))}, "two or more vectors of one length"),
        ({"codes": tuple((float(i),) for i in range(18))}, "18 codes are more"),
        ({"starts": (0, 3)}, "3 tokens that are drawn"),
        ({"starts": ()}, "must be places from 0 on"),
        ({"code_weight": -1.0}, "code_weight=-1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            objective.start(config_of(**more), jax.random.key(0), None)


def test_a_small_student_learns_the_joint_that_no_token_alone_has():
    """Two bits that are mostly equal: independent guesses are 0.45 away."""
    probs = np.array([0.475, 0.025, 0.025, 0.475])
    law = toy.table([[0, a, b] for a in (0, 1) for b in (0, 1)], probs)
    codes, count = ((-1.0,), (1.0,)), 16_384
    teacher = toy.make_model(2, 3)
    rows = noise_pairs.collect(
        teacher, law, jnp.asarray(codes), np.zeros(count, int), 2, 0
    )
    net = dataclasses.replace(NET, width=32, num_heads=2, head_dim=16, mlp_width=64)
    config = dataclasses.replace(config_of(codes=codes, starts=(0,)), row_len=8)
    config = dataclasses.replace(config, model=net)
    params = objective.start(config, jax.random.key(0), None)
    update, loss = optax.adam(3e-3), objective.loss(config)

    @jax.jit
    def train(params, batches):
        def step(carry, tokens):
            params, state = carry
            batch = {"tokens": tokens, "start": jnp.zeros(len(tokens), jnp.int32)}
            grads = jax.grad(lambda p: loss(p, {}, batch, None, 0)[0])(params)
            change, state = update.update(grads, state, params)
            return (optax.apply_updates(params, change), state), None

        return jax.lax.scan(step, (params, update.init(params)), batches)[0][0]

    batches = jnp.asarray(rows.astype(np.int32)).reshape(-1, 64, 8)
    for _ in range(2):
        params = train(params, batches)
    prompt = prompts.from_rows([[0]] * 4000, max_new_tokens=2)
    out, _ = run(
        methods.distilled_decoding, noised.make_model(net, codes), params, prompt,
        jax.random.key(9), max_new_tokens=2,
    )  # fmt: skip
    own = {(0, a, b): p for (a, b), p in zip(np.ndindex(2, 2), probs)}
    assert apart(np.asarray(out.tokens)[:, :3], own) < 0.05
    assert apart([[0, *pair] for pair in np.ndindex(2, 2)], own) > 0.4
