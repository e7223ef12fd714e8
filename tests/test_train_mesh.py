"""Where a run's arrays live changes nothing but where they live."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CASES, MODEL, RUN, case, quiet

from pdecode.models.config import Config, Experts
from pdecode.sharding import mesh as meshes
from pdecode.sharding import placement
from pdecode.train import TrainConfig, optimizers, plan, steps, train

LONG = dataclasses.replace(
    RUN, steps=20, eval_every=20, checkpoint_every=20, row_len=16, learning_rate=1e-2
)


def same(one, two, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, two)


MESHES = [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]
MORE_MESHES = [{"tensor": 4}, {"data": 2, "fsdp": 4}, {"fsdp": 2, "tensor": 4}]


@pytest.mark.parametrize(
    ("name", "optimizer", "meshes"),
    [
        ("autoregressive", "adamw", MESHES),
        *(
            pytest.param(*case, MESHES + MORE_MESHES, marks=pytest.mark.thorough)
            for case in (
                ("autoregressive", "adamw"),
                ("masked_diffusion", "muon"),
                ("blockwise_heads", "muon"),
            )
        ),
    ],
)
def test_eight_devices_train_what_one_does(tmp_path, name, optimizer, meshes):
    sizes = {
        "steps": 20, "eval_every": 20, "checkpoint_every": 20, "row_len": 16,
        "learning_rate": 1e-2,
    }  # fmt: skip
    config = case(name, tmp_path, optimizer=optimizer, **sizes)
    one = train(config, tmp_path / "one", mesh={"data": 1}, **quiet())
    for number, axes in enumerate(meshes):
        eight = train(config, tmp_path / str(number), mesh=axes, **quiet())
        # Muon divides by norms that are near zero at first.
        same(one.params, eight.params, 1e-5 if optimizer == "adamw" else 1e-4)
        assert eight.record["mesh"] == axes
        for field, figure in one.record["validation"].items():
            found = eight.record["validation"][field]
            np.testing.assert_allclose(found, figure, rtol=1e-5)


def test_a_run_goes_on_on_another_mesh(tmp_path):
    config = dataclasses.replace(LONG, schedule="stable", steps=4, eval_every=4)
    whole = train(config, tmp_path / "one", mesh={"data": 1}, **quiet())
    half = dataclasses.replace(config, steps=2)
    train(half, tmp_path / "two", mesh={"fsdp": 8}, **quiet())
    lines = []
    more = quiet(log=lines.append)
    went_on = train(config, tmp_path / "two", mesh={"data": 2, "tensor": 4}, **more)
    assert lines[0] == "resumed at step 2"
    same(whole.params, went_on.params)


@pytest.mark.parametrize("name", CASES)
def test_parts_of_a_batch_add_up(tmp_path, name):
    """Also where parts score different numbers of tokens, and on several devices."""
    short = case(name, tmp_path, steps=3, eval_every=1, row_len=16, learning_rate=1e-2)
    found = []
    for number, (parts, axes) in enumerate([(1, 1), (4, 1), (2, 4)]):
        config = dataclasses.replace(short, accumulate=parts)
        workdir = tmp_path / str(number)
        result = train(config, workdir, mesh={"data": axes}, **quiet(name))
        lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        told = [(line["loss"], line["grad_norm"]) for line in lines]
        found.append((result.params, told))
    for params, told in found[1:]:
        np.testing.assert_allclose(found[0][1], told, rtol=1e-5)
        # Adam takes the sign of a gradient that is nothing but rounding.
        same(found[0][0], params, 1e-4)


def program_of(config, axes):
    return steps.make(config, plan.mesh(config, axes), None)


def test_state_is_split_and_given_over_to_the_step():
    """Of the compiled step itself: an eighth of the state, and no second copy of it."""
    wide = dataclasses.replace(MODEL, width=256, num_heads=4, mlp_width=512)
    config = dataclasses.replace(LONG, model=wide)
    sizes = {}
    for axes in ({"data": 1}, {"fsdp": 8}):
        program = program_of(config, axes)
        tokens = jax.ShapeDtypeStruct((8, 16), jnp.int32, sharding=program.rows)
        lowered = program.step.lower(
            program.shapes, {}, {"tokens": tokens}, np.int32(0), np.zeros(1, np.int32)
        )
        memory = lowered.compile().memory_analysis()
        count = steps.bytes_per_device(program.shapes)
        assert memory.alias_size_in_bytes >= count  # donated: written where it was read
        sizes[tuple(axes)] = (count, memory.argument_size_in_bytes)
    for one, eight in zip(*sizes.values()):
        assert eight <= 1.1 * one / 8


def test_no_device_ever_holds_the_whole_state(tmp_path):
    program = program_of(dataclasses.replace(LONG, steps=4), {"fsdp": 8})
    state = program.init(None)
    for tree in (state["params"], state["opt"]):
        big = [leaf for leaf in jax.tree.leaves(tree) if leaf.size > 260]
        assert big and all(
            leaf.addressable_data(0).size == leaf.size // 8 for leaf in big
        )


@pytest.mark.parametrize(
    ("axes", "fields", "message"),
    [
        (None, {"batch_size": 11}, r"batch_size=11 .* over 8 devices .*=8 or 16"),
        ({"data": 4}, {"accumulate": 4}, r"batch_size=8 \(accumulate=4\) does"),
        ({"tensor": 5}, {}, r"--mesh tensor=5: .*bytes stay whole on every device"),
        ({"tensor": 8}, {}, r"--mesh tensor=8: embed \(260\) does not divide"),
        ({"expert": 2}, {}, r"--mesh expert=2 splits nothing of this model"),
        ({"sequence": 2}, {}, r"--mesh sequence=2 splits nothing in training; known"),
        ({"rows": 2}, {}, r"--mesh rows=2 splits nothing"),
        ({"data": 16}, {"batch_size": 16}, "needs 16 devices, but there are 8"),
        ({"tensor": 5}, {"heads": True}, r"--mesh tensor=5"),
    ],
)  # fmt: skip
def test_a_mesh_that_does_not_divide_is_refused(tmp_path, axes, fields, message):
    config = (
        dataclasses.replace(LONG, **fields)
        if "heads" not in fields
        else case("blockwise_heads", tmp_path)
    )
    with pytest.raises(ValueError, match=message) as caught:
        train(config, tmp_path / "run", mesh=axes, **quiet())
    assert "\n" not in str(caught.value)


def test_a_decode_on_a_mesh_that_does_not_divide_is_warned_of():
    mesh = meshes.make_mesh(tensor=5)
    params = {"embed": np.zeros((12, 8), np.float32)}
    with pytest.warns(
        UserWarning, match=r"embed \(12\) .* tensor: 384 bytes stay whole"
    ):
        meshes.shard_params(params, mesh)
    assert placement.undivided({"embed": np.zeros((10, 8))}, mesh) == []


def test_roles_are_told_by_name_and_decay_as_set():
    model = Config(
        vocab_size=11, width=8, num_layers=1, num_heads=2, experts=Experts(2, 1, 8),
        rope=None, max_positions=32, qkv_bias=True,
    )  # fmt: skip
    config = TrainConfig(
        name="x", model=model, steps=9, warmup_steps=0, row_len=8, optimizer="muon"
    )
    shapes = program_of(config, {"data": 1}).shapes["params"]
    found = {group.role: group for group in optimizers.groups(config, shapes)}
    assert {role: group.rule for role, group in found.items()} == {
        "matrix": "muon", "embedding": "adam", "head": "adam", "norm": "adam",
        "bias": "adam", "expert": "muon",
    }  # fmt: skip
    decays = {role: group.weight_decay for role, group in found.items()}
    assert decays["norm"] == decays["bias"] == 0.0
    assert decays["expert"] == decays["embedding"] == decays["head"] == 0.1
    assert found["expert"].num_tensors == 3 and found["embedding"].num_tensors == 2
    assert sum(group.num_params for group in found.values()) == sum(
        leaf.size for leaf in jax.tree.leaves(shapes)
    )
    with pytest.raises(
        ValueError, match="parameter mystery of 1 dimensions has no role"
    ):
        optimizers.role(("mystery",), 1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_decay_shrinks_the_roles_it_is_for_and_no_other(optimizer):
    """With no gradient at all the only change is the decay."""
    config = dataclasses.replace(
        RUN, optimizer=optimizer, weight_decay=0.25, decayed=("matrix", "embedding")
    )
    params = {
        "embed": jnp.ones((5, 4)), "head": jnp.ones((5, 4)), "norm": jnp.ones((3, 4)),
        "up": jnp.ones((2, 4, 4)),
        "layer_0": {
            "mlp": {"up": {"kernel": jnp.ones((4, 4))}, "gate": jnp.ones((2, 4, 4))}
        },
    }  # fmt: skip
    update = optimizers.make(config)
    none = jax.tree.map(jnp.zeros_like, params)
    changes, _ = update.update(none, update.init(params), params)
    expected = {"embed": -0.25, "up": -0.25, "norm": 0.0, "head": 0.0}
    for name, value in expected.items():
        np.testing.assert_allclose(changes[name], value, atol=1e-6)
    np.testing.assert_allclose(changes["layer_0"]["mlp"]["up"]["kernel"], -0.25)
    np.testing.assert_allclose(changes["layer_0"]["mlp"]["gate"], 0.0, atol=1e-6)


def test_muon_makes_each_stacked_matrix_orthogonal():
    """Heads and experts one by one: a stack gives what its matrices give alone."""
    config = dataclasses.replace(RUN, optimizer="muon", weight_decay=0.0)
    grads = jax.random.normal(jax.random.key(0), (2, 4, 6)) * 1e-3
    update = optimizers.make(config)
    stack = {"up": grads}
    params = jax.tree.map(jnp.zeros_like, stack)
    changes, _ = update.update(stack, update.init(params), params)
    for index in range(2):
        single = {"layer_0": {"mlp": {"up": {"kernel": grads[index]}}}}
        params = jax.tree.map(jnp.zeros_like, single)
        alone, _ = update.update(single, update.init(params), params)
        kernel = alone["layer_0"]["mlp"]["up"]["kernel"]
        np.testing.assert_allclose(changes["up"][index], kernel, rtol=1e-4, atol=1e-6)
        values = jnp.linalg.svd(kernel, compute_uv=False)
        assert values.min() > 0.5 * values.max()


def test_a_moving_average_is_the_result_where_one_is_asked_for(tmp_path):
    config = dataclasses.replace(LONG, steps=2, warmup_steps=0, eval_every=2)
    plain = [
        train(
            dataclasses.replace(config, steps=n, schedule="stable"),
            tmp_path / str(n), **quiet(),
        ).params
        for n in (1, 2)
    ]  # fmt: skip
    averaged = dataclasses.replace(config, schedule="stable", ema_decay=0.25)
    found = train(averaged, tmp_path / "ema", **quiet()).params
    start = program_of(config, {"data": 1}).init(None)["params"]
    first = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, start, plain[0])
    expected = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, first, plain[1])
    same(found, expected, 1e-6)


def test_compute_in_bfloat16_keeps_a_float32_state(tmp_path):
    config = dataclasses.replace(LONG, steps=20, matmul_dtype="bfloat16")
    program = program_of(config, {"data": 1})
    assert all(
        leaf.dtype in (jnp.float32, jnp.int32)
        for leaf in jax.tree.leaves(program.shapes)
    )
    half = train(config, tmp_path / "half", **quiet()).record["validation"]
    full = train(LONG, tmp_path / "full", **quiet()).record["validation"]
    assert half != full
    assert abs(half["bits_per_byte"] - full["bits_per_byte"]) < 0.02
