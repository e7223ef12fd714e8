"""Where arrays live, and that a decode does not depend on it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import table
from jax.sharding import AbstractMesh, PartitionSpec
from table import CASES, MAX_NEW

from pdecode import cache, knobs, methods, prompts, sharding
from pdecode import decode as decode_module
from pdecode.contracts import DraftHeads, Model, SlotRun
from pdecode.decode import run
from pdecode.hardware import hlo
from pdecode.models import observed, transformer
from pdecode.sharding import placement

VOCAB, MASK = 48, 47
MESHES = [
    {"data": 8},
    {"data": 4, "tensor": 2},
    {"data": 2, "tensor": 4},
    {"tensor": 8},
]


@functools.cache
def tiny(seed=0, num_layers=1, tells=False, **changes):
    """A transformer that eight devices divide, and its parameters."""
    config = transformer.Config(
        vocab_size=VOCAB,
        width=32,
        num_layers=num_layers,
        num_heads=8,
        head_dim=4,
        mlp_width=64,
        mask_id=MASK,
        max_positions=64,
        eos_ids=(table.EOS,),
        **changes,
    )
    params = transformer.init(config, jax.random.key(seed))
    make = observed.rollout if tells else transformer.make_model
    return make(config), params


def _offset_heads(params, hidden):
    return jnp.einsum("be,kef->bkf", hidden, params)


HEADS = DraftHeads(4, _offset_heads)


def models_of(case):
    """The case's models and parameters, with transformers in the place of toys."""
    if isinstance(case.model, Model):
        return network(case.model)
    roles = knobs.roles(getattr(methods, case.method))
    models, params = [], {}
    for role, model in zip(roles, case.model, strict=True):
        if isinstance(model, DraftHeads):
            noise = jax.random.normal(jax.random.key(3), (4, 32, 32))
            made, tree = HEADS, jnp.eye(32)[None] + 0.1 * noise
        else:
            made, tree = network(model)
            if role == "drafter":  # near enough that something is accepted
                far = network(model, seed=1)[1]
                tree = jax.tree.map(lambda a, b: 0.8 * a + 0.2 * b, tree, far)
        models.append(made)
        params[role] = tree
    return tuple(models), params


def network(model, seed=0):
    """A transformer that attends and predicts as a toy does, and its parameters."""
    facts = {"attention": model.attention, "predicts": model.predicts}
    facts["tells"] = model.observed is not None
    if model.attention == "block_causal":
        facts["block_len"] = model.block_len
    return tiny(seed, **facts)


# Roles that are no network (filters, judges, codes, guards) have the toy's sizes.
ON_NETWORKS = [
    name
    for name, case in CASES.items()
    if isinstance(case.model, Model)
    or all(isinstance(each, (Model, DraftHeads)) for each in case.model)
]


def placed(models, params, prompt, key, mesh):
    """The four arguments of `run`, on the mesh."""
    if isinstance(models, Model):
        models, params = (models,), {"model": params}
    return (
        tuple(sharding.on_mesh(m, mesh) if isinstance(m, Model) else m for m in models),
        {role: sharding.shard_params(tree, mesh) for role, tree in params.items()},
        sharding.shard_rows(prompt, mesh),
        sharding.replicate(key, mesh),
    )


def arguments(name, mesh=None):
    """(method, models, params, prompt, key) of a case."""
    case = CASES[name]
    models, params = models_of(case)
    prompt, key = table.prompt(), jax.random.key(1)
    if mesh is not None:
        models, params, prompt, key = placed(models, params, prompt, key, mesh)
    return getattr(methods, case.method), models, params, prompt, key


def decode(name, mesh=None, temperature=0.0):
    case = CASES[name]
    result = run(
        *arguments(name, mesh),
        knobs={**case.knobs, "temperature": temperature},
        max_new_tokens=MAX_NEW,
        **case.sizes,
    )
    return jax.tree.map(np.asarray, result)


