"""A drafter distilled from its target: divergences, gradients, and texts it writes."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL, RUN, quiet

from pdecode import methods, prompts
from pdecode.data.texts import Text
from pdecode.decode import run
from pdecode.models import bytes as text
from pdecode.models import transformer
from pdecode.train import export, objectives, passes, settings, sources, train
from pdecode.train.objectives import distillation

ROOT = pathlib.Path(__file__).parent.parent
WIDE = dataclasses.replace(
    MODEL, width=24, num_layers=2, sliding=(), head_dim=8, name="wide"
)
SMALL = dataclasses.replace(
    MODEL, vocab_size=6, mask_id=5, eos_ids=(4,), max_positions=16
)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A folder with a target of another size than the drafter's, of sharp laws."""
    folder = tmp_path_factory.mktemp("wide")
    params = transformer.init(WIDE, jax.random.key(1))
    params = jax.tree.map(lambda leaf: 2 * leaf, params)
    record = export.describe(dataclasses.replace(RUN, model=WIDE), params)
    export.write(folder, "weights", params, record, dtype=np.float32)
    return str(folder)


def config_of(target, *, model=MODEL, options=None, **fields):
    return dataclasses.replace(
        RUN, model=model, objective="distillation", frozen={"target": target},
        options=options, **fields,
    )  # fmt: skip


def laws(seed, shape=(2, 3, 5)):
    draw = np.random.default_rng(seed)
    p = draw.dirichlet(np.full(shape[-1], 0.5), shape[:-1])
    return np.log(p), p


def options(name, **more):
    return distillation.Options(divergence=name, **more)


SCORED = jnp.asarray([[True, True, False], [False, True, True]])


def slow(name, p, q, beta=0.5):
    """Of one pair of laws, from the definition."""

    def kl(a, b):
        return sum(x * np.log(x / y) for x, y in zip(a, b))

    if name == "jsd":
        mixed = beta * p + (1 - beta) * q
        return beta * kl(p, mixed) + (1 - beta) * kl(q, mixed)
    return {
        "forward_kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "tvd": np.abs(p - q).sum() / 2,
    }[name]


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "tvd"])
def test_divergences_are_their_definitions_and_zero_for_equal_laws_only(name):
    (log_p, p), (log_q, q) = laws(0), laws(1)
    found = distillation.divergence(options(name, jsd_beta=0.3), log_p, log_q, SCORED)
    for place in np.ndindex(2, 3):
        expected = slow(name, p[place], q[place], 0.3)
        assert expected > 0.01
        np.testing.assert_allclose(found[place], expected, rtol=1e-4)
    same = distillation.divergence(options(name), log_p, log_p, SCORED)
    np.testing.assert_allclose(same, 0, atol=1e-6)


def slope(name, log_p, logits):
    """Gradient of the scored mean by the drafter's logits."""

    def value(z):
        found = jax.nn.log_softmax(z)
        each = distillation.divergence(options(name), log_p, found, SCORED)
        return jnp.where(SCORED, each, 0).sum() / SCORED.sum()

    return np.asarray(jax.grad(value)(logits), np.float64)


def test_total_variations_gradient_is_a_policys():
    """grad TVD = E over q of -1{p > q} grad log q, by finite differences too."""
    (log_p, p), (logits, _) = laws(0), laws(1)
    q = np.exp(logits)
    scored = np.asarray(SCORED)[..., None] / np.asarray(SCORED).sum()
    reward = (p > q).astype(float)
    # sum over x of q(x) r(x) (1{x = v} - q(v)), for each logit v
    expected = -q * (reward - (q * reward).sum(-1, keepdims=True)) * scored
    found = slope("tvd", log_p, jnp.asarray(logits))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    step, place = 1e-5, (0, 1, 2)

    def total(moved):
        law = np.exp(moved) / np.exp(moved).sum(-1, keepdims=True)
        return (np.abs(p - law).sum(-1) / 2 * scored[..., 0]).sum()

    bump = np.zeros_like(logits)
    bump[place] = step
    by_difference = (total(logits + bump) - total(logits - bump)) / (2 * step)
    np.testing.assert_allclose(found[place], by_difference, atol=1e-6)


def test_tvd_plus_plus_is_total_variation_over_the_rewards_deviation():
    """Whatever the baseline; the deviation is over tokens and vocabulary."""
    (log_p, p), (logits, _) = laws(0), laws(1)
    plain = slope("tvd", log_p, jnp.asarray(logits))
    rewards = (p > np.exp(logits))[np.asarray(SCORED)]
    found = slope("tvd++", log_p, jnp.asarray(logits))
    np.testing.assert_allclose(found, plain / rewards.std(), atol=1e-6)
    made = distillation.advantages(p, np.exp(logits), SCORED)
    kept = np.asarray(made)[np.asarray(SCORED)]
    np.testing.assert_allclose([kept.mean(), kept.std()], [0, 1], atol=1e-6)
    # Control: over all places, scored or not, it is another deviation.
    assert abs((p > np.exp(logits)).std() - rewards.std()) > 1e-3
    assert np.isfinite(slope("tvd++", log_p, jnp.asarray(log_p))).all()


