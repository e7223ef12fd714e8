"""The judge's head: labels of answers, its loss, and what the decode then accepts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.objectives import MODEL
from tiny import RUN, stored_model

from pdecode import assembly, decode, methods, prompts, recipes
from pdecode.data.parallelbench import lines, tasks
from pdecode.data.parallelbench.rows import ROW_LEN
from pdecode.models import embedded, judges, transformer
from pdecode.models.bytes import tokenizer
from pdecode.train import judgements, losses, passes, train
from pdecode.train.objectives import judge

LENGTH = 16
VOWELS = np.array([ord(letter) for letter in "aeiou"])
TARGET = transformer.init(MODEL, jax.random.key(0))
RNG = np.random.default_rng(0)
HEAD = {
    "kernel": jnp.asarray(RNG.normal(size=(MODEL.width, 1)), jnp.float32),
    "bias": jnp.ones(1),
}


def config_of(**options):
    return dataclasses.replace(
        RUN, model=MODEL, objective="judge", data="rows", row_len=2 * LENGTH,
        frozen={"target": "target"}, options=options,
    )  # fmt: skip


def rows_of(num, seed=0):
    """Vowels are right and consonants wrong; a quarter is not told."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(97, 123, (num, LENGTH))
    labels = np.where(np.isin(tokens, VOWELS), judge.RIGHT, judge.WRONG)
    labels[draw.random(labels.shape) < 0.25] = judge.UNTOLD
    return np.concatenate([tokens, labels], 1).astype(np.int32)


def test_the_loss_is_the_papers_by_hand():
    rows = rows_of(3)
    own = {"frozen": {"target": TARGET}, "batch": {"tokens": jnp.asarray(rows)}}
    loss = jax.jit(judge.loss(config_of(wrong_weight=2.5)))
    value, aux = loss(HEAD, own["frozen"], own["batch"], None, 0)
    weight, bias = np.asarray(HEAD["kernel"], np.float64)[:, 0], 1.0

    @jax.jit
    def hidden(row):
        return passes.hidden(passes.of_decoding(MODEL), TARGET, row[None])[0]

    total, count = 0.0, 0
    for row in rows:
        tokens, labels = row[:LENGTH], row[LENGTH:]
        states = np.asarray(hidden(tokens), np.float64)
        for place in np.flatnonzero(labels):
            likes = 1 / (1 + np.exp(-(states[place] @ weight + bias)))
            if labels[place] == judge.RIGHT:
                total -= np.log(likes)
            else:
                total -= 2.5 * np.log(1 - likes)
            count += 1
    np.testing.assert_allclose(value, total / count, rtol=1e-5)
    assert float(aux["weight"]) == count
    # The controls: other weights, and labels the other way round.
    turned = np.concatenate([rows[:, :LENGTH], -rows[:, LENGTH:] % 3], 1)
    for config, batch in (
        (config_of(wrong_weight=1.0), rows),
        (config_of(wrong_weight=2.5), turned),
    ):  # fmt: skip
        other = judge.loss(config)(
            HEAD, own["frozen"], {"tokens": jnp.asarray(batch)}, None, 0
        )
        assert abs(float(other[0]) - float(value)) > 1e-3


def test_the_head_learns_and_the_target_does_not():
    loss, batch = judge.loss(config_of()), {"tokens": jnp.asarray(rows_of(3))}

    def value(head, target):
        return loss(head, {"target": target}, batch, None, 0)[0]

    mine, its = jax.jit(jax.grad(value, argnums=(0, 1)))(HEAD, TARGET)
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(mine))
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(its))


def test_a_judgement_reads_the_token_and_what_stands_before_it():
    rows = rows_of(1)
    how = passes.of_decoding(MODEL)
    nats = jax.jit(functools.partial(judge.label_nats, how=how))
    before = np.asarray(nats(HEAD, TARGET, jnp.asarray(rows))[0])
    for place in (3, 9):
        other = rows.copy()
        other[0, place] += 1
        moved = np.abs(np.asarray(nats(HEAD, TARGET, jnp.asarray(other))[0]) - before)
        assert moved[0, :place].max() == 0 < moved[0, place:].min()


def test_labels_say_whether_any_right_answer_goes_on_like_this():
    right = ["abc", "acb", "ad"]
    for text, labels in {
        "abc": [1, 1, 1, 1], "acb": [1, 1, 1, 1], "ab": [1, 1, 2], "ad": [1, 1, 1],
        "add": [1, 1, 2, 0], "abd": [1, 1, 2, 0], "xbc": [2, 0, 0, 0], "": [2],
    }.items():  # fmt: skip
        assert judgements.labels_of(text, right) == labels


