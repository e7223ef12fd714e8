"""The byte tokenizer, the corpus and its split, packing, and the held-out snippets."""

import subprocess
import sys

import numpy as np
import pytest

from pdecode.data import corpus, packing, snippets, texts
from pdecode.models import bytes as text


@pytest.mark.parametrize(
    "string", ["", "def f(x):\n    return x\n", "naïve ☃ 🙂", "\0"]
)
def test_tokenizer_inverts_itself(string):
    ids = text.tokenizer.encode(string, eos=True)
    assert ids[0] == text.BOS_ID and ids[-1] == text.EOS_ID
    assert max(ids) < text.VOCAB_SIZE
    assert text.tokenizer.decode(ids) == string


def test_tokenizer_is_total():
    assert text.tokenizer.decode([0xFF, 0x61, text.MASK_ID]) == "\ufffda"
    assert text.tokenizer.decode(np.array([104, 105])) == "hi"
    assert text.tokenizer.encode("\ud800", bos=False) == [ord("?")]
    with pytest.raises(ValueError, match="-1"):
        text.tokenizer.decode([-1])


def test_documents_are_top_level_definitions():
    source = (
        '"""Doc."""\nimport os\n\nX = """\ndef no():\n"""\n\n\n# why\n@cache\n'
        "def f():\n    def g():\n        pass\n\n\nclass A:\n    pass\nY = 1; Z = 2\n"
        "W = 3\n# end\n"
    )
    found = corpus.documents(source)
    assert [chunk.split("\n")[0] for chunk in found] == [
        '"""Doc."""',
        "# why",
        "class A:",
        "Y = 1; Z = 2",
    ]
    assert found[-1].endswith("# end\n")
    assert all(chunk.endswith("\n") for chunk in found)
    assert corpus.documents("def broken(:\n") == ["def broken(:\n"]
    assert corpus.documents("\n") == []


def test_split_is_by_path_and_leaves_the_heldout_files_out(tmp_path):
    names = [f"pkg/m{i}.py" for i in range(200)]
    skipped = ["test/a.py", "pkg/tests/b.py", "site-packages/c.py", "textwrap.py"]
    for name in names + skipped:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"x = {name!r}\n")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    found = {s: dict(corpus.sources(s, tmp_path)) for s in ("train", "validation")}
    assert set(found["train"]) | set(found["validation"]) == set(names)
    assert not set(found["train"]) & set(found["validation"])
    assert 0 < len(found["validation"]) < 30
    with pytest.raises(ValueError, match="train, validation"):
        next(corpus.sources("heldout"))


def test_heldout_text_is_small_licensed_and_not_trained_on():
    folder = corpus.pathlib.Path(snippets.__file__).parent / "heldout"
    assert (folder / "LICENSE.txt").exists()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 150_000
    assert set(snippets.documents()) == set(corpus.HELDOUT_PATHS)
    assert all(corpus.split_of(name) == "heldout" for name in corpus.HELDOUT_PATHS)


def test_prompts_end_at_line_boundaries_and_continue():
    prompts = snippets.prompts(40)
    whole = {
        f"{name}:{i}": chunk
        for name, chunks in snippets.documents().items()
        for i, chunk in enumerate(chunks)
    }
    for snippet in prompts:
        assert snippet.prompt.endswith("\n")
        assert 96 <= len(snippet.prompt.encode()) <= 256
        assert len(snippet.reference.encode()) >= 96
        assert whole[snippet.name] == snippet.prompt + snippet.reference
    assert len({s.name for s in prompts}) == 40
    assert snippets.prompts(3) == prompts[:3]
    with pytest.raises(ValueError, match="there are"):
        snippets.prompts(10_000)


def test_sampler_depends_on_seed_and_step_only_and_repeats_no_token():
    tokens = np.arange(1000, dtype=np.uint16)
    sampler = packing.sampler(tokens, row_len=16, batch_size=4, seed=3)
    again = packing.sampler(tokens, row_len=16, batch_size=4, seed=3)
    np.testing.assert_array_equal(sampler.batch(37), again.batch(37))
    epoch = [sampler.batch(step) for step in range(sampler.batches_per_epoch)]
    seen = np.concatenate(epoch).ravel()
    assert len(set(seen.tolist())) == len(seen) >= 0.9 * len(tokens)
    other = sampler.batch(sampler.batches_per_epoch)
    assert not np.array_equal(epoch[0], other)
    with pytest.raises(ValueError, match="lower batch_size"):
        packing.sampler(tokens[:60], row_len=16, batch_size=4, seed=0)
    packing.sampler(tokens[:64], row_len=16, batch_size=4, seed=0)


def test_every_token_is_seen_equally_often():
    """The ends too: 400 epochs, each token within five deviations of the mean."""
    tokens = np.arange(103, dtype=np.uint16)
    sampler = packing.sampler(tokens, row_len=10, batch_size=3, seed=0)
    num_steps = 400 * sampler.batches_per_epoch
    seen = np.concatenate([sampler.batch(step).ravel() for step in range(num_steps)])
    counts = np.bincount(seen, minlength=103)
    share = 90 / 103
    deviation = np.sqrt(400 * share * (1 - share))
    assert np.abs(counts - 400 * share).max() < 5 * deviation


def test_the_shuffle_is_drawn_once_an_epoch():
    packing._order.cache_clear()
    tokens = np.arange(1000, dtype=np.uint16)
    sampler = packing.sampler(tokens, row_len=16, batch_size=4, seed=3)
    for step in range(2 * sampler.batches_per_epoch):
        sampler.batch(step)
    assert packing._order.cache_info().misses == 2


