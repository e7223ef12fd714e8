"""Digits as tokens, records in training, and what drawn images are worth."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from cases.objectives import MODEL
from tiny import RUN

from pdecode import assembly, recipes
from pdecode.cli import main, visual
from pdecode.data import packing, texts
from pdecode.evals import images, quality
from pdecode.evals.bench import visual as suite
from pdecode.models import digits, embedded
from pdecode.models.config import Config
from pdecode.train import TrainConfig, evaluate, export, objectives, settings, train
from pdecode.train.objectives import any_order, autoregressive


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 17, (8, 8)).astype(np.uint8)


def test_a_digit_is_its_class_and_its_pixels():
    row = digits.record(picture(), 7)
    assert len(row) == digits.RECORD and row[0] == digits.tokenizer.encode("7")[0]
    np.testing.assert_array_equal(row[1:].reshape(8, 8), picture())
    assert digits.tokenizer.encode("?") == [digits.MASK_ID]
    drawn = digits.tokenizer.decode(row[1:]).split("\n")
    assert len(drawn) == 8 and {len(line) for line in drawn} == {16}
    assert digits.tokenizer.decode([0, 16, row[0], digits.MASK_ID]) == "  @@ 7??"
    assert digits.pictures([[3, 20] * 32])[0, 0].tolist() == [3, 0] * 4
    for wrong in ("10", "x", ""):
        with pytest.raises(ValueError, match="is no class of digits"):
            digits.tokenizer.encode(wrong)


def test_records_are_never_cut():
    stream = np.concatenate([digits.record(picture(i), i % 10) for i in range(11)])
    made = packing.sampler(
        stream, row_len=digits.RECORD, batch_size=4, seed=1, is_whole=True
    )
    seen = np.concatenate([made.batch(step) for step in range(6)])
    assert ((seen[:, 0] >= digits.FIRST_CLASS) & (seen[:, 1:] < 17).all(1)).all()
    assert len({row.tobytes() for row in made.batch(0)}) == 4
    # The control: text is cut anywhere.
    text = packing.sampler(stream, row_len=digits.RECORD, batch_size=4, seed=1)
    assert (text.batch(0)[:, 1:] >= digits.FIRST_CLASS).any()

    given = tuple(range(digits.FIRST_CLASS, digits.MASK_ID))
    whole = texts.Text(stream, "validation", "token", given, digits.RECORD)
    rows = evaluate.rows(whole, digits.RECORD, 32)
    assert rows.tokens.shape == (11, digits.RECORD) and rows.num_units == 11 * 64
    assert not rows.scored[:, 0].any() and rows.scored[:, 1:].all()
    facts = whole.describe()
    assert facts["scored_tokens"] == facts["units"] == 11 * 64
    sizes = dict(vocab_size=digits.VOCAB_SIZE, mask_id=digits.MASK_ID, min_len=2)
    texts.check(whole, **sizes)
    with pytest.raises(ValueError, match="714 tokens, no whole rows of 65"):
        texts.check(whole._replace(tokens=stream[:-1]), **sizes)
    with pytest.raises(ValueError, match=r"row_len=32: data=.digits. has rows"):
        dataclasses.replace(RUN, data="digits")


@pytest.mark.parametrize("objective", [autoregressive, any_order])
def test_a_class_is_dropped_as_often_as_asked(objective):
    model = dataclasses.replace(
        MODEL, predicts=objective.NEEDS.predicts[0], attention="causal"
    )
    name = objective.__name__.rpartition(".")[2]
    config = dataclasses.replace(
        RUN, model=model, objective=name, options={"drop_first": 0.25}
    )
    tokens = jnp.full((4000, 4), 7)
    batch = objectives.find(name).noise(config)({"tokens": tokens}, jax.random.key(0))
    dropped = np.asarray(batch["tokens"] == model.mask_id)
    assert not dropped[:, 1:].any() and abs(dropped[:, 0].mean() - 0.25) < 0.03


def test_random_ranks_are_orders_and_groups():
    ranks = np.asarray(any_order.random_ranks((200, 9), jax.random.key(0), 0.5))
    assert (ranks[:, 0] == 0).all() and (ranks[:, 1:] > 0).all()
    singles = np.array([len(set(row)) == 9 for row in ranks])
    assert 0.4 < singles.mean() < 0.75  # some groupings are of single positions too
    for row in ranks:
        counts = np.bincount(row)[1:]
        assert counts[counts > 0].sum() == 8
    one_by_one = np.asarray(any_order.random_ranks((200, 9), jax.random.key(1)))
    assert (np.sort(one_by_one, 1) == np.arange(9)).all()
    # Every position is as often first as any other.
    first = np.bincount(one_by_one[:, 1:].argmin(1), minlength=8)
    assert first.min() > 10


def test_what_a_token_and_a_query_see():
    seen = np.asarray(any_order.twice(jnp.array([[0, 2, 1, 1]])))[0].astype(int)
    tokens = [[1, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 1, 1]]
    np.testing.assert_array_equal(seen[:4], np.pad(tokens, ((0, 0), (0, 4))))
    queries = [[0, 0, 0, 0], [1, 0, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0]]
    np.testing.assert_array_equal(seen[4:, :4], queries)
    np.testing.assert_array_equal(
        seen[4:, 4:], [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    )


def test_frechet_is_that_of_two_gaussians():
    draw = np.random.default_rng(0)
    base = draw.normal(size=(400, 3))
    base = (base - base.mean(0)) @ np.linalg.inv(
        np.linalg.cholesky(np.cov(base, rowvar=False)).T
    )  # mean 0 and covariance 1, exactly
    assert abs(images.frechet(base, base)) < 1e-9
    assert abs(images.frechet(base, base + [1, 2, 2]) - 9) < 1e-9
    # Of scales s and t: the sum of (s - t) ** 2.
    assert abs(images.frechet(base, base * [1, 2, 4]) - (0 + 1 + 9)) < 1e-8
    turn = np.linalg.qr(draw.normal(size=(3, 3)))[0]
    one, two = base * [1, 2, 4], base * [3, 1, 1]
    straight = images.frechet(one, two)
    assert abs(images.frechet(one @ turn, two @ turn) - straight) < 1e-8
    assert abs(images.frechet(one, two) - images.frechet(two, one)) < 1e-8


def test_intervals_of_shares():
    low, high = quality.wilson(45, 50)
    assert abs(low - 0.7864) < 1e-3 and abs(high - 0.9565) < 1e-3  # Wilson's
    assert quality.wilson(50, 50)[0] < 1


def blobs(count, seed, spread=2.0):
    """Images whose classes a classifier can tell: a bright stripe for each."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    made = draw.uniform(0, spread, (count, 8, 8))
    made[np.arange(count), labels % 8, :4] += 10
    made[labels >= 8, :, 6] += 10
    return np.clip(made, 0, 16).astype(np.uint8), labels.astype(np.int32)


