"""The front door: rows named by prompts, batches, own methods, manners."""

import hashlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest
import table
from hypothesis import given, settings
from hypothesis import strategies as st

import pdecode
from pdecode import decode, generation, knobs, methods, prompts, recipes, shown
from pdecode.cli import arguments, generate, interrupt, program_cache
from pdecode.cli import main as cli
from pdecode.evals import compare, lineup

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "llada_tiny"
TINY = ("--model", GOLDEN, "--method", "llada", "--set", "steps=4")
SHORT = (*TINY, "--max-new-tokens", "8")


@pytest.fixture(autouse=True)
def no_cache_on_disk(monkeypatch):
    monkeypatch.setattr("pdecode.cli.program_cache.enable", lambda **_: None)
    monkeypatch.setattr("pdecode.cli.program_cache.curves", lambda: None)


def run(capsys, *words):
    """(exit code, standard output, standard error)."""
    code = cli.main([str(each) for each in words])
    return code, *capsys.readouterr()


# A row's noise is named by its prompt.


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1))
@settings(max_examples=200, deadline=None)
def test_a_row_is_named_by_its_ids_and_its_number_among_equals(rows):
    found = prompts.row_ids(rows)
    assert all(0 <= each < 2**31 for each in found)
    assert len(set(found)) == len(rows)  # equal prompts differ too
    for index, row in enumerate(rows):
        number = rows[:index].count(row)
        assert prompts.row_ids([row] * (number + 1))[number] == found[index]
    assert prompts.row_ids(np.array([[1, 2]])) == prompts.row_ids([[1, 2]])


def test_the_names_of_rows_never_change():
    """What was sampled with a seed is sampled again by a later version."""
    texts = (b"0:1,2", b"1:1,2", b"0:3")  # number among equals, ids
    wanted = [int(hashlib.sha256(text).hexdigest()[:8], 16) >> 1 for text in texts]
    assert prompts.row_ids([[1, 2], [1, 2], [3]]) == wanted


TEXTS = ["def fib(n):", "class A:", "import os", "def fib(n):"]


@pytest.fixture(scope="module")
def sampled():
    """Texts at temperature 1, in one batch of four."""
    return pdecode.generate(TEXTS, temperature=1.0, seed=0, max_new_tokens=12)


@given(st.permutations(range(4)), st.integers(0, 3))
@settings(max_examples=5, deadline=None)
def test_a_prompt_is_answered_as_it_is_alone(sampled, order, junk):
    """In any company and order; equal prompts keep their number among each other."""
    some = [TEXTS[index] for index in order]
    made = pdecode.generate(some, temperature=1.0, seed=0, max_new_tokens=12)
    # The first of two equal ones is the first, whichever was picked.
    wanted = {text: [] for text in TEXTS}
    for text, answer in zip(TEXTS, sampled.text):
        wanted[text].append(answer)
    for text, answer in zip(some, made.text):
        assert answer == wanted[text].pop(0)
    others = [TEXTS[1], *["x" * (junk + 1)] * 2, "y"]
    mixed = pdecode.generate(others, temperature=1.0, seed=0, max_new_tokens=12)
    assert mixed.text[0] == sampled.text[1]


def test_equal_prompts_get_different_answers(sampled):
    assert sampled.text[0] != sampled.text[3]
    alone = pdecode.generate(TEXTS[1], temperature=1.0, seed=0, max_new_tokens=12)
    assert alone.text == [sampled.text[1]] and alone.row_ids == [sampled.row_ids[1]]
    # Another name is another noise, and the same name the same one.
    named = pdecode.generate(
        TEXTS[:1] * 4, temperature=1.0, row_ids=[5, 5, 6, -7], max_new_tokens=12
    )
    assert named.text[0] == named.text[1] != named.text[2]
    assert named.row_ids == [5, 5, 6, -7]


