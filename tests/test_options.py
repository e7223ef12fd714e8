"""Every option is checked, used, or refused; a finished decode is always printed."""

import io
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_chat import refused, word_folder
from test_checkpoints import GOLDEN, command
from test_config_fields import SIZES
from test_stored_tensors import random_tensors, write

import pdecode
from pdecode import generation
from pdecode.cli import main as cli
from pdecode.drafters import ngram
from pdecode.models import transformer

SPECULATIVE = ("--method", "speculative_sampling", "--prompt", "x")


@pytest.fixture(autouse=True)
def no_cache_on_disk(monkeypatch):
    monkeypatch.setattr("pdecode.cli.program_cache.enable", lambda **_: None)


@pytest.mark.parametrize(
    "wanted, arguments",
    [
        ("dtype='int7' must be one of float32", ("--prompt", "x", "--dtype", "int7")),
        (
            "autoregressive takes no drafter, but drafter='no/such/path'",
            ("--prompt", "x", "--drafter", "no/such/path"),
        ),
        (
            "jacobi takes no drafter",
            ("--prompt", "x", "--method", "jacobi", "--drafter", "drafter"),
        ),
        (
            "needs a causal model as its drafter, but diffusion is a model",
            (*SPECULATIVE, "--drafter", "diffusion"),
        ),
        (
            "top_k=0 must lie in [1, 2.14748e+09]; None switches it off",
            (*SPECULATIVE, "--set", "top_k=0"),
        ),
        ("top_k=-1", (*SPECULATIVE, "--set", "top_k=-1")),
        ("None switches it off", (*SPECULATIVE, "--set", "top_k=-1")),
        (
            "--set num_draft=3: num_draft is given twice",
            (*SPECULATIVE, "--set", "num_draft=2", "--set", "num_draft=3"),
        ),
        (
            "--temperature and --set temperature=...: give one",
            (*SPECULATIVE, "--set", "temperature=1", "--temperature", "0"),
        ),
    ],
)
def test_options_that_were_passed_over_in_silence(wanted, arguments):
    refused(wanted, *arguments)


def test_options_of_one_suite_are_refused_by_the_other():
    for option in (("--shapes", "3m"), ("--dtype", "float32")):
        code, out, err = command("bench", "--suite", "loop", *option)
        assert (code, out) == (2, "") and "is for --suite hotpath" in err
    code, out, err = command("bench", "--suite", "loop", "--quick")
    assert (code, out) == (2, "")
    assert "--quick is for --suite hotpath or speculative or parallelbench" in err