def test_written_rows_are_prompts_answers_and_their_checkers_labels():
    rows = judgements.rows("validation", 12)
    assert rows.shape == (12 * len(judgements.NAMES), 2 * ROW_LEN)
    asked = {
        made.prompt: made
        for task in judgements.NAMES
        for made in tasks.generate(task, judgements.SEEDS["validation"], 12)
    }
    num_right = 0
    for row in rows:
        ids, labels = row[:ROW_LEN].tolist(), row[ROW_LEN:]
        first = np.flatnonzero(labels)[0]
        made = asked[tokenizer.decode(ids[:first])]
        text = tokenizer.decode(ids[first:]).strip()
        is_right = tasks.is_right(made, text)
        assert is_right == (judge.WRONG not in labels)
        assert set(labels[:first]) == {judge.UNTOLD}
        if is_right:
            assert (labels[first:] == judge.RIGHT).sum() == len(text) + 1
            num_right += 1
    assert 0.4 < num_right / len(rows) < 0.7
    # Not only the answer that the instance came with.
    assert len(lines.OPERATIONS["shuffle"].right(asked[made.prompt].asked)) >= 1


def test_rows_without_labels_are_refused():
    with pytest.raises(ValueError, match="holds no labels behind its tokens"):
        judge.prepare(config_of(), np.full((2, 2 * LENGTH), 97), 0)
    with pytest.raises(ValueError, match="row_len=31 must be even"):
        judge.start(dataclasses.replace(config_of(), row_len=31), None, None)


def test_a_run_learns_what_the_decode_may_accept(tmp_path):
    """Vowels of another model pass, and save calls; other bytes only as plain."""
    model = dataclasses.replace(MODEL, width=96)  # letters are told apart by a line
    folder = stored_model(tmp_path / "target", model)
    target, other = (transformer.init(model, jax.random.key(n)) for n in (0, 1))
    config = dataclasses.replace(
        config_of(), model=model, frozen={"target": folder}, steps=200, batch_size=32,
        learning_rate=0.05, weight_decay=0.0, eval_every=200, checkpoint_every=200,
    )  # fmt: skip
    streams = tuple(rows_of(n, n).ravel().astype(np.uint16) for n in (256, 32))
    made = train(
        config, tmp_path / "judge", streams=streams, log=lambda line: None
    ).record["validation"]
    assert made["right_accepted"] > 0.85 and made["wrong_refused"] > 0.95
    head, params, _ = embedded.load(str(tmp_path / "judge"))
    assert head == judges.LINEAR

    # By their folders, as the command line names them.
    names = {"model": folder, "drafter": f"{folder},{tmp_path / 'judge'}"}
    recipe = recipes.find("judge_decoding")
    found = assembly.assemble(recipe, {}, **names)
    assert set(found.params) == {"model", "drafter", "judge"}
    with pytest.raises(ValueError, match="drafter='DRAFTER,JUDGE', not"):
        assembly.assemble(recipe, {}, folder, str(tmp_path / "judge"))

    network = transformer.make_model(model)
    prompt = prompts.from_rows([[97, 98, 99], [100]], max_new_tokens=24)
    # A drafter that writes nothing but letters.
    letters = (jnp.arange(model.vocab_size) >= 97) & (
        jnp.arange(model.vocab_size) < 123
    )

    def head_of(params):
        base = network.head(params)
        return base._replace(bias=jnp.where(letters, 0.0, -1e9))

    writer = network._replace(head=head_of, name="writer")

    def run(threshold, params):
        by_role = {"model": target, "drafter": other, "judge": params}
        return decode.run(
            methods.judge_decoding, (network, writer, head), by_role, prompt,
            jax.random.key(0), max_new_tokens=24, num_draft=5,
            knobs={"threshold": threshold},
        )  # fmt: skip

    def strangers(out):
        """Bytes that are not the target's best, and which of them are vowels."""
        hidden = passes.hidden(passes.of_decoding(model), target, out.tokens)
        best = jnp.argmax(losses.logits_of(model, target, hidden), -1)[:, :-1]
        tokens = np.asarray(out.tokens)[:, 1:]
        return np.isin(tokens[out.committed[:, 1:] & (tokens != best)], VOWELS)

    plain, slow = run(1.0, params)
    assert len(strangers(plain)) == 0
    out, stats = run(0.5, params)
    assert (stats.num_calls < slow.num_calls).all()
    assert len(strangers(out)) > 5 and strangers(out).mean() > 0.9
    # The control: a judge of the opposite opinion.
    out, _ = run(0.5, jax.tree.map(jnp.negative, params))
    assert len(strangers(out)) > 5 and strangers(out).mean() < 0.5