def test_real_images_are_worth_more_than_wrong_ones():
    by = images.judge(blobs(400, 0), blobs(200, 1))
    assert by.accuracy > 0.95
    fresh = images.worth(by, *blobs(300, 2))
    assert fresh.accuracy > 0.95 and np.mean(fresh.coverage) > 0.9
    low, high = fresh.frechet_interval
    assert low <= fresh.frechet <= high
    pixels, labels = blobs(300, 2)
    wrong = images.worth(by, pixels, np.roll(labels, 1))
    assert wrong.accuracy < 0.05 and np.mean(wrong.coverage) < 0.2
    # One image again and again: right, and of no variety.
    same = pixels[np.arange(10)][labels]
    poor = images.worth(by, same, labels)
    assert poor.accuracy > 0.95 and np.mean(poor.coverage) < 0.6
    # One class alone: far away.
    one = images.worth(by, np.repeat(pixels[:1], 300, 0), labels)
    assert one.frechet > 2 * fresh.frechet_interval[1]


def test_a_sheet_shows_every_image_dark_on_light(tmp_path):
    pictures = np.zeros((3, 8, 8), np.uint8)
    pictures[1] = 16
    images.sheet(tmp_path / "s.png", pictures, columns=2, scale=1)
    page = matplotlib.image.imread(tmp_path / "s.png")[..., 0]
    assert page.shape == (20, 20)
    assert page[1:9, 11:19].max() == 0 and page[:10, :10].min() == 1
    assert page[10:].min() == 1
    visual.save(str(tmp_path / "one.png"), [[0] * 64])
    with pytest.raises(ValueError, match="no whole image"):
        visual.save(str(tmp_path / "one.png"), [[0] * 63])
    with pytest.raises(ValueError, match="must end in"):
        visual.check("picture.jpg")


