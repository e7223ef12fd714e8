"""Networks of one's own behind the `Model` record, and what `check` says of them."""

import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdecode
from pdecode import methods, models, prompts
from pdecode.models import toy

EXAMPLES = pathlib.Path(__file__).parent.parent / "docs" / "examples"
NEW = 6


@functools.cache
def example(name):
    """What an example's file defines; its main part is not run."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="example")


@pytest.fixture(scope="module")
def mine():
    found = example("my_model")
    return found["apply"], found["init"](jax.random.key(0))


def greedy(apply, params, row):
    """Plain greedy decoding by the network itself, all of the text at every token."""
    row = list(row)
    for _ in range(NEW):
        size = len(row)
        place = jnp.arange(size)[None]
        mask = jnp.tril(jnp.ones((1, size, size), bool))
        row.append(int(apply(params, jnp.array([row]), place, mask)[0, -1].argmax()))
    return row


@pytest.mark.parametrize(
    "tree", [False, pytest.param(True, marks=pytest.mark.thorough)]
)
def test_what_is_decoded_is_what_the_network_says(mine, tree):
    apply, params = mine
    model = example("my_model")["model"]
    rows = [[1, 2, 3], [4], [7, 7]]
    prompt = prompts.from_rows(rows, max_new_tokens=NEW)
    want = [greedy(apply, params, row) for row in rows]
    # A tree of drafts, by the network itself: windows, moves and ragged rows at once.
    method, models_, sizes = methods.prompt_lookup, model, {"num_draft": 3}
    if tree:
        method, models_ = methods.specinfer, (model, model)
        sizes = {"branching": (2, 1)}
    made, _ = pdecode.run(
        method, models_, {"model": params, "drafter": params}, prompt,
        jax.random.key(0), max_new_tokens=NEW, **sizes,
    )  # fmt: skip
    for row, tokens in zip(want, np.asarray(made.tokens)):
        assert tokens[: len(row)].tolist() == row


def test_check_says_what_a_network_serves(mine):
    _, params = mine
    report = pdecode.check(example("my_model")["model"], params)
    assert report.is_well and report.kind == "model"
    assert [each.about for each in report.findings] == [
        "calls", "windows", "ragged rows", "positions", "trees", "move"
    ]  # fmt: skip


@pytest.mark.thorough
def test_linen_with_a_cache_and_nnx_without():
    found = example("my_linen_model")
    assert pdecode.check(found["model"], found["init"](jax.random.key(0))).is_well
    # Reading tokens alone it sees no mask: prefixes are right and trees are not.
    report = pdecode.check(found["small"], found["small_params"])
    assert report.faults == ["trees"]
    assert "draft chains only" in report["trees"].says


def test_a_bidirectional_network_fills_a_canvas(mine):
    apply, params = mine
    model = models.from_apply(apply, vocab_size=11, predicts="masked", mask_id=10)
    report = pdecode.check(model, params)
    assert report.is_well, report
    prompt = prompts.from_rows([[1, 2], [3]], max_new_tokens=4)
    made, _ = pdecode.run(
        methods.llada, model, params, prompt, jax.random.key(0), max_new_tokens=4,
        steps=4,
    )  # fmt: skip
    # One position a step, the likeliest first, by the network itself.
    row = [1, 2, 10, 10, 10, 10]
    for _ in range(4):
        mask = jnp.ones((1, 6, 6), bool)
        logits = apply(params, jnp.array([row]), jnp.arange(6)[None], mask)[0]
        probs = np.asarray(jax.nn.softmax(logits), float)
        drawable = probs[:, :10]
        held = [i for i in range(6) if row[i] == 10]
        best = max(held, key=lambda i: drawable[i].max())
        row[best] = int(drawable[best].argmax())
    assert made.tokens[0].tolist() == row


def broken(model, **more):
    return model._replace(name="broken", **more)


def test_a_move_that_moves_nothing_is_named(mine):
    _, params = mine
    still = broken(
        example("my_model")["model"], move=lambda cache, source, target: cache
    )
    assert pdecode.check(still, params).faults == ["move"]


@pytest.mark.thorough
def test_what_a_broken_network_cannot_serve_is_named(mine):
    """Negative controls: each finding fails for the fault that it is there for."""
    apply, params = mine

    def by_slot(params, tokens, positions, mask):
        place = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return apply(params, tokens, place, mask)

    report = pdecode.check(models.from_apply(by_slot, vocab_size=11), params)
    assert "positions" in report.faults

    def blind(params, tokens, positions, mask):  # sees its neighbours whatever is asked
        return apply(params, tokens, positions, jnp.ones_like(mask))

    report = pdecode.check(models.from_apply(blind, vocab_size=11), params)
    assert {"ragged rows", "trees"} <= set(report.faults)

    def backward(params, tokens, positions, mask):
        return apply(params, tokens, positions, mask & (
            positions[:, None] <= positions[..., None]))  # fmt: skip

    one_sided = models.from_apply(
        backward, vocab_size=11, predicts="masked", mask_id=10
    )
    assert "both sides" in pdecode.check(one_sided, params).faults

    def short(params, tokens, positions, mask):
        return apply(params, tokens, positions, mask)[..., :7]

    report = pdecode.check(models.from_apply(short, vocab_size=11), params)
    assert report.faults == ["calls"]


@pytest.mark.thorough
def test_the_toys_serve_everything():
    law = toy.chain(0, 4, 12)
    assert pdecode.check(toy.make_model(4, 12), law).is_well
    assert pdecode.check(toy.make_model(4, 12, predicts="masked"), law).is_well


def test_what_does_not_fit_is_refused(mine):
    apply, _ = mine
    with pytest.raises(ValueError, match="predicts='noise' must be one of"):
        models.from_apply(apply, vocab_size=11, predicts="noise")
    with pytest.raises(ValueError, match="needs mask_id"):
        models.from_apply(apply, vocab_size=11, predicts="masked")
    with pytest.raises(ValueError, match="needs block_len"):
        models.from_apply(apply, vocab_size=11, attention="block_causal")
    with pytest.raises(ValueError, match="own needs its params"):
        pdecode.check(models.from_apply(apply, vocab_size=11))


def test_examples_of_parts_say_what_their_text_promises():
    rules = example("my_rule")
    calm = pdecode.check(rules["calm"], nats=0.8)
    assert calm.is_well and "one program for every value of nats" in str(calm)
    drafter = pdecode.check(example("my_drafter")["stutter"], length=2)
    assert drafter.is_well


@pytest.mark.thorough
def test_the_eager_example_is_biased():
    eager = pdecode.check(example("my_rule")["eager"], level=0.6)
    assert eager.faults == ["law"]
    assert "because which positions it fills depends on the tokens drawn" in str(eager)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["my_rule", "my_drafter", "my_model",
                                  "my_linen_model"])  # fmt: skip
def test_examples_run(name, capsys):
    with jax.numpy_rank_promotion("allow"):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert "yes" in capsys.readouterr().out


def test_attention_is_one_that_there_is():
    for wrong in ({"attention": "sideways"}, {"attention": "block_causal"},
                  {"attention": "causal", "block_len": 4}):  # fmt: skip
        with pytest.raises(ValueError, match="attention="):
            models.from_apply(lambda params, tokens: tokens, vocab_size=5, **wrong)