def check_mesh(name, **axes):
    mesh = sharding.make_mesh(**axes)
    for temperature in (0.0, 1.0):
        expected, stats = decode(name, None, temperature)
        got, got_stats = decode(name, mesh, temperature)
        for field in ("tokens", "lengths", "stopped_by"):
            np.testing.assert_array_equal(
                getattr(got, field), getattr(expected, field), err_msg=f"{temperature=}"
            )
        np.testing.assert_allclose(got.log_probs, expected.log_probs, atol=1e-4)
        np.testing.assert_array_equal(got_stats.num_calls, stats.num_calls)


# One of each family; the others, and other meshes, in the thorough test.
@pytest.mark.parametrize("name", ["mc_sjd", "random_order"])
def test_tokens_on_a_mesh_are_those_of_one_device(name):
    check_mesh(name, data=2, tensor=4)


def test_tokens_with_gathered_weights_are_those_of_one_device():
    check_mesh("dual_cache", fsdp=4, tensor=2)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ON_NETWORKS)
def test_every_method_on_a_mesh(name):
    """The meshes take turns; the default tests have the families on theirs."""
    check_mesh(name, **MESHES[ON_NETWORKS.index(name) % len(MESHES)])


def test_the_loop_holds_a_part_of_the_cache():
    """Inside the compiled loop no device has more than its heads of its rows."""
    mesh = sharding.make_mesh(data=2, tensor=4)
    method, models, params, prompt, key = arguments("autoregressive", mesh)
    whole_params = sharding.replicate(tiny()[1], mesh)
    slots = table.WIDTH + MAX_NEW + 1
    whole, rows_only, part = (
        f"f32[{rows},{heads},{slots},4]" for rows, heads in ((8, 8), (4, 8), (4, 2))
    )

    def text(models, params):
        traced, _ = decode_module.traced(
            method, models, params, prompt, key, max_new_tokens=MAX_NEW
        )
        return traced.lower().compile().as_text()

    for tree in (params, whole_params):
        found = text(models, tree)
        assert part in found and rows_only not in found and whole not in found
    # Negative control: the compiler has no reason to split heads by itself.
    assert rows_only in text((tiny()[0],), whole_params)


def test_runs_of_slots_are_written_device_by_device():
    leaf = jnp.arange(4 * 2 * 9 * 4.0).reshape(4, 2, 9, 4)
    values = -1 - jnp.arange(4 * 2 * 3 * 4.0).reshape(4, 2, 3, 4)
    first = jnp.array([0, 6, 2, 3], jnp.int32)
    slots = SlotRun(first, jnp.arange(12).reshape(4, 3) % 5 > 0)
    wanted = cache.write(leaf, slots, values)
    mesh = sharding.make_mesh(data=2, tensor=2)
    with jax.set_mesh(mesh):
        arrays = sharding.shard_rows((leaf, slots, values), mesh)
        traced = jax.jit(cache.write_slices).trace(*arrays)
        program = traced.lower().compile()
        np.testing.assert_array_equal(program(*arrays), wanted)
    assert not hlo.read(program.as_text()).collectives


@pytest.mark.parametrize("method", [methods.autoregressive, methods.llada])
def test_weights_split_over_fsdp_stay_split_in_the_loop(method, monkeypatch):
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    prompt = table.prompt()

    def carried_and_share(name):
        is_causal = method is methods.autoregressive
        config = transformer.Config(
            vocab_size=VOCAB,
            width=256,
            num_layers=2,
            num_heads=8,
            mask_id=MASK,
            attention="causal" if is_causal else "bidirectional",
            predicts="next" if is_causal else "masked",
            name=name,
        )
        model = transformer.make_model(config)
        params = jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))
        params = jax.tree.map(
            lambda leaf, to: leaf.update(sharding=to),
            params,
            placement.specs(params, mesh),
        )
        cache = jax.eval_shape(lambda: model.init_cache(prompt, table.WIDTH + MAX_NEW))
        with jax.set_mesh(mesh):
            traced, _ = decode_module.traced(
                method, sharding.on_mesh(model, mesh), params,
                sharding.shard_rows(prompt, mesh),
                sharding.replicate(jax.random.key(1), mesh), max_new_tokens=MAX_NEW,
            )  # fmt: skip
            text = traced.lower().compile().as_text()
        total = sum(4 * leaf.size for leaf in jax.tree.leaves((params, cache)))
        return hlo.read(text).carried_bytes, total / mesh.size

    carried, share = carried_and_share("split")
    assert carried <= 1.05 * share, carried / share
    # Negative control: the compiler gathers before the loop what it can.
    monkeypatch.setattr(jax.lax, "optimization_barrier", lambda tree: tree)
    carried, share = carried_and_share("gathered")
    assert carried > 2 * share, carried / share