def test_rows_are_named_by_their_prompts_on_the_command_line(capsys):
    more = ("--temperature", "1", "--json")
    both = run(capsys, "generate", *SHORT, "--prompt-ids", "[[1,2],[3]]", *more)[1]
    alone = run(capsys, "generate", *SHORT, "--prompt-ids", "[[3]]", *more)[1]
    assert json.loads(both)["tokens"][1] == json.loads(alone)["tokens"][0]
    named = run(
        capsys, "generate", *SHORT, "--prompt-ids", "[[3],[3]]", "--row-ids", "4,4",
        *more,
    )[1]  # fmt: skip
    first, second = json.loads(named)["tokens"]
    assert first == second and json.loads(named)["row_ids"] == [4, 4]


def test_compare_names_rows_as_generate_does():
    context = compare.prepare(
        compare.Settings(methods=("jacobi",), num_prompts=4, batch_size=2)
    )
    names = [int(each) for batch in context.batches for each in batch.row_ids]
    assert names == prompts.row_ids(context.rows)


@pytest.mark.parametrize(
    "ids, message",
    [([1], "1 row_ids for 2 rows"), ([1, 0.5], "whole"), ([1, 2**31], "32 bits")],
)
def test_names_of_rows_are_checked(ids, message):
    with pytest.raises(ValueError, match=message):
        pdecode.generate(["a", "b"], row_ids=ids)


# What is no number.


def broken_folder(tmp_path):
    """A copy of the tiny model whose head has a NaN in the row of one id."""
    import safetensors.numpy

    folder = tmp_path / "broken"
    folder.mkdir()
    for path in GOLDEN.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    name = next(n for n in tensors if "ff_out" in n and "blocks" not in n)
    tensors[name] = tensors[name].copy()
    tensors[name][5] = np.nan
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


def test_what_is_no_number_ends_with_one_line_and_an_exit_code(capsys, tmp_path):
    folder = broken_folder(tmp_path)
    words = (
        "generate",
        "--model",
        folder,
        "--method",
        "llada",
        "--prompt-ids",
        "[[1]]",
    )
    words += ("--max-new-tokens", "4", "--quiet")
    code, out, err = run(capsys, *words, "--json")
    made = json.loads(out)  # the result is printed all the same
    assert code == generate.NOT_FINITE and made["stopped_by"] == ["not_finite"]
    assert err.count("\n") == 1 and err.startswith("pdecode: error: row 0 ended where")
    assert "--allow-not-finite" in err
    code, out, err = run(capsys, *words, "--allow-not-finite")
    assert (code, err) == (0, "")


# Batches of text.


def test_prompts_of_a_file_are_answered_one_object_a_line(capsys, tmp_path):
    plain, lines = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    plain.write_text("def f(x):\n\nclass B:\n")
    lines.write_text(
        '{"prompt": "def f(x):", "task": 7}\n'
        '{"ids": [257, 99], "id": "b"}\n'
        '"class B:"\n'
    )
    shape = ("--max-new-tokens", "4", "--json")
    code, out, err = run(capsys, "generate", "--prompts", plain, *shape)
    first, second = map(json.loads, out.splitlines())
    assert (code, err) == (0, "") and first["prompt"] == "def f(x):"
    assert first["length"] == len(first["tokens"]) and second["prompt"] == "class B:"
    assert first["stats"]["calls"] == 4 and first["settings"]["max_new_tokens"] == 4
    # In parts, and with what stood on the line.
    code, out, _ = run(
        capsys, "generate", "--prompts", lines, *shape, "--batch-size", "2"
    )
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and found[0]["task"] == 7 and found[1]["id"] == "b"
    assert [found[0]["text"], found[2]["text"]] == [first["text"], second["text"]]
    # Given one by one they are the same.
    code, out, _ = run(
        capsys, "generate", "--prompt", "def f(x):", "--prompt", "class B:", *shape
    )
    assert [json.loads(line)["text"] for line in out.splitlines()] == [
        first["text"], second["text"],
    ]  # fmt: skip


def test_a_prompt_comes_from_standard_input(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("def f(x):"))
    shape = ("--max-new-tokens", "4", "--json")
    _, out, _ = run(capsys, "generate", "--prompt-file", "-", *shape)
    _, wanted, _ = run(capsys, "generate", "--prompt", "def f(x):", *shape)
    assert json.loads(out)["tokens"] == json.loads(wanted)["tokens"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is empty: give a prompt a line"),
        ("{", "line 1: '{' is no JSON"),
        ('"a"\n{"text": "b"}', "line 2: write a text, or an object"),
        ('{"ids": 3}', "write a text, or an object"),
    ],
)
def test_a_file_of_prompts_is_checked(capsys, tmp_path, text, message):
    (tmp_path / "p.jsonl").write_text(text)
    code, _, err = run(capsys, "generate", "--prompts", tmp_path / "p.jsonl")
    assert code == cli.BAD_INPUT and message in err and err.count("\n") == 1


