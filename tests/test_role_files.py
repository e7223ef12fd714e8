"""Roles that are files: read, refused, made by a command, and decoded with."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import pdecode
from pdecode import assembly, cli, knobs, methods, recipes
from pdecode.checkpoints import tensors
from pdecode.cli import main as command_line
from pdecode.contracts import Judge
from pdecode.data import datastore, role_files, trigrams
from pdecode.models import embedded

SIZE = 260  # ids of the embedded target


@pytest.fixture
def folder(tmp_path):
    """A file of every kind."""
    gen = np.random.default_rng(0)
    _, texts = datastore.build([[1, 2, 3, 1, 2], [4, 1, 2]])
    datastore.save(tmp_path / "texts.npy", texts)
    _, found = trigrams.build([[1, 2, 3, 1, 2, 4], [4, 1, 2]], 3)
    trigrams.save(tmp_path / "table.npz", found)
    nearest = (np.arange(SIZE)[:, None] + np.arange(1, 3)) % SIZE
    np.save(tmp_path / "nearest.npy", nearest)
    np.save(tmp_path / "shares.npy", np.eye(SIZE, dtype=np.float32))
    np.save(tmp_path / "background.npy", gen.random(SIZE))
    width = embedded.record_of("target")["config"]["model"]["width"]
    np.savez(tmp_path / "judge.npz", weight=gen.normal(size=width), bias=np.float32(1))
    return tmp_path


def test_each_kind_is_read_as_it_was_written(folder):
    store, texts = role_files.read("store", folder / "texts.npy")
    assert isinstance(store, datastore.Store) and texts.tokens.tolist()[:3] == [1, 2, 3]
    table, found = role_files.read("table", folder / "table.npz")
    again, expected = trigrams.build([[1, 2, 3, 1, 2, 4], [4, 1, 2]], 3)
    assert table == again
    for one, other in zip(found, expected):
        np.testing.assert_array_equal(one, other)
    codes, nearest = role_files.read("codes", folder / "nearest.npy")
    assert codes.size == SIZE and nearest.dtype == jnp.int32
    codes, shares = role_files.read("codes", folder / "shares.npy")
    assert codes.size == SIZE and shares.dtype == jnp.float32
    background, shares = role_files.read("background", folder / "background.npy")
    assert background.vocab_size == SIZE
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-5)
    judge, params = role_files.read("judge", folder / "judge.npz")
    assert isinstance(judge, Judge)
    hidden = jnp.ones((2, len(params["weight"])))
    expected = float(params["weight"].sum()) + 1
    np.testing.assert_allclose(judge.apply(params, hidden), expected, rtol=1e-4)
    # The record is a static argument: equal for equal files.
    assert role_files.read("judge", folder / "judge.npz")[0] == judge


@pytest.mark.parametrize(
    "kind, array, message",
    [
        ("codes", np.zeros(3), "not numbers of 2 axes"),
        ("codes", np.full((3, 1), 7), r"ids in \[0, 3\)"),
        ("codes", np.full((3, 3), np.nan), "numbers from 0"),
        ("background", np.zeros(3), "not all of them 0"),
        ("judge", np.zeros(3), "no .npz of weight and bias"),
        ("codes", np.full((2, 2), "a"), "holds <U1, no numbers"),
        ("background", np.full(2, "a"), "holds <U1, no numbers"),
        ("background", np.ones(2, bool), "holds bool, no numbers"),
        ("table", np.zeros(3), "no table of trigrams"),
        ("store", np.zeros(3), "no datastore"),
    ],
)
def test_what_is_no_such_file_is_named(tmp_path, kind, array, message):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=message):
        role_files.read(kind, tmp_path / "x.npy")
    # Nothing that is unpickled, and nothing that is missing.
    np.save(tmp_path / "y.npy", np.array([{}]), allow_pickle=True)
    for name in ("y.npy", "z.npy"):
        with pytest.raises(ValueError):
            role_files.read(kind, tmp_path / name)


@pytest.mark.parametrize(
    "kind, name",
    [("table", "table.npz"), ("judge", "judge.npz"), ("store", "texts.npy")],
)
def test_other_kinds_and_files_cut_off_are_named(folder, kind, name):
    """Whatever numpy raises for them."""
    whole = (folder / name).read_bytes()
    (folder / "cut").write_bytes(whole[: len(whole) // 2])
    for other in ("cut", *({"table.npz", "texts.npy", "judge.npz"} - {name})):
        with pytest.raises(ValueError, match=r"is no (table|datastore|\.npz)"):
            role_files.read(kind, folder / other)
    for kind in ("codes", "background"):
        for other in ("cut", "table.npz"):
            with pytest.raises(ValueError, match=r"no \.npy file|several arrays"):
                role_files.read(kind, folder / other)


def test_a_judge_of_another_width_is_refused(folder):
    np.savez(folder / "wide.npz", weight=np.ones(7), bias=np.float32(1))
    np.savez(folder / "text.npz", weight=np.full(7, "a"), bias=np.float32(1))
    recipe = recipes.find("judge_decoding")
    for name, message in (
        ("wide.npz", "of 7 numbers, but those of target have"),
        ("text.npz", "weight <U1"),
    ):
        files = {"judge": str(folder / name)}
        with pytest.raises(ValueError, match=message):
            assembly.assemble(recipe, {"max_new_tokens": 8}, None, None, files=files)


def test_every_role_that_is_no_model_can_be_named(folder):
    """Of every method: a folder holds it, or a file does, or it is refused by name."""
    given = {
        "store": "texts.npy",
        "table": "table.npz",
        "judge": "judge.npz",
        "background": "background.npy",
    }
    built, without = set(), set()
    for name in methods.__all__:
        recipe = recipes.find(name)
        kinds = {
            role: assembly.file_kind(recipe, role)
            for role in knobs.roles(recipe.method)[1:]
            if assembly.file_kind(recipe, role)
        }
        if not kinds:
            continue
        codes = "shares.npy" if name == "pcg" else "nearest.npy"
        files = {
            role: str(folder / given.get(kind, codes)) for role, kind in kinds.items()
        }
        found = assembly.assemble(
            recipe, {"max_new_tokens": 8}, None, None, files=files
        )
        assert len(found.models) == len(knobs.roles(recipe.method))
        built.add(name)
        with pytest.raises(ValueError, match=r"--file|needs a"):
            assembly.assemble(recipe, {"max_new_tokens": 8}, None, None)
        without.add(name)
    assert {"rest", "fastcoder", "aded", "lantern", "pcg", "judge_decoding"} <= built
    corpus = {"corpus": str(folder / "texts.npy")}
    with pytest.raises(ValueError, match="drafter='drafter' would not be read"):
        assembly.assemble(recipes.find("rest"), {}, None, "drafter", files=corpus)
    again = assembly.assemble(recipes.find("rest"), {}, None, corpus["corpus"])
    assert again.names[1] == corpus["corpus"]
    with pytest.raises(ValueError, match=r"rest takes a file as its corpus, but .*'x'"):
        assembly.assemble(recipes.find("rest"), {}, None, None, files={"x": "y"})
    with pytest.raises(ValueError, match="opt_tree takes no files"):
        assembly.assemble(recipes.find("opt_tree"), {}, None, None, files={"x": "y"})


def test_a_command_makes_what_another_decodes_with(tmp_path, capsys):
    """Texts in, a datastore out, drafts from it: the tokens of plain decoding."""
    (tmp_path / "a.py").write_text("def f(n):\n    return n + 1\n" * 3)
    (tmp_path / "b.jsonl").write_text('{"prompt": "def g(n):"}\n{"ids": [100, 101]}\n')
    texts = [str(tmp_path / name) for name in ("a.py", "b.jsonl")]
    out = str(tmp_path / "texts.npy")
    assert command_line.main(["datastore", out, "--texts", *texts]) == 0
    assert "3 documents" in capsys.readouterr().out
    table = str(tmp_path / "table.npz")
    words = ["datastore", table, "--texts", *texts, "--kind", "trigrams"]
    assert command_line.main(words) == 0
    capsys.readouterr()
    words = ["generate", "--prompt", "def f(n):", "--max-new-tokens", "12", "--json"]
    plain = said(words, capsys)
    own = said(
        [*words, "--method", "rest", "--datastore", out, "--set", "num_draft=6"], capsys
    )
    assert own["tokens"] == plain["tokens"] and own["drafter"] == out
    assert drafted(own["stats"])
    for more, message in (
        (["--method", "rest", "--file", "corpus"], "write ROLE=FILE"),
        (["--method", "rest", "--datastore", out, "--file", "corpus=x"], "given twice"),
        (["--method", "aded"], "--file table=FILE"),
        (["--method", "opt_tree", "--datastore", out], "takes no files"),
    ):
        assert command_line.main([*words, *more]) == cli.main.BAD_INPUT
        assert message in capsys.readouterr().err
    assert (
        command_line.main(["datastore", "x", "--texts", *texts]) == cli.main.BAD_INPUT
    )
    assert "must end in .npy" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line, more, message",
    [
        ('{"ids": []}', [], "documents hold no token"),
        ('{"ids": [260]}', [], r"document 1: 260 is no id of target, whose ids lie in"),
        ('{"ids": [-1]}', [], "document 1: -1 is no id"),
        ('{"ids": ["a"]}', [], "document 1: 'a' is no id"),
        ('{"ids": [1, 2]}', ["--num-kept", "3"], "--num-kept 3 is for --kind trigrams"),
        (
            json.dumps({"prompt": "def f(n): " * 99}),
            ["--model", "digits"],
            "is no text of digits",
        ),
    ],
)
def test_documents_that_are_no_text_of_the_model(tmp_path, capsys, line, more, message):
    (tmp_path / "a.jsonl").write_text(line)
    words = ["datastore", str(tmp_path / "x.npy"), "--texts", str(tmp_path / "a.jsonl")]
    assert command_line.main([*words, *more]) == cli.main.BAD_INPUT
    said = capsys.readouterr().err
    assert message in said and len(said) < 300
    assert not (tmp_path / "x.npy").exists()


def drafted(stats):
    """Whether a call had more lanes than the one of plain decoding."""
    return np.sum(stats["query_tokens"]) > np.sum(stats["calls"])


def said(words, capsys):
    assert command_line.main(words) == 0
    return json.loads(capsys.readouterr().out)


def test_trigrams_and_published_heads_decode_by_name(tmp_path):
    """An ADED table and a Medusa folder in the authors' layout, by their paths."""
    tokens = list(b"def f(n):\n    return n + 1\n" * 3)
    trigrams.save(tmp_path / "table.npz", trigrams.build([tokens], 4)[1])
    common = {"max_new_tokens": 8, "seed": 0}
    plain = pdecode.generate("def f(n):", **common)
    own = pdecode.generate(
        "def f(n):", method="aded", files={"table": str(tmp_path / "table.npz")},
        num_nodes=4, max_depth=3, **common,
    )  # fmt: skip
    assert own.tokens == plain.tokens and drafted(own.stats)
    width = embedded.record_of("target")["config"]["model"]["width"]
    gen, arrays = np.random.default_rng(0), {}
    for head in range(2):
        arrays[f"{head}.0.linear.weight"] = gen.normal(size=(width, width)) * 0.02
        arrays[f"{head}.0.linear.bias"] = np.zeros(width)
        arrays[f"{head}.1.weight"] = gen.normal(size=(SIZE, width))
    heads = tmp_path / "heads"
    heads.mkdir()
    (heads / "config.json").write_text(json.dumps({"medusa_num_heads": 2}))
    arrays = {name: each.astype(np.float32) for name, each in arrays.items()}
    tensors.write(heads / "medusa_lm_head.safetensors", arrays)
    own = pdecode.generate(
        "def f(n):", method="medusa", drafter=str(heads), branching=(2, 1), **common
    )
    assert own.tokens == plain.tokens and drafted(own.stats)
    with pytest.raises(ValueError, match=r"no Medusa heads|safetensors"):
        pdecode.generate("a", method="medusa", drafter=str(tmp_path), **common)