# LLaDA-8B: every dimension that the table splits.
WIDE = transformer.Config(
    vocab_size=126464,
    width=4096,
    num_layers=32,
    num_heads=32,
    mlp_width=12288,
    dtype="bfloat16",
)


@pytest.mark.parametrize("fsdp, tensor", [(1, 8), (2, 8), (4, 16), (16, 16), (8, 32)])
def test_every_device_holds_its_share_of_an_8b_shape(fsdp, tensor):
    mesh = AbstractMesh((fsdp, tensor), ("fsdp", "tensor"))
    params = jax.eval_shape(lambda: transformer.init(WIDE, jax.random.key(0)))
    prompt = prompts.from_rows([[0]] * 64, max_new_tokens=1)
    model = transformer.make_model(WIDE)
    cache = jax.eval_shape(lambda: model.init_cache(prompt, 1025))
    both = (params, cache)
    total = sum(leaf.size for leaf in jax.tree.leaves(both))
    here = sum(
        int(np.prod(place.shard_shape(leaf.shape)))
        for leaf, place in zip(
            jax.tree.leaves(both),
            jax.tree.leaves(
                (placement.specs(params, mesh), placement.row_specs(cache, mesh))
            ),
            strict=True,
        )
    )
    assert here <= 1.05 * total / (fsdp * tensor)


def test_the_table_leaves_whole_what_does_not_divide():
    mesh = AbstractMesh((2, 4, 2), ("data", "tensor", "fsdp"))

    def spec(*logical_and_sizes):
        logical, shape = zip(*logical_and_sizes)
        return placement.spec(logical, shape, mesh)

    assert spec(("embed", 8), ("heads", 8)) == PartitionSpec("fsdp", "tensor")
    assert spec(("embed", 7), ("heads", 6)) == PartitionSpec(None, None)
    assert spec(("rows", 4), (None, 4)) == PartitionSpec(("data", "fsdp"), None)
    assert spec(("rows", 2), ("slots", 4)) == PartitionSpec("data", None)
    # An axis splits one dimension of an array only.
    assert spec(("vocab", 8), ("mlp", 8)) == PartitionSpec("tensor", None)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What `make_mesh` reads of a TPU device."""

    id: int
    coords: tuple[int, ...]
    platform: str = "tpu"
    device_kind: str = "TPU v5"
    core_on_chip: int = 0
    process_index: int = 0
    slice_index: int = 0


def test_two_axes_of_a_mesh_may_share_one_of_the_torus():
    torus = [Chip(i, coords) for i, coords in enumerate(np.ndindex(4, 4, 4))]
    for sizes in ({"fsdp": 4, "tensor": 16}, {"fsdp": 8, "tensor": 8}):
        mesh = sharding.make_mesh(devices=torus, **sizes)
        assert dict(mesh.shape) == sizes
        assert sorted(chip.id for chip in mesh.devices.flat) == list(range(64))


def test_bad_meshes_and_rows_are_refused():
    with pytest.raises(ValueError, match="'row'; known: data"):
        sharding.make_mesh(row=2)
    with pytest.raises(ValueError, match="needs 64 devices, but there are 8"):
        sharding.make_mesh(data=64)
    with pytest.raises(ValueError, match="tensor=0 must be at least 1"):
        sharding.make_mesh(tensor=0)
    mesh = sharding.make_mesh(data=2, fsdp=2)
    with pytest.raises(ValueError, match="5 rows do not divide over data x fsdp = 4"):
        sharding.shard_rows(table.prompt(table.ROWS[:5], table.NEW[:5]), mesh)