def test_a_dtype_is_that_of_an_embedded_model_too():
    model, params, _ = generation.load("drafter", "bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    rows = pdecode.from_rows([[1, 2]], max_new_tokens=1)
    cached = jax.tree.leaves(model.init_cache(rows, 4))
    assert {leaf.dtype.name for leaf in cached} == {"bfloat16"}
    heads = jax.tree.leaves(generation.load("heads", "float16")[1])
    assert {leaf.dtype.name for leaf in heads} == {"float16"}


# A long suffix to look up.


def plain_lookup(tokens, num_draft, max_ngram):
    """What followed the leftmost of the longest matches, by search."""
    for size in range(min(max_ngram, len(tokens) - 1), 0, -1):
        suffix = tokens[len(tokens) - size :]
        for start in range(len(tokens) - size):
            if tokens[start : start + size] == suffix:
                after = tokens[start + size :][:num_draft]
                return after + [-1] * (num_draft - len(after))
    return [-1] * num_draft


@pytest.mark.parametrize("max_ngram", [1, 3, 9, 20])
def test_lookup_of_long_suffixes_is_a_plain_search(max_ngram):
    find = jax.jit(lambda t, n: ngram.lookup(t, n, 4, max_ngram))
    draws = np.random.default_rng(max_ngram)
    for _ in range(30):
        length = int(draws.integers(1, 40))
        tokens = draws.integers(0, 2, length).tolist()
        padded = jnp.asarray(tokens + [0] * (40 - length), jnp.int32)
        got = find(padded, jnp.int32(length)).tolist()
        assert got == plain_lookup(tokens, 4, max_ngram)


def test_a_long_suffix_makes_no_longer_program():
    def size(max_ngram):
        find = jax.jit(lambda t, n: ngram.lookup(t, n, 4, max_ngram))
        return find.lower(jnp.zeros(600, jnp.int32), jnp.int32(9)).as_text().count("\n")

    assert size(500) < 2 * size(16)


# Drafters whose embedding has padding that the target's has not, or the other way.


def causal_folder(folder, seed, vocab_size, width):
    raw = dict(
        SIZES, model_type="llama", vocab_size=vocab_size, hidden_size=width,
        eos_token_id=None,
    )  # fmt: skip
    values = random_tensors(raw)
    draws = np.random.default_rng(seed)
    for name, value in values.items():
        if value.ndim > 1:
            noise = draws.normal(size=value.shape) * value.shape[-1] ** -0.5
            values[name] = noise.astype(np.float32)
    write(folder, raw, values)
    return str(word_folder(folder))


@pytest.mark.parametrize("sizes", [(20, 32), (32, 20)])
def test_drafters_may_be_padded_to_another_size(sizes, tmp_path):
    target = causal_folder(tmp_path / "target", 1, sizes[0], 32)
    drafter = causal_folder(tmp_path / "drafter", 2, sizes[1], 16)
    given = dict(model=target, max_new_tokens=12, prompt=[[1, 7, 8]])
    plain = pdecode.generate(**given)
    with pytest.warns(UserWarning, match="what lies behind 20 is padding"):
        made = pdecode.generate(
            **given, drafter=drafter, method="speculative_sampling", num_draft=3
        )
    assert made.tokens == plain.tokens
    with pytest.warns(UserWarning, match="padding"):
        job = generation.prepare(
            [[1, 7, 8]], model=target, drafter=drafter, method="speculative_sampling"
        )
    (_, small), params = job.models, job.params["drafter"]
    assert small.vocab_size == sizes[0] == params["embed"].shape[0]
    again, _ = transformer.resized(*generation.load(drafter)[:2], sizes[0])
    assert again is small  # one object: programs are kept by their models
    head = small.head(params)
    if sizes[0] > sizes[1]:
        assert head.bias[:20].tolist() == [0.0] * 20 and (head.bias[20:] < -1e9).all()


def test_drafters_of_another_tokenizer_or_none_are_refused(tmp_path):
    target = causal_folder(tmp_path / "target", 1, 20, 32)
    drafter = causal_folder(tmp_path / "drafter", 2, 32, 16)
    given = dict(model=target, drafter=drafter, method="speculative_sampling")
    path = tmp_path / "drafter" / "tokenizer.json"
    path.write_text(path.read_text().replace('"world"', '"earth"'))
    message = "the drafter has 32 token ids and the target 20: they need one vocab"
    with pytest.raises(ValueError, match=message):
        generation.prepare([[1]], **given)
    path.unlink()
    with pytest.raises(ValueError, match=message):
        generation.prepare([[1]], **given)
    # Ids of the tokenizer that one of the two has no row for.
    short = causal_folder(tmp_path / "short", 2, 10, 16)
    with pytest.raises(ValueError, match="10 token ids and the target 20"):
        generation.prepare([[1]], **(given | dict(drafter=short)))


@pytest.mark.parametrize(
    "method, made, settings",
    [
        ("easy_spec", "@group=2", {"acceptance": "coupled"}),
        ("speculative_sampling", "@shared", {"acceptance": "coupled"}),
        ("slem", "", {}),
    ],
)
def test_drafters_are_made_of_a_named_model(method, made, settings, tmp_path):
    """Whatever they propose, the tokens are those of plain sampling."""
    target = causal_folder(tmp_path / "target", 1, 20, 32)
    drafter = target
    if made != "@group=2":  # of another tokenizer, which shares all words but one
        drafter = causal_folder(tmp_path / "drafter", 1, 24, 32)
        path = tmp_path / "drafter" / "tokenizer.json"
        path.write_text(path.read_text().replace('"world"', '"earth"'))
    given = dict(model=target, max_new_tokens=10, temperature=1.0, num_draft=3)
    job = generation.prepare(
        [[1, 7, 8], [5]], **given, method=method, drafter=drafter + made, **settings
    )
    again = generation.prepare(
        [[1, 7, 8], [5]], **given, method=method, drafter=drafter + made, **settings
    )
    assert again.models == job.models  # programs are kept by their models
    assert job.drafter_name == drafter + made
    found = generation.decoded(job)
    del given["num_draft"]
    assert found.tokens == pdecode.generate([[1, 7, 8], [5]], **given).tokens
    if made == "@shared":
        bias = job.models[1].head(job.params["drafter"]).bias
        words = pdecode.load(target)[2].backend.get_vocab()
        absent = {index for index in range(20) if bias[index] < -1e9}
        assert words["world"] in absent and words["hello"] not in absent


@pytest.mark.parametrize(
    "drafter, message",
    [
        ("target@group=0", "group=0 must be at least 1"),
        ("target@group=x", "no such folder, and of a model can be made NAME@group=N"),
        ("target@layers=2", "or NAME@shared, by the tokens that are"),
        ("heads@group=2", "heads is a set of heads: give it without @group=2"),
        ("no/such@shared", "unknown model 'no/such'"),
    ],
)
def test_what_no_drafter_is_made_of_is_one_line(capsys, drafter, message):
    words = ("generate", "--prompt", "x", "--method", "easy_spec", "--drafter", drafter)
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1


# Output.


def test_letters_that_a_terminal_has_not_lose_no_decode(tmp_path, monkeypatch):
    from tokenizers import Tokenizer, models

    folder = tmp_path / "tiny"
    shutil.copytree(GOLDEN / "llada_tiny", folder)
    words = {f"é{place}": place for place in range(126)}
    Tokenizer(models.WordLevel(words, unk_token="é0")).save(
        str(folder / "tokenizer.json")
    )
    arguments = ["generate", "--model", str(folder), "--prompt-ids", "[[5, 6]]"]
    arguments += ["--max-new-tokens", "4", "--set", "steps=2", "--method", "llada"]
    made = json.loads(command(*arguments, "--json")[1])
    for more in ([], ["--watch"]):
        held = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding="ascii"))
        assert cli.main([*arguments, *more]) == 0
        sys.stdout.flush()
        text = held.getvalue().decode("ascii").splitlines()[-1]
        assert text == made["text"][0].replace("é", "\\xe9") and "\\xe9" in text