def parts_of(config, seed=0):
    """The loss, drafter and frozen parameters, and a batch of random bytes."""
    own = objectives.find("distillation")
    params = own.start(config, jax.random.key(seed), None)
    read = sources.read(config, None)["frozen.target"].params
    tokens = np.random.default_rng(seed).integers(0, 255, (4, 12)).astype(np.int32)
    tokens[:, 5] = text.BOS_ID
    batch = own.noise(config)({"tokens": jnp.asarray(tokens)}, jax.random.key(3))
    return jax.jit(own.loss(config)), params, {"target": read}, batch


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, row, last):
    hidden = passes.hidden(passes.Pass(model), params, row[None])[0, last]
    return params["embed"] @ hidden


def law_after(model, params, prefix):
    """The law float64 [V] behind one prefix, with nothing behind it."""
    row = np.zeros(12, np.int32)
    row[: len(prefix)] = prefix
    logits = np.array(_logits(model, params, row, len(prefix) - 1), np.float64)
    logits[model.mask_id] = -np.inf
    made = np.exp(logits - logits.max())
    return made / made.sum()


def test_the_loss_is_that_of_prefixes_one_by_one(target):
    config = config_of(target, row_len=12, short_len=None)
    loss, params, frozen, batch = parts_of(config)
    value, aux = loss(params, frozen, batch, jax.random.key(0), 0)
    apart, nats = [], []
    for row in np.asarray(batch["tokens"]):
        for end in range(1, len(row)):
            if row[end] == text.BOS_ID:
                continue
            p = law_after(WIDE, frozen["target"], row[:end])
            q = law_after(MODEL, params, row[:end])
            apart.append(np.abs(p - q).sum() / 2)
            nats.append(-np.log(q[row[end]]))
    np.testing.assert_allclose(value, np.mean(apart), rtol=1e-4)
    counted = np.asarray(aux["scored"])
    np.testing.assert_allclose(np.asarray(aux["nats"])[counted], nats, rtol=1e-4)
    assert aux["weight"] == len(apart)


def test_every_parameter_of_the_drafter_learns_and_the_target_none(target):
    loss, params, frozen, batch = parts_of(config_of(target, row_len=12))

    def value(params, frozen):
        return loss(params, frozen, batch, jax.random.key(0), 0)[0]

    mine, its = jax.grad(value, (0, 1))(params, frozen)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(mine))
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(its))


@pytest.mark.parametrize("writer", ["drafter", "target"])
def test_a_writer_goes_on_as_it_decodes_and_nothing_flows_through_it(target, writer):
    own = {"texts": writer, "given_len": 4}
    config = config_of(target, row_len=12, options=own)
    loss, params, frozen, batch = parts_of(config)
    model, its = (WIDE, frozen["target"]) if writer == "target" else (MODEL, params)
    key = jax.random.split(jax.random.key(config.seed))[0]
    prompt = prompts.from_rows(
        np.asarray(batch["tokens"])[:, :4].tolist(), max_new_tokens=8,
        row_ids=np.asarray(batch["row_ids"]).tolist(),
    )  # fmt: skip
    made, _ = run(
        methods.autoregressive, transformer.make_model(model), its, prompt, key,
        max_new_tokens=8, knobs={"temperature": 1.0},
    )  # fmt: skip
    args = jax.random.key(0), 0
    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(
        params, frozen, batch, *args
    )
    committed = np.asarray(made.committed)
    np.testing.assert_array_equal(aux["scored"], committed[:, 1:12])
    assert not committed[:, :4].any() and committed[:, 4:].any()
    # As if the same rows had been given.
    pair = distillation.Pair(passes.Pass(MODEL), passes.Pass(WIDE))

    def fixed(params):
        wanted, found = (
            distillation.log_law(how, tree, made.tokens[:, :12])
            for how, tree in ((pair.target, frozen["target"]), (pair.drafter, params))
        )
        scored = made.committed[:, 1:12]
        each = distillation.divergence(config.options, wanted, found, scored)
        return jnp.where(scored, each, 0).sum() / scored.sum()

    expected, slopes = jax.value_and_grad(fixed)(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        grads, slopes,
    )  # fmt: skip


