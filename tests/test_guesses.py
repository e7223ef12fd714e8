"""Guesses of several tokens ahead: what they are of, and the sums of what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode.data.texts import Text
from pdecode.models import transformer
from pdecode.models.config import Config
from pdecode.train import TrainConfig, guesses, losses, objectives

SMALL = Config(
    vocab_size=7, width=8, num_layers=2, num_heads=2, num_kv_heads=1, mlp_width=12,
    mask_id=6,
)  # fmt: skip
TOKENS = np.array([[1, 0, 3, 2, 5, 4], [2, 2, 0, 1, 0, 5]], np.int32)
TEXT = Text(
    np.array([5, 1, 0, 3, 2, 5, 4, 2, 2, 0, 1, 0, 4], np.int32), "x", "token", (5,)
)


def of(name):
    """(config, params away from where they begin, the target) of an objective."""
    options = {"eagle3": {"num_steps": 3}, "eagle": {}}.get(name, {"num_heads": 3})
    config = TrainConfig(
        name="x", model=SMALL, objective=name, steps=1, warmup_steps=0, row_len=6,
        frozen={"target": "target"}, options=options,
    )  # fmt: skip
    params = objectives.find(name).start(config, jax.random.key(2), None)
    leaves, treedef = jax.tree.flatten(params)
    gen = np.random.default_rng(3)
    moved = [leaf + 0.3 * gen.normal(size=leaf.shape) for leaf in leaves]
    frozen = {"target": transformer.init(SMALL, jax.random.key(0))}
    return config, jax.tree.unflatten(treedef, [jnp.float32(x) for x in moved]), frozen


def found(name):
    """Loss on TOKENS and all figures of TEXT, in a row."""
    config, params, frozen = of(name)
    objective = objectives.find(name)
    batch = {"tokens": jnp.asarray(TOKENS)}
    value, _ = jax.jit(objective.loss(config))(params, frozen, batch, None, 0)
    figures = objective.figures(config, params, frozen, TEXT, row_len=6)
    return [float(value), *np.ravel([np.ravel(each) for each in figures.values()])]


# What each objective said of these rows before the sums were shared.
BEFORE = {
    "blockwise_heads": [2.257290, 3.115682, 2.427152, 2.040561],
    "medusa": [4.127907, 4.403076, 2.998633, 6.248025, 0.000000, 0.200000, 0.000000],
    "hydra": [7.991961, 4.800624, 5.271810, 4.549497, 0.250000, 0.000000, 0.333333],
    "eagle3": [4.983902, 3.685225, 3.323006, 3.852004, 0.250000, 0.200000, 0.000000],
}  # fmt: skip


@pytest.mark.parametrize("name", BEFORE)
def test_losses_and_figures_are_what_they_were(name):
    np.testing.assert_allclose(found(name), BEFORE[name], rtol=1e-4)


def test_a_draft_ends_at_a_token_that_nobody_predicts():
    tokens = jnp.asarray([[1, 0, 5, 2, 3]])
    for answers, last in ((losses.ahead, True), (guesses.drafted, False)):
        wanted, scored, places = answers(tokens, 2, (5,))
        assert wanted[0].tolist() == [[5, 2], [2, 3], [3, 3], [3, 3]]
        assert scored[0].tolist() == [
            [False, last], [True, True], [True, False], [False, False]
        ]  # fmt: skip
        assert places.tolist() == [[2, 3], [3, 4], [4, 5], [5, 6]]
    assert guesses.behind(tokens, 2)[0].tolist() == [5, 2, 3, 3]
