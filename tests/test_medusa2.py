"""Medusa-2: the joint loss, who learns when and how fast, what it decodes with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow
from tiny import case, quiet

from pdecode import generation
from pdecode.models import embedded, transformer
from pdecode.models.config import Config
from pdecode.train import TrainConfig, passes, train
from pdecode.train.objectives import medusa2

SMALL = Config(
    vocab_size=7, width=8, num_layers=1, num_heads=2, num_kv_heads=1, mlp_width=12,
    mask_id=6,
)  # fmt: skip
BEFORE = transformer.init(SMALL, jax.random.key(0))
TOKENS = np.array([[1, 0, 3, 2, 5, 4], [2, 2, 0, 1, 0, 5]], np.int32)
BATCH, FROZEN = {"tokens": jnp.asarray(TOKENS)}, {"target": BEFORE}


def config(**options):
    return TrainConfig(
        name="x", model=SMALL, objective="medusa2", steps=1, warmup_steps=0, row_len=6,
        frozen={"target": "target"},
        options={"num_heads": 2, "heads_weight": 0.3, "head_decay": 0.5, **options},
    )  # fmt: skip


def moved(params):
    """`params` away from where they begin."""
    leaves, treedef = jax.tree.flatten(params)
    gen = np.random.default_rng(1)
    return jax.tree.unflatten(
        treedef, [jnp.float32(x + 0.3 * gen.normal(size=x.shape)) for x in leaves]
    )


OWN = moved(medusa2.start(config(), jax.random.key(1), BEFORE))


@pytest.mark.parametrize("labels", ["text", "target"])
def test_the_loss_is_the_papers_by_hand(labels):
    value, aux = jax.jit(medusa2.loss(config(labels=labels)))(
        OWN, FROZEN, BATCH, None, 0
    )
    own, total = jax.tree.map(np.asarray, OWN), 0.0
    now, then = (
        np.asarray(passes.hidden(passes.Pass(SMALL), params, BATCH["tokens"]))
        for params in (OWN["model"], BEFORE)
    )
    for row, tokens in enumerate(TOKENS):
        for place in range(5):
            logs = slow.logs(own["model"]["head"] @ now[row, place], 6)
            its = np.exp(slow.logs(np.asarray(BEFORE["head"]) @ then[row, place], 6))
            if labels == "text":
                total -= logs[tokens[place + 1]]
            else:
                total -= (its * logs).sum()
            for head in range(min(2, 4 - place)):
                mine, x = own[f"head_{head}"], now[row, place]
                block = mine["block_0"]
                x = x + slow.silu(x @ block["kernel"] + block["bias"])
                weight = own["model"]["head"] + mine["change"]["head"]
                logs = slow.logs(weight @ x, 6)
                total -= 0.3 * 0.5 ** (head + 1) * logs[tokens[place + 2 + head]]
    assert aux["weight"] == 10
    np.testing.assert_allclose(value, total / 10, rtol=1e-4)


def gradient(**options):
    def of(own, frozen):
        return medusa2.loss(config(**options))(own, frozen, BATCH, None, 0)[0]

    return jax.jit(jax.grad(of, (0, 1)))(OWN, FROZEN)


def test_both_learn_and_what_the_target_was_does_not():
    """The heads' loss reaches the target's layers, and not its head."""
    (mine, its), (alone, _) = gradient(), gradient(heads_weight=0.0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(mine):
        assert np.abs(leaf).max() > 0, path
    for path, leaf in jax.tree_util.tree_leaves_with_path(its):
        assert np.abs(leaf).max() == 0, path
    for name, is_same in (("head", True), ("embed", False), ("layer_0", False)):
        pairs = zip(
            jax.tree.leaves(mine["model"][name]), jax.tree.leaves(alone["model"][name])
        )
        close = [np.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in pairs]
        assert all(close) if is_same else not any(close)


def test_the_target_waits_and_then_learns_more_slowly():
    changes = {"model": {"embed": jnp.ones(3)}, "head_0": jnp.ones(2)}
    made = config(heads_steps=5, heads_rate=4.0)
    for step, share in ((0, 0.0), (4, 0.0), (5, 0.25), (9, 0.25)):
        found = medusa2.rates(made, changes, step)
        np.testing.assert_array_equal(found["model"]["embed"], share)
        np.testing.assert_array_equal(found["head_0"], 1)


def test_heads_decode_with_the_target_that_came_out(tmp_path):
    """Without loss relative to that one; what it began as refuses them."""
    made = case("medusa2", tmp_path, steps=4, learning_rate=0.05)
    made = dataclasses.replace(made, start_from=made.frozen["target"])
    train(made, tmp_path / "run", **quiet())
    model, heads, before = (
        str(path)
        for path in (tmp_path / "run/model", tmp_path / "run", made.frozen["target"])
    )
    record = embedded.record_of(heads)
    assert record["frozen"]["target"] == {
        "from": model, "sha256": embedded.record_of(model)["sha256"]
    }  # fmt: skip
    assert record["original"]["from"] == before
    found = [
        generation.generate(
            ["def f(x):\n"], model=of, method=method, max_new_tokens=16, **more
        ).tokens
        for of, method, more in (
            (model, "autoregressive", {}),
            (model, "medusa", {"drafter": heads, "branching": (2, 1)}),
            (before, "autoregressive", {}),
        )
    ]
    assert found[0] == found[1]
    assert found[0] != found[2]  # the control: it is another target
    with pytest.raises(ValueError, match="give the model that it was trained on"):
        generation.generate(
            ["def"], model=before, method="medusa", drafter=heads, branching=(2, 1),
            max_new_tokens=4,
        )  # fmt: skip


def test_while_it_waits_the_target_is_what_it_was(tmp_path):
    made = case("medusa2", tmp_path, steps=2, eval_every=2, checkpoint_every=2)
    own = dataclasses.replace(made.options, heads_steps=2)
    made = dataclasses.replace(
        made, start_from=made.frozen["target"], options=own, learning_rate=0.05
    )
    found = train(made, tmp_path / "run", **quiet()).params
    its, _ = embedded.read_from(made.frozen["target"])
    jax.tree.map(np.testing.assert_array_equal, found["model"], its)
    assert np.abs(found["head_0"]["change"]["head"]).max() > 0