def test_some_steps_write_and_the_others_take_what_is_given(target):
    own = {"texts": "drafter", "given_len": 4, "share": 0.5}
    config = config_of(target, row_len=12, options=own)
    loss, params, frozen, batch = parts_of(config)
    written = []
    for step in range(24):
        _, aux = loss(params, frozen, batch, jax.random.key(0), step)
        # What is given is scored from the second token on.
        written.append(not np.asarray(aux["scored"])[:, 0].any())
    assert 5 < sum(written) < 19
    # Rows write the same in any company, so parts of a batch add up to it.
    step = written.index(True)
    parts = [
        batch,
        *(jax.tree.map(lambda x, at=at: x[at : at + 2], batch) for at in (0, 2)),
    ]
    (whole, aux), *halves = (
        loss(params, frozen, part, jax.random.key(0), step) for part in parts
    )
    total = sum(value * told["weight"] for value, told in halves)
    np.testing.assert_allclose(total / aux["weight"], whole, rtol=1e-5)


def test_the_first_draft_is_accepted_as_often_as_the_laws_overlap():
    """Rows of one prompt, each a draft of one token: within 4 errors of sum min."""
    drafter, target = (
        transformer.init(SMALL, key) for key in jax.random.split(jax.random.key(0))
    )
    num, prompt = 4096, [1, 0, 3]
    p, q = (law_after(SMALL, params, prompt) for params in (target, drafter))
    expected = np.minimum(p, q).sum()
    model = transformer.make_model(SMALL)
    _, stats = run(
        methods.speculative_sampling, (model, model),
        {"model": target, "drafter": drafter},
        prompts.from_rows([prompt] * num, max_new_tokens=3), jax.random.key(5),
        max_new_tokens=3, num_draft=1, max_steps=1, knobs={"temperature": 1.0},
    )  # fmt: skip
    # An EOS that was drafted and accepted ends the row: one token, as after a refusal.
    ended = min(p[4], q[4])
    accepted = (np.asarray(stats.num_committed) == 2).mean()
    error = np.sqrt(expected * (1 - expected) / num)
    assert abs(accepted + ended - expected) < 4 * error
    # Controls: independent draws of both would agree less often.
    assert abs((p * q).sum() - expected) > 10 * error


@pytest.mark.parametrize(
    ("options", "fields", "message"),
    [
        ({"divergence": "kl"}, {}, "unknown divergence 'kl'; known: .*'forward_kl'"),
        ({"texts": "teacher"}, {}, "unknown texts 'teacher'; known: .*'drafter'"),
        ({"share": 1.5}, {}, "share=1.5 must be at least 0 and at most 1"),
        ({"jsd_beta": 0.0}, {}, "jsd_beta=0.0 must be at least 0.001"),
        ({"texts": "drafter"}, {"row_len": 32}, "given_len=32 leaves nothing to write"),
        ({"divergence": "tvd++"}, {"accumulate": 2, "batch_size": 16},
         "accumulate=2: divergence='tvd"),
        ({}, {"model": dataclasses.replace(MODEL, vocab_size=261)},
         r"frozen\.target=.* another model: model\.vocab_size=261 here, 260 there"),
        ({}, {"model": dataclasses.replace(MODEL, mask_id=None)},
         r"model\.mask_id=None here, 259 there"),
        ({}, {"model": dataclasses.replace(MODEL, max_positions=99), "row_len": 99},
         "row_len=99 exceeds the 64 positions of frozen.target="),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(target, tmp_path, options, fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        train(config_of(target, options=options, **fields), tmp_path, **quiet())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["distilled", "sorted"])
def test_the_shipped_configs_begin_with_the_embedded_models(name):
    config = settings.load(ROOT / "configs" / f"byte_{name}.py")
    found = sources.read(config, None)
    assert set(found) == {"start_from", *(f"frozen.{role}" for role in config.frozen)}
    objectives.find(config.objective).loss(config)


def test_a_run_learns_to_be_accepted(target, tmp_path):
    """On texts of its own, of a target that has something to say."""
    config = config_of(
        target, steps=60, learning_rate=2e-2, eval_every=60, checkpoint_every=60,
        row_len=16, options={"texts": "drafter", "given_len": 4},
    )  # fmt: skip
    validation = quiet()["streams"][1]
    seen = Text(validation, "validation", config.scored_unit, config.given_ids)
    frozen = {"target": sources.read(config, None)["frozen.target"].params}
    params = transformer.init(MODEL, jax.random.key(0))
    before = distillation.figures(config, params, frozen, seen, row_len=16)
    record = train(config, tmp_path, **quiet()).record
    assert record["frozen"]["target"]["from"] == target
    assert record["validation"]["acceptance"] > 2 * before["acceptance"], before