def test_a_dim_line_of_counts_follows_the_text(capsys):
    code, out, err = run(capsys, "generate", *SHORT, "--prompt-ids", "[[1,2]]")
    assert code == 0 and err.startswith("8 tokens, 4 calls (2.00 tokens a call), ")
    assert err.count("\n") == 1 and "compiled in" in err
    again = run(capsys, "generate", *SHORT, "--prompt-ids", "[[1,2]]", "--quiet")
    assert again == (0, out, "")


# A method of one's own.

OWN = """
from pdecode.contracts import Sampling
from pdecode.families import masked, speculative
from pdecode import drafters
from pdecode.rules import commit


def calm(
    model, *, max_new_tokens: int, gamma: float = 0.2, size: int = 3, on: bool = True
):
    del size, on
    rule = commit.entropy_bounded(gamma, commit.order("entropy"))
    return masked.masked_diffusion(
        model, rule, max_new_tokens=max_new_tokens, sampling=Sampling()
    )


def plain(model, *, max_new_tokens, temperature=0.0):
    return speculative.draft_verify(
        model, drafters.nothing(), max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
    )


def slow(network, *, max_new_tokens: int): ...


def lost(model, *, max_new_tokens: int, gamma: "float | str" = 0.1): ...


def short(model, *, gamma: float = 0.1): ...


number = 3
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_a_method_of_ones_own_decodes_and_races(capsys, own):
    words = ("--prompt", "def f(", "--max-new-tokens", "6", "--json")
    code, out, _ = run(
        capsys, "generate", "--method", f"{own}:calm", "--set", "gamma=0.4",
        "--set", "on=false", *words,
    )  # fmt: skip
    made = json.loads(out)
    assert (
        code == 0 and made["method"] == f"{own}:calm" and made["model"] == "diffusion"
    )
    used = {"gamma": 0.4, "size": 3, "on": False, "max_new_tokens": 6}
    assert made["settings"] == used
    calm = recipes.find(f"{own}:calm").method
    assert recipes.find(f"{own}:calm").method is calm  # so that programs are shared
    again = pdecode.generate(
        "def f(", method=calm, gamma=0.4, on=False, max_new_tokens=6
    )
    assert again.text == made["text"] and again.timing["compile_s"] == 0
    # A causal one is found out by building it, and finds the other model.
    plain = recipes.find(f"{own}:plain").method
    assert pdecode.generate("x", method=plain, max_new_tokens=2).model == "target"
    made, notes = lineup.entries([plain, f"{own}:calm"], {}, lineup.Choice(), 6)
    assert [each.recipe.label for each in made] == ["autoregressive", "plain", "calm"]
    assert made[1].guarantee == "lossless" and not notes


@pytest.mark.parametrize(
    "name, message",
    [
        ("slow", "its models must be called model, drafter, heads"),
        ("lost", "argument gamma is annotated as float | str"),
        ("short", "it takes no max_new_tokens; known: gamma"),
        ("number", "has no function 'number'"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_what_is_no_method_is_named(capsys, own, name, message):
    code, _, err = run(capsys, "generate", "--method", f"{own}:{name}", "--prompt", "x")
    assert code == cli.BAD_INPUT and message in err and name in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("place", ["no_such.py:f", "no.such.module:f"])
def test_code_that_is_not_there_is_one_line(capsys, place):
    code, _, err = run(capsys, "compare", "--methods", place)
    assert code == cli.BAD_INPUT and err.count("\n") == 1 and place in err


def test_a_plain_float_is_a_knob_and_a_plain_int_a_size(own):
    found = knobs.parameters(recipes.find(f"{own}:calm").method)
    assert isinstance(found["gamma"].kind, knobs.Knob)
    assert found["max_new_tokens"].kind == knobs.Size(1)
    method = recipes.find(f"{own}:calm").method
    traced, sizes = knobs.split(method, {"max_new_tokens": 4, "size": -2})
    assert set(traced) == {"gamma"} and sizes["size"] == -2
    with pytest.raises(ValueError, match="calm: gamma='x' must be a number"):
        knobs.split(method, {"max_new_tokens": 4, "gamma": "x"})


@pytest.mark.thorough
def test_methods_race_from_python(own):
    plain = recipes.find(f"{own}:plain").method
    found = pdecode.compare(
        [plain, "prompt_lookup"], prompts=["def f(x):", "import os"],
        max_new_tokens=6, settings={"prompt_lookup": {"num_draft": 2}},
    )  # fmt: skip
    first, mine, lookup = found.rows
    assert [row.name for row in found.rows] == [
        "autoregressive", "plain", "prompt_lookup",
    ]  # fmt: skip
    assert mine.texts == first.texts == lookup.texts and first.exact_match is None
    assert lookup.settings["num_draft"] == 2 and "plain" in repr(found)
    with pytest.raises(ValueError, match="unknown option 'temperature'"):
        pdecode.compare(temperature=1.0)


# Manners.


def test_pdecode_alone_prints_help(capsys):
    code, out, err = run(capsys)
    assert (code, err) == (0, "") and "compare" in out and "generate" in out


@pytest.mark.parametrize(
    "words, wanted",
    [
        ("generat", "did you mean generate?"),
        ("generate --method fast_dlm --prompt x", "did you mean fast_dllm?"),
        ("generate --model difusion --prompt x", "did you mean diffusion?"),
        ("generate --method llada --set step=3 --prompt x", "did you mean steps?"),
        ("compare --methods jacoby", "did you mean jacobi?"),
        ("compare --hardware h20", "did you mean h200?"),
        ("compare --methods jacobi --set jacobi.windo=3", "did you mean window?"),
        ("methods lada", "did you mean llada?"),
        ("generate --mesh data=2,data=4 --prompt x", "name every axis once"),
        ("generate --prompt x --row-ids a", "write whole numbers"),
        ("generate --prompt x --batch-size 0", "batch_size=0 must be at least 1"),
        ("generate --prompt x --pace 1", "--pace 1.0 is for --watch"),
        ("generate --prompt x --watch --pace -1", "must lie in [0, 60]"),
        ("compare --judge diffusion", "is no causal model: it can judge no text"),
        ("compare --num-prompts 1 --prompts no_such", "no_such: No such file"),
        ("compare --json --csv", "not allowed with argument"),
        ("compare --methods llada --model target", "needs a model trained with a mask"),
        (
            "compare --max-new-tokens 7 --set llada.block_length=5 --set llada.steps=4",
            "llada: block_length=5 must divide max_new_tokens=7",
        ),
    ],
)
def test_what_was_meant_is_said(capsys, words, wanted):
    code, out, err = run(capsys, *words.split())
    assert code == cli.BAD_INPUT and out == "" and err.count("\n") == 1
    assert wanted in err


def test_json_records_the_defaults_that_were_used(capsys):
    _, out, _ = run(capsys, "generate", *SHORT, "--prompt-ids", "[[1]]", "--json")
    used = json.loads(out)["settings"]
    assert used == {
        "steps": 4, "max_new_tokens": 8, "block_length": None, "temperature": 0.0,
        "order": "low_confidence", "cfg_scale": None, "logits_eos_inf": False,
        "confidence_eos_eot_inf": False,
    }  # fmt: skip


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_a_cache_folder_is_never_made_where_one_works(monkeypatch, value):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    folder = pathlib.Path(program_cache.folder())
    assert folder.is_absolute() and pathlib.Path.home() in folder.parents


def test_reprs_are_short():
    made, stats = table.base("autoregressive", 0.0)
    assert "lengths=[" in repr(made) and "tokens=int32[8,16]" in repr(made)
    assert len(repr(made)) < 400 and len(repr(stats)) < 900
    jax.eval_shape(lambda made: [repr(made), made][1], made)  # also while tracing
    result = pdecode.generate("x", max_new_tokens=2)
    assert repr(result).startswith("Result(autoregressive with target, 1 row: 2 tokens")
    assert shown.short(knobs.Size(2)) == "Size(low=2)"


def test_numpy_numbers_and_old_keys_are_accepted():
    case, prompt = table.CASES["autoregressive"], table.prompt()
    old, new = (
        decode.run(
            methods.autoregressive, case.model, case.params, prompt, key,
            max_new_tokens=np.int64(10),
        )[0]
        for key in (jax.random.PRNGKey(3), jax.random.key(3))
    )  # fmt: skip
    np.testing.assert_array_equal(old.tokens, new.tokens)
    tokenizer = pdecode.load("target")[2]
    ids = tokenizer.encode("x")
    for row in (np.array(ids), [np.int32(each) for each in ids]):
        made = pdecode.generate([row], max_new_tokens=np.int64(2))
        assert made.text == pdecode.generate("x", max_new_tokens=2).text


def test_public_names_are_what_dir_help_and_star_show():
    found = {}
    exec("from pdecode import *", found)
    assert set(found) - {"__builtins__"} == set(pdecode.__all__)
    assert set(dir(pdecode)) == {*pdecode.__all__, "__version__"}
    for name in pdecode._HOMES:
        assert getattr(pdecode, name).__doc__, name
    with pytest.raises(AttributeError, match="did you mean generate"):
        pdecode.generte  # noqa: B018


def test_weights_that_changed_on_disk_are_read_again(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in GOLDEN.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    first = generation.load(str(folder))
    assert generation.load(str(folder)) is first
    config = folder / "config.json"
    os.utime(config, ns=(1, 1))
    assert generation.load(str(folder)) is not first


def test_compile_says_which_prompts_it_serves(capsys):
    words = ("compile", *SHORT, "--prompt-len")
    _, out, _ = run(capsys, *words, 17)
    assert "batches whose longest prompt has 17 to 32 tokens" in out
    model = pdecode.load(str(GOLDEN))[0]
    widths = {
        generation.prepare([[1] * length], model=str(GOLDEN), method="llada",
                           max_new_tokens=8).prompt.tokens.shape[1]
        for length in (17, 25, 32)
    }  # fmt: skip
    assert widths == {32} and model.max_positions >= 40
    outside = generation.prepare([[1] * 16], model=str(GOLDEN), max_new_tokens=8)
    assert outside.prompt.tokens.shape[1] == 16


@pytest.mark.thorough
def test_a_damaged_entry_of_the_program_cache_is_replaced(tmp_path):
    """JAX would compile again at every start and leave the file as it is."""
    words = ["compile", "--model", GOLDEN, "--method", "llada", "--max-new-tokens", "4"]
    script = (
        "import sys; from pdecode.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )

    def start():
        return subprocess.run(
            [sys.executable, "-c", script, *map(str, words)],
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path)},
            capture_output=True, text=True, check=True, timeout=240, cwd=ROOT,
        )  # fmt: skip

    assert "0 kept from before" in start().stdout
    (path,) = tmp_path.glob("jit__loop-*-cache")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    made = start()
    assert "1 kept from before" in made.stdout
    assert "damaged: it is compiled again and replaced" in made.stderr
    assert path.stat().st_size > len(whole) // 2
    assert "2 kept from before" in start().stdout


SLEEPS = """
import time
import jax, jax.numpy as jnp
from pdecode.cli import interrupt

with interrupt.leaving_at_once():
    print("ready", flush=True)
    # A program that is never done, in which Python hears of no signal.
    jax.jit(lambda x: jax.lax.while_loop(lambda x: x > 0, lambda x: jnp.sin(x) + 2, x))(
        jnp.ones(())
    ).block_until_ready()
"""


def test_an_interrupt_ends_a_running_program_at_once():
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLEEPS)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert child.stdout.readline() == "ready\n"
        time.sleep(2)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=20)
    finally:
        child.kill()
    assert child.returncode == interrupt.INTERRUPTED
    assert err.strip() == "pdecode: interrupted"


def test_settings_of_a_method_are_read_by_their_place():
    found = arguments.overrides(["llada.steps=3", "llada.cfg_scale=0.5"])
    assert found == {"llada": {"steps": 3, "cfg_scale": 0.5}}