@pytest.mark.parametrize("length", [5, 16, 17, 100, 128])
@pytest.mark.parametrize("stride", [8, 15])
def test_windows_score_every_token_but_the_first_once(length, stride):
    tokens = np.arange(length, dtype=np.uint16)
    rows, scored = packing.windows(tokens, 16, stride)
    assert sorted(rows[scored].tolist()) == list(range(1, length))
    assert not scored[1:, 0].any()  # the first of a row has nothing before it


def test_fill_after_eos_keeps_the_text_before():
    draw = np.random.default_rng(0)
    rows = draw.integers(0, 255, (64, 32)).astype(np.int32)
    rows[:, 20] = text.EOS_ID
    filled = packing.fill_after_eos(rows, 1.0, 0, 0)
    np.testing.assert_array_equal(filled[:, :21], rows[:, :21])
    tails = (filled[:, 21:] == text.EOS_ID).all(axis=1)
    assert 0 < tails.sum() < 64
    same = filled[~tails] == rows[~tails]
    assert same.all()
    np.testing.assert_array_equal(packing.fill_after_eos(rows, 0.0, 0, 0), rows)


def test_stream_round_trip(tmp_path):
    tokens = packing.stream([b"ab", b""])
    bos, eos = text.BOS_ID, text.EOS_ID
    assert tokens.tolist() == [bos, 97, 98, eos, bos, eos]
    assert packing.num_bytes(tokens) == 2
    packing.save(tmp_path / "train.npy", tokens)
    loaded = packing.load_split("train", str(tmp_path))
    assert packing.fingerprint(loaded) == packing.fingerprint(tokens)


def test_no_two_texts_share_a_hash():
    small, wide = np.array([7, 9]), np.array([7, 9 + 2**16])
    assert packing.fingerprint(small) != packing.fingerprint(wide)
    same = small.astype(np.int64), small.astype(np.uint16)
    assert packing.fingerprint(same[0]) == packing.fingerprint(same[1])
    halves = np.array([7, 0, 9, 1]), np.array([7, 9 + 2**16])
    assert packing.fingerprint(halves[0]) != packing.fingerprint(halves[1])


def test_missing_rows_name_where_their_command_stands(tmp_path):
    with pytest.raises(ValueError, match=r"the config's docstring has its command"):
        texts.read(str(tmp_path), "rows")


def test_both_texts_of_a_folder_or_none(tmp_path):
    tokens = packing.stream([b"ab"])
    packing.save(tmp_path / "train.npy", tokens)
    with pytest.raises(ValueError, match=r"holds train\.npy but no validation\.npy"):
        texts.read(str(tmp_path))
    packing.save(tmp_path / "validation.npy", tokens[:3])
    assert [len(each) for each in texts.read(str(tmp_path))] == [4, 3]
    (tmp_path / "train.npy").unlink()
    with pytest.raises(ValueError, match=r"holds validation\.npy but no train\.npy"):
        texts.read(str(tmp_path))
    (tmp_path / "train.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"train\.npy is no \.npy array"):
        texts.read(str(tmp_path))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([97, 98, 300], r"token 300 at place 2: no id of model\.vocab_size=260"),
        ([97, -1, 98], "token -1 at place 1"),
        ([97, text.MASK_ID, 98], "token 259 at place 1: the mask id"),
        ([], "has 0 tokens and takes 2 at least"),
        ([text.BOS_ID, text.EOS_ID], "has no byte to score"),
        ([0.5, 1.5, 2.5], "must be integers in one dimension, but is float64"),
        ([[1, 2], [3, 4]], r"of shape \(2, 2\)"),
    ],
)
def test_a_text_that_cannot_be_scored_is_refused(tokens, message):
    made = np.array(tokens) if len(tokens) else np.zeros(0, np.uint16)
    found = texts.Text(made, "validation", "byte", (text.BOS_ID,))
    with pytest.raises(ValueError, match=f"the validation text.*{message}"):
        texts.check(found, vocab_size=260, mask_id=text.MASK_ID, min_len=2)


def test_a_text_says_what_of_it_is_scored():
    tokens = packing.stream([b"ab", b"c"])
    found = texts.Text(tokens, "train", "byte", (text.BOS_ID,)).describe()
    assert (found["tokens"], found["scored_tokens"], found["units"]) == (7, 5, 3)
    found = texts.Text(tokens, "train", "token").describe()
    assert (found["scored_tokens"], found["units"]) == (6, 6)


def test_builder_serves_the_corpus_without_tensorflow(tmp_path, monkeypatch):
    """The builder's examples are the corpus's documents, in order."""
    library = tmp_path / "lib"
    library.mkdir()
    for i in range(40):
        (library / f"m{i}.py").write_text(f"x = {i}\n\n\ndef f():\n    return {i}\n")
    monkeypatch.setattr(corpus, "library_root", lambda: library)
    from pdecode.data import stdlib_code

    expected = [
        chunk.encode()
        for _, source in corpus.sources("train", library)
        for chunk in corpus.documents(source)
    ]
    found = list(stdlib_code.documents("train", str(tmp_path / "tfds")))
    assert found == expected
    assert "tensorflow" not in sys.modules


PREPARE = """
import pathlib, sys
from pdecode.data import corpus, packing
corpus.library_root = lambda: pathlib.Path({library!r})
print(packing.fingerprint(packing.load_split("train", {folder!r})))
"""


@pytest.mark.thorough
def test_two_processes_prepare_a_folder_once(tmp_path):
    library = tmp_path / "lib"
    library.mkdir()
    for i in range(40):
        (library / f"m{i}.py").write_text(f"x = {i}\n")
    code = PREPARE.format(library=str(library), folder=str(tmp_path / "data"))
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    answers = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    hashes = [out.splitlines()[-1] for out, _ in answers]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 64
    # The one that prepares says so; the other finds it done.
    assert sum("Downloading" in out for out, _ in answers) == 1
