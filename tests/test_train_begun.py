"""Models that begin as others: AR2Diff, and any-subset rows of the any-order models."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from cases.objectives import CANVAS, MODEL
from tiny import RUN, quiet, stored_model

from pdecode import decode, methods, prompts
from pdecode.models import transformer
from pdecode.train import losses, passes, settings, train
from pdecode.train.objectives import any_order

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def logits(model, params, tokens):
    hidden = passes.hidden(passes.of_decoding(model), params, tokens)
    return np.asarray(losses.logits_of(model, params, hidden))


def test_ar2diff_begins_with_the_causal_models_parameters(tmp_path):
    """AR2Diff (Han et al., 2024, arXiv:2401.17181): attention changes, nothing else."""
    folder = stored_model(tmp_path / "causal", MODEL, seed=3)
    causal = transformer.init(MODEL, jax.random.key(3))
    config = dataclasses.replace(
        RUN, model=CANVAS, objective="masked_diffusion", start_from=folder, steps=1,
        warmup_steps=0, learning_rate=1e-12, weight_decay=0.0, eval_every=1,
        checkpoint_every=1,
    )  # fmt: skip
    made = train(config, tmp_path / "run", **quiet("masked_diffusion"))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), made.params, causal
    )
    # Where a token saw all of its text before, the last one, nothing has changed.
    tokens = jnp.asarray([[97, 98, 99, 100, 101]])
    one = dataclasses.replace(MODEL, num_layers=1)
    both = dataclasses.replace(CANVAS, num_layers=1)
    before, after = (logits(model, causal, tokens) for model in (one, both))
    np.testing.assert_allclose(before[:, -1], after[:, -1], atol=1e-4)
    assert np.abs(before[:, :-1] - after[:, :-1]).max() > 1e-3


def test_the_shipped_diffusion_model_is_begun_so():
    config = settings.load(CONFIGS / "byte_diffusion.py")
    target = settings.load(CONFIGS / "byte_target.py")
    assert config.start_from == "target" and config.objective == "masked_diffusion"
    differ = {
        field.name
        for field in dataclasses.fields(config.model)
        if getattr(config.model, field.name) != getattr(target.model, field.name)
    }
    assert differ == {"attention", "predicts", "name"}


def test_a_causal_start_learns_diffusion_sooner(tmp_path):
    """The paper's claim at equal steps of diffusion, as a bound of bits."""
    sizes = {"width": 32, "mlp_width": 64}
    fast = {"learning_rate": 1e-2, "batch_size": 16}
    causal = dataclasses.replace(
        RUN, model=dataclasses.replace(MODEL, **sizes), steps=80, eval_every=80,
        checkpoint_every=80, **fast,
    )  # fmt: skip
    train(causal, tmp_path / "causal", **quiet())
    bits = []
    for name in (None, str(tmp_path / "causal")):
        config = dataclasses.replace(
            causal, model=dataclasses.replace(CANVAS, **sizes), steps=30, eval_every=30,
            checkpoint_every=30, objective="masked_diffusion", start_from=name,
        )  # fmt: skip
        made = train(config, tmp_path / f"run{len(bits)}", **quiet("masked_diffusion"))
        bits.append(made.record["validation"]["bits_per_byte"])
    assert bits[1] < bits[0]


ANY = dataclasses.replace(MODEL, predicts="masked", num_layers=2, sliding=())
PARAMS = jax.tree.map(lambda p: 2.0 * p, transformer.init(ANY, jax.random.key(0)))


def test_part_of_a_row_is_told_and_the_rest_comes_from_the_left():
    rank = np.asarray(any_order.subset_ranks((4000, 21), jax.random.key(0)))
    assert (rank[:, 0] == 0).all()
    share = (rank[:, 1:] > 0).mean(1)
    np.testing.assert_allclose(share.mean(), 0.525, atol=0.01)
    np.testing.assert_allclose(share.std() ** 2, 0.75**2 / 12 + 0.2 / 20, atol=0.01)
    for row in rank[:50]:
        asked = row[row > 0]
        assert asked.tolist() == list(range(1, len(asked) + 1))
    config = dataclasses.replace(
        RUN, model=ANY, objective="any_order", options={"subset": 0.25, "grouped": 0.0}
    )
    batch = any_order.noise(config)({"tokens": jnp.zeros((4000, 9), jnp.int32)},
                                    jax.random.key(1))  # fmt: skip
    is_subset = (np.asarray(batch["rank"]) == 0).sum(1) > 1
    assert abs(is_subset.mean() - 0.25) < 0.03


def test_an_infilling_is_scored_as_it_is_decoded():
    """The probabilities that `assd` reports are those of the objective's own order."""
    text = [97, 98, 99, 100, 101, 102, 103]
    holes = [False, True, False, True, True, False, True]
    prompt = prompts.from_rows([text], max_new_tokens=[1], holes=[holes])
    out, _ = decode.run(
        methods.assd, transformer.make_model(ANY), PARAMS, prompt, jax.random.key(0),
        max_new_tokens=2, num_draft=3,
    )  # fmt: skip
    asked = np.array(holes)
    rank = jnp.asarray(np.where(asked, np.cumsum(asked), 0)[None])
    tokens = out.tokens[:, :7]
    nats = any_order.any_order_loss(ANY, PARAMS, tokens, rank)[0]
    np.testing.assert_allclose(-out.log_probs[0, :7][asked], nats[asked], atol=1e-4)
    # The control: a told token that comes in its turn is another law.
    other = any_order.any_order_loss(ANY, PARAMS, tokens, jnp.arange(7)[None])[0]
    assert np.abs(other - nats)[asked].max() > 1e-3
