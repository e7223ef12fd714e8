"""Adapters: what they add, what learns, how a run of them is kept and decoded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import MODEL, RUN, quiet, stored_model

from pdecode import generation
from pdecode.models import adapters, embedded, layers, transformer
from pdecode.sharding import placement
from pdecode.train import adapters as runs
from pdecode.train import export, objectives, optimizers, settings, trainer
from pdecode.train.adapters import Adapters

OWN = Adapters(rank=3, alpha=6.0, names=("query", "out", "up"))
BASE = transformer.init(MODEL, jax.random.key(0))
TOKENS = jnp.arange(16, dtype=jnp.int32).reshape(2, 8)
# What papers train adapters with, and what may be trained so besides.
TRAINED = ("autoregressive", "masked_diffusion", "certainty", "consistency")


def drawn(rank=3, names=OWN.names):
    """Adapters whose B is not zero."""
    own = adapters.init(BASE, rank, names, jax.random.key(1))
    return jax.tree.map(lambda leaf: leaf + 0.1, own)


def hidden(params):
    made = transformer.forward(MODEL, params, TOKENS, train=False)
    return np.asarray(made.hidden)


def test_an_adapted_map_is_the_papers_by_hand():
    """W x + (alpha / r) B A x, in numpy."""
    draw = np.random.default_rng(0)
    x, kernel, a, b = (
        draw.normal(size=size).astype(np.float32)
        for size in ((2, 5, 8), (8, 6), (8, 3), (3, 6))
    )
    own = {"lora_a": jnp.asarray(a), "lora_b": jnp.asarray(b)}
    params = adapters.joined({"kernel": jnp.asarray(kernel)}, own, OWN.scale)
    found = layers.applied(layers.Dense(6, False, "float32"), params, jnp.asarray(x))
    np.testing.assert_allclose(found, x @ kernel + 6.0 / 3 * x @ a @ b, atol=1e-5)


def test_at_the_start_the_model_is_the_base_bit_for_bit():
    own = adapters.init(BASE, 3, adapters.NAMES, jax.random.key(1))
    np.testing.assert_array_equal(hidden(adapters.joined(BASE, own, 2.0)), hidden(BASE))
    assert (
        np.abs(hidden(adapters.joined(BASE, drawn(), 2.0)) - hidden(BASE)).max() > 0.1
    )


def test_merged_is_unmerged():
    both = adapters.joined(BASE, drawn(), 2.0)
    alone = adapters.merged(both)
    assert jax.tree.structure(alone) == jax.tree.structure(BASE)
    np.testing.assert_allclose(hidden(alone), hidden(both), atol=1e-5)
    # The control: without its scale it is another model.
    wrong = adapters.merged(adapters.joined(BASE, drawn(), 1.0))
    assert np.abs(hidden(wrong) - hidden(both)).max() > 1e-2


def test_where_they_stand_and_how_they_begin():
    own = adapters.init(BASE, 2, ("query", "value"), jax.random.key(1))
    layer = own["layer_0"]
    assert set(own) == {"layer_0"} and set(layer) == {"attention"}
    assert set(layer["attention"]) == {"query", "value"}
    assert layer["attention"]["query"]["lora_a"].shape == (16, 2)
    assert layer["attention"]["value"]["lora_b"].shape == (2, 8)
    assert not layer["attention"]["query"]["lora_b"].any()
    big = transformer.init(dataclasses.replace(MODEL, width=256, head_dim=0),
                           jax.random.key(0))  # fmt: skip
    made = adapters.init(big, 64, ("query",), jax.random.key(2))
    spread = made["layer_0"]["attention"]["query"]["lora_a"].std()
    np.testing.assert_allclose(spread, 1 / 16, rtol=0.05)


def test_they_are_a_group_of_the_optimizer_and_lie_beside_their_kernels():
    own = drawn()
    assert set(jax.tree.leaves(optimizers.roles(own))) == {"adapter"}
    path = ("layer_0", "attention", "query")
    assert placement.logical_axes((*path, "lora_a"), 2) == ("embed", None)
    assert placement.logical_axes((*path, "lora_b"), 2) == (None, "heads")
    closing = ("layer_0", "mlp", "down", "lora_a")
    assert placement.logical_axes(closing, 2) == ("mlp", None)


def case(name, root, **fields):
    """A run of an objective over adapters of a stored model."""
    model = tiny.CASES[name]["model"]
    if model.attention == "causal":
        model = dataclasses.replace(model, predicts="next")
    base = stored_model(root / "base", model)
    fields = {"start_from": base, "adapters": OWN, **fields}
    return tiny.case(name, root, **fields)


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_adapters_only(name, tmp_path):
    """The loss is the objective's own on the merged model, the base gets no slope."""
    config = case(name, tmp_path)
    own, whole = objectives.of(config), objectives.find(name)
    given = jax.tree.map(jnp.asarray, embedded.read_from(str(config.start_from))[0])
    params = own.start(config, jax.random.key(0), given)
    params = jax.tree.map(lambda leaf: leaf + 0.05, params)
    rows = tiny.streams(name)[0][: 4 * 32].reshape(4, 32).astype(np.int32)
    noise = own.noise(config) if own.noise else lambda batch, key: batch
    batch = noise({"tokens": jnp.asarray(rows)}, jax.random.key(3))

    def over(params, base):
        return own.loss(config)(params, {"base": base}, batch, jax.random.key(4), 0)[0]

    def of_whole(params):
        return whole.loss(config)(params, {}, batch, jax.random.key(4), 0)[0]

    @jax.jit
    def both(params):
        merged = adapters.merged(adapters.joined(given, params, OWN.scale))
        return (
            jax.value_and_grad(over)(params, given),
            jax.value_and_grad(of_whole)(merged),
        )

    (value, grads), (wanted, plain) = both(params)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(leaf).max() > 0, path
    # By the chain rule: what a kernel would get, through the other factor.
    kernel = plain["layer_0"]["mlp"]["up"]["kernel"]
    mine, factors = grads["layer_0"]["mlp"]["up"], params["layer_0"]["mlp"]["up"]
    np.testing.assert_allclose(
        mine["lora_a"], OWN.scale * kernel @ factors["lora_b"].T, rtol=1e-3, atol=1e-6
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of adapters, and its folder merged."""
    root = tmp_path_factory.mktemp("adapters")
    config = case("autoregressive", root, learning_rate=0.05, steps=30, eval_every=30,
                  checkpoint_every=30)  # fmt: skip
    result = trainer.train(config, root / "run", **quiet())
    runs.merge(str(root / "run"), str(root / "merged"))
    return root, config, result


def test_a_run_learns_keeps_adapters_alone_and_leaves_the_base(finished):
    root, config, result = finished
    base, _ = embedded.read_from(config.start_from)
    jax.tree.map(np.testing.assert_array_equal, base, jax.device_get(BASE))
    kept, record = embedded.read_pair(root / "run", "weights")
    jax.tree.map(np.testing.assert_array_equal, kept, result.params)
    assert record["num_params"] == sum(x.size for x in jax.tree.leaves(kept))
    assert record["holds"] == {"kind": "transformer", "adapters": {"scale": 2.0}}
    text = trainer.read(config, None, tiny.streams()).validation
    own = objectives.find("autoregressive")
    before = own.figures(config, base, {}, text, row_len=32)["bits_per_byte"]
    after = record["validation"]["bits_per_byte"]
    assert after < before - 0.5
    whole, _ = embedded.read_from(root / "run")
    again = own.figures(config, whole, {}, text, row_len=32)["bits_per_byte"]
    np.testing.assert_allclose(again, after, rtol=1e-5)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), whole, base)
    names = {path[-2].key for path, leaf in jax.tree_util.tree_leaves_with_path(moved)
             if leaf}  # fmt: skip
    assert names == set(OWN.names)


def test_a_folder_of_adapters_decodes_as_the_merged_one(finished):
    root, config, _ = finished

    def tokens(folder):
        made = generation.generate([[97, 98]], model=str(folder), max_new_tokens=8)
        return made.tokens

    assert tokens(root / "run") == tokens(root / "merged")
    assert tokens(root / "run") != tokens(config.start_from)
    with pytest.raises(ValueError, match="holds no adapters"):
        runs.merge(str(root / "merged"), str(root / "more"))
    with pytest.raises(ValueError, match="holds a run already"):
        runs.merge(str(root / "run"), str(root / "merged"))


def test_what_is_embedded_is_the_whole_model(finished, monkeypatch):
    root, config, _ = finished
    monkeypatch.setattr(export, "_ngram", lambda *texts: {})
    training, validation = tiny.streams()
    record = export.embed(
        config, root / "run", "whole", (training, validation, validation),
        command="x", folder=root,
    )  # fmt: skip
    stored, read = embedded.read_pair(root, "whole")
    assert jax.tree.structure(stored) == jax.tree.structure(BASE)
    for made in (record, read):
        assert made["num_params"] == sum(x.size for x in jax.tree.leaves(BASE))
        assert made["holds"] == {"kind": "transformer"}
        assert made["config"]["adapters"] is None


def test_adapters_of_another_base_or_of_none_are_refused(tmp_path):
    config = case("autoregressive", tmp_path, steps=1, warmup_steps=0, eval_every=1)
    trainer.train(config, tmp_path / "run", **quiet())
    more = dataclasses.replace(config, start_from=str(tmp_path / "run"))
    # Adapters on merged adapters.
    trainer.train(more, tmp_path / "more", **quiet())
    stored_model(tmp_path / "base", seed=1)
    with pytest.raises(ValueError, match=r"base with weights .* but there are weights"):
        embedded.load(str(tmp_path / "run"))
    for path in (tmp_path / "base").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"more holds adapters on .*run: .*is missing"):
        embedded.load(str(tmp_path / "more"))


@pytest.mark.parametrize("name", ["autoregressive", "certainty"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path, monkeypatch, name):
    config = case(name, tmp_path, optimizer="muon", ema_decay=0.5)
    whole = trainer.train(config, tmp_path / "whole", **quiet(name))

    class Killed(Exception):
        pass

    real = trainer.saves.save

    def dies(made, step, state):
        real(made, step, state)
        if step == 4:
            raise Killed

    monkeypatch.setattr(trainer.saves, "save", dies)
    with pytest.raises(Killed):
        trainer.train(config, tmp_path / "run", **quiet(name))
    monkeypatch.setattr(trainer.saves, "save", real)
    again = trainer.train(config, tmp_path / "run", **quiet(name))
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
    ranked = dataclasses.replace(config, adapters=Adapters(rank=2))
    with pytest.raises(ValueError, match=r"adapters.rank: 2 here, 3 there"):
        trainer.train(ranked, tmp_path / "run", **quiet(name))


def test_bad_adapters_are_refused(tmp_path):
    config = case("autoregressive", tmp_path)
    with pytest.raises(ValueError, match=r"adapters.rank=0 must be at least 1"):
        settings.override(config, ["adapters.rank=0"])
    with pytest.raises(ValueError, match=r"adapters.rank=2.5 must be an int"):
        Adapters(rank=2.5)  # pyrefly: ignore[bad-argument-type]
    with pytest.raises(ValueError, match=r"adapters.alpha=0.0 must be above 0"):
        Adapters(rank=2, alpha=0.0)
    with pytest.raises(ValueError, match="must be some of query, key"):
        Adapters(rank=2, names=("embed",))
    with pytest.raises(ValueError, match=r"rank=9 must be .* at most 8"):
        adapters.init(BASE, 9, ("value",), jax.random.key(0))
    with pytest.raises(ValueError, match=r"no kernels of .'gate'."):
        plain = transformer.init(
            dataclasses.replace(MODEL, gated=False), jax.random.key(0)
        )
        adapters.init(plain, 2, ("gate", "up"), jax.random.key(0))
    with pytest.raises(ValueError, match=r"adapters.rank=3 needs start_from"):
        dataclasses.replace(RUN, adapters=OWN)
    with pytest.raises(ValueError, match="forward='plain' reads no adapters"):
        dataclasses.replace(config, forward="plain")
    with pytest.raises(ValueError, match=r"rank=17 must be .* at most 8"):
        trainer.train(
            dataclasses.replace(config, adapters=Adapters(rank=17)),
            tmp_path / "run", **quiet(),
        )  # fmt: skip
    heads = objectives.find("autoregressive")._replace(
        start=lambda config, key, given: {"heads": given}
    )
    with pytest.raises(ValueError, match="trains parameters that start_from"):
        runs.over(heads, OWN).start(config, jax.random.key(0), BASE)