def test_the_real_digits_have_their_split_and_hash(tmp_path):
    pytest.importorskip("sklearn")
    from pdecode.data import digits as data

    found = {split: data.images(split, str(tmp_path)) for split in data.SPLITS}
    sizes = [len(labels) for _, labels in found.values()]
    assert sizes == [1307, 136, 354] and sum(sizes) == 1797
    pixels, labels = data.shipped()
    everything = {digits.record(*each).tobytes() for each in zip(pixels, labels)}
    parts = [
        {digits.record(*each).tobytes() for each in zip(*found[split])}
        for split in data.SPLITS
    ]
    assert set.union(*parts) == everything and not parts[0] & (parts[1] | parts[2])
    stream = packing.load_split("train", str(tmp_path), texts.KINDS["digits"].stream)
    assert packing.fingerprint(stream)[:12] == "b513250b91d2"
    with pytest.raises(ValueError, match="unknown split 'test'"):
        data.images("test")


KINDS = {
    "raster": ("autoregressive", {}),
    "order": ("any_order", {"predicts": "masked"}),
    "arpg": ("any_order", {"predicts": "masked"}),
    "masked": (
        "masked_diffusion",
        {"predicts": "masked", "attention": "bidirectional"},
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of models; one was trained, for two steps, on images made up."""
    root, found = tmp_path_factory.mktemp("runs"), {}
    stream = np.concatenate([digits.record(picture(i), i % 10) for i in range(8)])
    streams = (stream.astype(np.uint16),) * 2
    for kind, (objective, fields) in KINDS.items():
        model = Config(
            vocab_size=digits.VOCAB_SIZE, width=8, num_layers=2, num_heads=2,
            mlp_width=8, rope=None, tied=True, max_positions=digits.RECORD,
            mask_id=digits.MASK_ID, name=kind, **fields,
        )  # fmt: skip
        options = {"is_two_pass": True} if kind == "arpg" else {}
        config = TrainConfig(
            name=kind, model=model, objective=objective, data="digits", steps=2,
            warmup_steps=1, row_len=digits.RECORD, batch_size=4, eval_every=2,
            checkpoint_every=2, eval_rows=2, options=options,
        )  # fmt: skip
        found[kind] = str(root / kind)
        if kind == "order":
            folder, quiet = root / kind, {"log": lambda line: None}
            train(config, folder, streams=streams, mesh={"data": 1}, **quiet)
            continue
        (root / kind).mkdir()
        own = objectives.find(objective)
        params = jax.device_get(own.start(config, jax.random.key(0), None))
        record = export.describe(config, params)
        export.write(root / kind, "weights", params, record, dtype=np.float32)
    return found


ONE_EACH = ("zipar 4", "arpg 8", "lpd 8 guided", "mask halton 8")


def test_a_run_of_digits_draws_by_every_kind_of_method(runs, tmp_path):
    """From a trained folder to the lines of the suite, its table and its plot."""
    by = images.judge(blobs(100, 0), blobs(100, 1))
    entries = {entry.name: entry for entry in suite.ENTRIES}
    assert len(entries) == len(suite.ENTRIES)
    lines = []
    for name in ONE_EACH:
        entry = entries[name]
        folder = runs[entry.model.removeprefix("digits_")]
        made = suite.draw(entry._replace(model=folder), 20)
        assert made.images.shape == (20, 8, 8) and made.images.max() < 17
        assert made.classes.tolist() == [*range(10)] * 2
        lines.append(suite.line(entry, by, made))
    calls = {line.name: line.calls for line in lines}
    assert calls == {
        "zipar 4": 8 + 7 * 4, "arpg 8": 8, "lpd 8 guided": 16, "mask halton 8": 8
    }  # fmt: skip
    best = images.worth(by, *blobs(100, 2))
    text = suite.table(lines, by, best)
    assert all(name in text for name in ONE_EACH) and "classifier: " in text
    suite.plot(lines, best, str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_generate_writes_a_picture_and_watch_shows_it_fill(runs, tmp_path, capsys):
    path = tmp_path / "digits.png"
    args = ["generate", "--model", runs["arpg"], "--method", "arpg", "--class", "7,?"]
    args += ["--set", "steps=4", "--quiet"]
    assert main.main([*args, "--out", str(path)]) == 0
    drawn = capsys.readouterr().out
    assert len([line for line in drawn.split("\n") if len(line) == 16]) == 16
    assert matplotlib.image.imread(path).shape == (160, 320, 4)
    assert main.main([*args, "--watch"]) == 0
    shown = capsys.readouterr().out.split("\n")
    steps = [line for line in shown if line.startswith("step ")]
    is_open = [line.count("░░") for line in steps if " row 0" in line]
    assert is_open == sorted(is_open, reverse=True) and is_open[-1] == 0 < is_open[0]
    assert main.main([*args, "--out", str(tmp_path / "digits.jpg")]) == 2
    assert "must end in" in capsys.readouterr().err


def test_the_configs_of_noise_load():
    root = pathlib.Path(__file__).parent.parent / "configs"
    for name in ("one_step", "staged"):
        config = settings.load(root / f"digits_{name}.py")
        assert config.name == config.model.name == f"digits_{name}"
        objectives.find(config.objective).start(config, jax.random.key(0), None)
    assert config.options.grid.lanes() == [1, 4, 16]


@pytest.mark.parametrize("name", ["raster", "raster2d", "order", "masked"])
def test_the_configs_of_digits_load(name):
    root = pathlib.Path(__file__).parent.parent / "configs"
    config = settings.load(root / f"digits_{name}.py")
    assert config.name == config.model.name == f"digits_{name}"
    assert config.data == "digits" and config.row_len == digits.RECORD
    # One of them has no table of positions: its rows are those of the image.
    rope = config.model.rope
    assert (rope is not None) == (name == "raster2d")
    assert rope is None or (rope.columns, rope.before) == (digits.SIDE, 1)


def test_digits_is_the_first_model_that_a_method_takes(runs, monkeypatch):
    some = tuple(runs[kind] for kind in ("raster", "order", "masked"))
    monkeypatch.setitem(embedded.SETS, "digits", some)
    sizes = {"max_new_tokens": 64, "row_length": 8}
    for method, kind in (("zipar", "raster"), ("lpd", "order"), ("halton", "masked")):
        found = assembly.assemble(recipes.find(method), sizes, "digits", None)
        assert found.names == [runs[kind]]


@pytest.mark.parametrize("option", [("--out", "a.png"), ("--class", "7")])
def test_images_of_a_text_model_are_refused_before_it_decodes(option, capsys, tmp_path):
    option = (option[0], str(tmp_path / option[1]) if option[0] == "--out" else "7")
    source = () if option[0] == "--class" else ("--prompt", "x")
    arguments = ["generate", "--model", "target", *source, *option]
    assert main.main(arguments) == main.BAD_INPUT
    assert "target draws no images" in capsys.readouterr().err
