"""KOALA's heads and discriminator: losses, who learns from which, what decodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow

from pdecode import methods, prompts
from pdecode.decode import run
from pdecode.models import embedded, medusa_heads, transformer
from pdecode.models.config import Config
from pdecode.train import TrainConfig, passes
from pdecode.train.objectives import koala, medusa

SMALL = Config(
    vocab_size=7, width=8, num_layers=1, num_heads=2, num_kv_heads=1, mlp_width=12,
    mask_id=6,
)  # fmt: skip
MODEL = transformer.make_model(SMALL)
TARGET = transformer.init(SMALL, jax.random.key(0))
TOKENS = np.array([[1, 0, 3, 2, 5, 4], [2, 2, 0, 1, 0, 5]], np.int32)
BATCH, FROZEN = {"tokens": jnp.asarray(TOKENS)}, {"target": TARGET}


def config(objective="koala", **options):
    return TrainConfig(
        name="x", model=SMALL, objective=objective, steps=1, warmup_steps=0, row_len=6,
        frozen={"target": "target"}, options={"num_heads": 3, **options},
    )  # fmt: skip


def made(**options):
    """Parameters away from where they begin."""
    sizes = {"discriminator_width": 5, **options}
    start = koala.start(config(**sizes), jax.random.key(1), None)
    leaves, treedef = jax.tree.flatten(start)
    gen = np.random.default_rng(1)
    return jax.tree.unflatten(
        treedef, [jnp.float32(x + 0.3 * gen.normal(size=x.shape)) for x in leaves]
    )


OWN = made()


def told_by_hand(law):
    judge = jax.tree.map(np.asarray, OWN["discriminator"])
    inner = np.sqrt(law) @ judge["inner"]["kernel"] + judge["inner"]["bias"]
    return (slow.silu(inner) @ judge["outer"]["kernel"] + judge["outer"]["bias"])[0]


@pytest.mark.parametrize("labels", ["text", "target"])
def test_the_loss_is_the_papers_by_hand(labels):
    options = {"adversarial_weight": 0.7, "head_decay": 0.5, "labels": labels}
    value, aux = jax.jit(koala.loss(config(**options)))(OWN, FROZEN, BATCH, None, 0)
    total, own = 0.0, jax.tree.map(np.asarray, OWN)
    for row, tokens in enumerate(TOKENS):
        states = np.asarray(passes.hidden(passes.Pass(SMALL), TARGET, BATCH["tokens"]))
        for place in range(4):
            for head in range(min(3, 4 - place)):
                x, mine = states[row, place], own[f"head_{head}"]
                for block in ("block_0", "block_1"):
                    x = x + slow.silu(x @ mine[block]["kernel"] + mine[block]["bias"])
                weight = np.asarray(TARGET["head"]) + mine["change"]["head"]
                logs = slow.logs(weight @ x, 6)
                wanted = place + 2 + head
                its = np.exp(
                    slow.logs(np.asarray(TARGET["head"]) @ states[row, wanted - 1], 6)
                )
                crossed = -logs[tokens[wanted]]
                if labels == "target":
                    crossed = -(its * logs).sum()
                mistaken, right = told_by_hand(np.exp(logs)), told_by_hand(its)
                fools = np.log1p(np.exp(-mistaken))
                tells = np.log1p(np.exp(-right)) + np.log1p(np.exp(mistaken))
                total += 0.5 ** (head + 1) * (crossed + 0.7 * fools + tells) / 8
    assert aux["weight"] == 8
    np.testing.assert_allclose(value, total, rtol=1e-3)


def gradient(own=OWN, **options):
    def of(own, frozen):
        return koala.loss(config(**options))(own, frozen, BATCH, None, 0)[0]

    return jax.jit(jax.grad(of, (0, 1)))(own, FROZEN)


def test_each_learns_from_its_own_loss_alone():
    """The discriminator's gradient knows no weight, the heads' without one no judge."""
    mine, its = gradient(adversarial_weight=0.7)
    for path, leaf in jax.tree_util.tree_leaves_with_path(mine):
        assert np.abs(leaf).max() > 0, path
    for path, leaf in jax.tree_util.tree_leaves_with_path(its):
        assert np.abs(leaf).max() == 0, path
    plain, _ = gradient(adversarial_weight=0.0, labels="text")
    judges = [found.pop("discriminator") for found in (mine, plain)]
    jax.tree.map(np.testing.assert_allclose, *judges)
    heads = {name: OWN[name] for name in plain}

    def of_medusa(heads):
        base = config("medusa", num_blocks=2)
        return medusa.loss(base)(heads, FROZEN, BATCH, None, 0)[0]

    expected = jax.jit(jax.grad(of_medusa))(heads)
    close = jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), plain, expected)
    assert all(jax.tree.leaves(close))
    other = jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-4), mine, expected)
    assert not all(jax.tree.leaves(other))  # the control: with the weight they differ


def test_laws_that_are_equal_cannot_be_told_apart():
    """Its loss is no less than that of a coin, whatever the discriminator."""
    law = jax.nn.softmax(jax.random.normal(jax.random.key(2), (50, 7)))
    other = jax.nn.softmax(jax.random.normal(jax.random.key(3), (50, 7)) * 3)

    def best(first, second):
        def loss(judge):
            right = jax.nn.softplus(-koala.told(judge, first)).mean()
            return right + jax.nn.softplus(koala.told(judge, second)).mean()

        judge = OWN["discriminator"]
        grad = jax.jit(jax.value_and_grad(loss))
        for _ in range(60):
            value, found = grad(judge)
            judge = jax.tree.map(lambda leaf, g: leaf - g, judge, found)
        return value

    assert best(law, law) >= 2 * np.log(2) - 1e-6
    assert best(law, other) < 1.1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_is_another(temperature):
    record = embedded.KINDS[koala.holds(config())["kind"]](
        {"holds": koala.holds(config()), "objective": "koala"}, "float32"
    )
    assert record == medusa_heads.make_heads(3, 2)
    prompt = prompts.from_rows([[1, 4, 0], [3, 3]], max_new_tokens=9)
    common = {"max_new_tokens": 9, "knobs": {"temperature": temperature}}
    key, params = jax.random.key(1), {"model": TARGET, "heads": OWN}
    plain, _ = run(methods.autoregressive, MODEL, TARGET, prompt, key, **common)
    ahead, _ = run(
        methods.medusa, (MODEL, record), params, prompt, key, branching=(2, 1, 1),
        **common,
    )  # fmt: skip
    np.testing.assert_array_equal(plain.tokens, ahead.tokens)
    if temperature:
        knobs = {**common["knobs"], "posterior_alpha": 0.0}
        loose, _ = run(
            methods.medusa, (MODEL, record), params, prompt, key, branching=(2, 1, 1),
            max_new_tokens=9, acceptance="typical", knobs=knobs,
        )  # fmt: skip
        assert (np.asarray(loose.tokens) != plain.tokens).any()
