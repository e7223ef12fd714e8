"""The command line: what it prints, and one line for everything a user gets wrong."""

import io
import json
import pathlib
import shutil
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdecode
from pdecode import generation, methods, sharding
from pdecode.cli import main as cli
from pdecode.cli import watch
from pdecode.knobs import Size
from pdecode.methods import describe, variants
from pdecode.models import embedded

GOLDEN = pathlib.Path(__file__).parent / "golden" / "llada_tiny"
IDS = "[[1,2,3],[4,5]]"


@pytest.fixture(autouse=True)
def no_cache_on_disk(monkeypatch):
    """Tests compile for themselves and write nothing to the user's folders."""
    monkeypatch.setattr("pdecode.cli.program_cache.enable", lambda **_: None)


def run(capsys, *arguments):
    """(exit code, standard output, standard error)."""
    code = cli.main([str(each) for each in arguments])
    return code, *capsys.readouterr()


def generate(capsys, *arguments):
    code, out, err = run(capsys, "generate", *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def llada(capsys, ids, *more):
    return generate(
        capsys, "--model", GOLDEN, "--method", "llada", "--set", "steps=4",
        "--set", "block_length=4", "--prompt-ids", ids, "--max-new-tokens", "8", *more,
    )  # fmt: skip


def test_json_of_a_ragged_batch_and_of_its_rows_alone(capsys):
    both = llada(capsys, IDS)
    assert set(both) == {
        "tokens", "lengths", "text", "stopped_by", "stats", "timing", "method",
        "model", "drafter", "settings", "row_ids", "seed", "steps", "probs", "pieces",
        "prompts", "predicts", "vocab_size", "recorded",
    }  # fmt: skip
    assert both["lengths"] == [len(row) for row in both["tokens"]]
    assert both["method"] == "llada" and both["model"] == str(GOLDEN)
    assert both["stats"]["calls"] == [4, 4]
    assert both["stats"]["committed"] == [8, 8]
    assert set(both["timing"]) == {"compile_s", "prefill_s", "decode_s"}
    for index, row in enumerate(json.loads(IDS)):
        alone = llada(capsys, json.dumps([row]))
        assert alone["tokens"] == [both["tokens"][index]]
        assert alone["stats"]["query_tokens"] == [both["stats"]["query_tokens"][index]]


def test_a_recorded_generation_through_the_command_line(capsys):
    case = json.loads((GOLDEN / "cases.json").read_text())[2]
    with np.load(GOLDEN / "expected.npz") as arrays:
        prompt, wanted = arrays["case2_prompt"], arrays["case2_output"]
    made = generate(
        capsys, "--model", GOLDEN, "--method", "llada", "--prompt-ids",
        json.dumps(prompt.tolist()), "--max-new-tokens", case["settings"]["gen_length"],
        "--set", f"steps={case['settings']['steps']}",
        "--set", f"block_length={case['settings']['block_length']}", "--keep-eos-tail",
    )  # fmt: skip
    assert made["tokens"] == wanted[:, prompt.shape[1] :].tolist()


def test_prompts_of_nearby_lengths_share_programs_and_answer_as_if_alone(capsys):
    ids = [[1, 2, 3, 4, 5, 6, 7], [9]]
    first, second = (llada(capsys, json.dumps([row])) for row in ids)
    assert second["timing"]["compile_s"] == 0 and first["method"] == "llada"
    model, params, _ = pdecode.load(str(GOLDEN))
    for row, made in zip(ids, (first, second)):
        prompt = pdecode.from_rows([row], max_new_tokens=8, model=model)
        unpadded, _ = pdecode.run(
            methods.llada, model, params, prompt, jax.random.key(0),
            max_new_tokens=8, steps=4, block_length=4,
        )  # fmt: skip
        end = len(row) + int(unpadded.lengths[0])
        assert made["tokens"] == [unpadded.tokens[0, len(row) : end].tolist()]


def test_padding_takes_no_position_that_the_prompt_needs(capsys):
    ids = [1] * 248  # of 256 positions
    assert llada(capsys, json.dumps([ids]))["stats"]["committed"] == [8]
    code, _, err = run(
        capsys, "generate", "--model", GOLDEN, "--prompt-ids", json.dumps([ids + [1]]),
        "--method", "llada", "--max-new-tokens", "8",
    )  # fmt: skip
    assert code == cli.BAD_INPUT and "prompt (249)" in err


def test_a_mesh_changes_no_token(capsys):
    split = llada(capsys, IDS, "--mesh", "data=2,tensor=2")
    assert split["tokens"] == llada(capsys, IDS)["tokens"]
    code, out, _ = run(
        capsys, "generate", "--model", GOLDEN, "--method", "llada", "--set", "steps=4",
        "--set", "block_length=4", "--prompt-ids", IDS, "--max-new-tokens", "8",
        "--mesh", "data=2,tensor=2", "--watch",
    )  # fmt: skip
    assert code == 0 and out.endswith("\n\n".join(split["text"]) + "\n")


@pytest.mark.thorough
def test_a_mesh_changes_no_token_of_two_models():
    options = {"method": "coupled_sampling", "num_draft": 2, "max_new_tokens": 5}
    options |= {"prompt": ["import os", "def f("], "temperature": 1.0}
    mesh = sharding.make_mesh(data=2, tensor=2)
    made = pdecode.generate(**options, mesh=mesh)
    assert made.tokens == pdecode.generate(**options).tokens
    params = generation.load("target", None, mesh)[1]
    assert not params["embed"].is_fully_replicated


def test_keep_eos_tail_returns_what_lies_behind_eos(monkeypatch, capsys):
    whole = llada(capsys, IDS, "--keep-eos-tail")
    assert whole["lengths"] == [8, 8] and whole["stopped_by"] == ["length"] * 2
    # The third token of row 0 is now an EOS: the row ends before it, the tail stays.
    model, params, tokenizer = pdecode.load(str(GOLDEN))
    model = model._replace(eos_ids=(whole["tokens"][0][2],))
    loaded = (model, params, tokenizer)
    monkeypatch.setattr("pdecode.assembly.load", lambda *_: loaded)
    kept = llada(capsys, IDS, "--keep-eos-tail")
    assert kept["tokens"] == whole["tokens"]
    end = whole["tokens"][0].index(model.eos_ids[0])
    assert kept["lengths"][0] == end and kept["stopped_by"][0] == "eos"
    cut = llada(capsys, IDS)
    assert cut["tokens"][0] == whole["tokens"][0][:end]
    assert cut["stopped_by"][0] == "eos"


def test_watch_shows_open_positions_and_ends_with_the_same_text(capsys):
    arguments = ("--model", GOLDEN, "--method", "llada", "--set", "steps=4")
    more = ("--prompt-ids", "[4,5]", "--max-new-tokens", "8")
    code, out, _ = run(capsys, "generate", *arguments, *more, "--watch")
    lines = out.splitlines()
    assert code == 0 and lines[0].startswith("step 1 row 0: ")
    assert lines[0].count(watch.OPEN) == 6 and watch.OPEN not in lines[3]
    plain = generate(capsys, *arguments, *more)
    assert lines[-1] == plain["text"][0]


def test_watch_shows_as_open_what_any_order_has_not_decided(capsys):
    code, out, _ = run(
        capsys, "generate", "--model", GOLDEN, "--method", "any_order", "--set",
        "order=raster", "--prompt-ids", "[4,5]", "--max-new-tokens", "8", "--watch",
        "--temperature", "0",
    )  # fmt: skip
    shown = [line.count(watch.OPEN) for line in out.splitlines()[:8]]
    assert code == 0 and shown == [7, 6, 5, 4, 3, 2, 1, 0]


def test_watch_does_not_take_a_literal_mask_id_for_an_open_position():
    def says_the_mask(model, *, max_new_tokens: Annotated[int, Size()]):
        decoder = methods.llada(model, max_new_tokens=max_new_tokens, steps=4)

        def step(params, keys, state):
            state, info = decoder.step(params, keys, state)
            tokens = jnp.where(state.generated, model.mask_id, state.tokens)
            return state._replace(tokens=tokens), info

        return decoder._replace(step=step)

    job = generation.prepare(
        [[126, 5]], model=str(GOLDEN), method="llada", max_new_tokens=8
    )
    job = job._replace(method=says_the_mask, settings={"max_new_tokens": 8})
    file = io.StringIO()
    made = watch.watch(job, file=file)
    lines = file.getvalue().splitlines()
    assert [line.count(watch.OPEN) for line in lines] == [6, 4, 2, 0]
    assert [line.count("126") for line in lines] == [2, 4, 6, 8]
    assert made.tokens == [[126] * 8]


def test_watch_redraws_every_step_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    monkeypatch.setattr(file, "isatty", lambda: True, raising=False)
    with watch._shown(file, file, ["before"]) as show:
        for number in (1, 2):
            show(watch.Frame(number, [[("text", "new")]], f"step {number}: 1 calls"))
            assert f"step {number}: 1 calls" in file.getvalue()
    # The prompt stands before the canvas, and the last one is not wiped away.
    last = file.getvalue().split("step 2")[-1]
    assert "before" in file.getvalue() and "\x1b[2K" not in last.split("\n", 1)[-1]


def test_prompt_file_and_prompt_are_the_same(capsys, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("def f(x):\n")
    shape = ("--max-new-tokens", "4")
    by_file = generate(capsys, "--prompt-file", file, *shape)
    by_text = generate(capsys, "--prompt", "def f(x):\n", *shape)
    assert by_file["tokens"] == by_text["tokens"]
    assert by_file["method"] == "autoregressive" and by_file["model"] == "target"


def test_two_model_methods_find_their_embedded_drafter():
    made = pdecode.generate(
        "import os", method="coupled_sampling", num_draft=1, max_new_tokens=6
    )
    plain = pdecode.generate("import os", max_new_tokens=6)
    assert made.tokens == plain.tokens and str(made) == made.text[0]
    assert sum(made.stats["calls"]) <= 6


SEVERAL = "--prompt x --coordinator {} --num-processes {} --process-id {}"
BAD = [
    ("--method nope --prompt x", "unknown method 'nope'; known: "),
    ("--method llada --set nope=1 --prompt x", "known: max_new_tokens, steps"),
    ("--method llada --set steps --prompt x", "write KNOB=VALUE"),
    ("--set steps=3 --prompt x", "--set needs --method"),
    ("--method llada --set steps=few --prompt x", "steps='few' is no value"),
    ("--method llada --set order=up --prompt x", "order='up' must be one of"),
    ("--method llada --set max_new_tokens=9 --prompt x", "use --max-new-tokens"),
    ("--method llada --set steps=0 --prompt x", "steps=0 must be at least 1"),
    (
        "--method llada --set block_length=7 --set steps=9 --prompt x",
        "block_length=7 must divide",
    ),
    ("--method fast_dllm --set threshold=1.5 --prompt x", "must lie in [0, 1]"),
    ("--method fast_dllm --set threshold=nan --prompt x", "must lie in [0, 1]"),
    ("--temperature -1 --prompt x", "temperature=-1.0 must lie in [0, 100]"),
    ("--max-new-tokens 0 --prompt x", "max_new_tokens=0 must be at least 1"),
    ("--max-new-tokens -4 --prompt x", "max_new_tokens=-4 must be at least 1"),
    ("--max-new-tokens few --prompt x", "invalid int value: 'few'"),
    ("--max-new-tokens 4000 --prompt x", "positions, but target has"),
    ("--prompt-ids []", "the prompt is empty"),
    ("--prompt-ids [[1],[]]", "prompt row 1 is empty"),
    ("--prompt-ids [[1],[2.5]]", "2.5, which is no id"),
    ("--prompt-ids [[1],[true]]", "True, which is no id"),
    ("--prompt-ids {}", "no list of rows"),
    ("--prompt-ids [[1,2", "is no JSON"),
    ("--prompt-ids [[1],[5,999]]", "row 1 has id 999, outside [0, 260)"),
    ("--prompt-ids [[-1]]", "has id -1"),
    ("--model no_such_folder --prompt x", "unknown model 'no_such_folder'"),
    ("--model target --method llada --prompt x", "needs a model trained with a mask"),
    ("--model diffusion --method jacobi --prompt x", "needs a causal model"),
    ("--method blockwise --drafter drafter --prompt x", "blockwise takes a heads"),
    ("--method specinfer --drafter heads --prompt x", "specinfer takes a drafter"),
    ("--method blockwise --set num_draft=99 --prompt x", "num_draft=99 exceeds"),
    ("--model drafter --method specinfer --prompt x", "needs a drafter"),
    ("--model diffusion --method learn2pd --prompt x", "needs a filter trained"),
    ("--model diffusion --method specinfer --prompt x", "use one of adablock"),
    ("--model heads --prompt x", "heads is a set of heads: give it as the drafter"),
    ("--prompt-file no_such_file", "no_such_file: No such file"),
    ("--prompt-file .", "Is a directory"),
    ("--prompt x --prompt-ids [[1]]", "not allowed with argument"),
    ("--mesh four --prompt x", "write axes and sizes, as tensor=4"),
    ("--mesh pipe=2 --prompt x", "unknown mesh axis 'pipe'; known: data, fsdp"),
    ("--mesh data=99 --prompt x", "needs 99 devices, but there are 8"),
    ("--mesh data=2 --prompt x", "1 rows do not divide over data x fsdp = 2 devices"),
    (
        "--coordinator localhost:1 --mesh data=2 --prompt x",
        "give all three, or none for one",
    ),
    ("--num-processes 2 --mesh data=2 --prompt x", "give all three, or none"),
    (SEVERAL.format("localhost:1", 2, 0), "--coordinator localhost:1 needs --mesh"),
    (SEVERAL.format("localhost", 2, 0) + " --mesh data=2", "must be HOST:PORT"),
    (SEVERAL.format("localhost:1", 2, 2) + " --mesh data=2", "must lie in [0, 2)"),
    (SEVERAL.format("localhost:1", 2, 0) + " --mesh data=2 --watch", "leave out"),
    ("", "one of the arguments --prompt"),
]


def assert_one_line(code, out, err, wanted):
    assert code == cli.BAD_INPUT and out == ""
    assert err.count("\n") == 1 and "Traceback" not in err
    assert err.startswith("pdecode: error: ") and wanted in err


@pytest.mark.parametrize("arguments, wanted", BAD)
def test_bad_input_of_generate_is_one_line(capsys, arguments, wanted):
    assert_one_line(*run(capsys, "generate", *arguments.split()), wanted)


def test_an_empty_prompt_is_refused(capsys, tmp_path):
    assert_one_line(*run(capsys, "generate", "--prompt", ""), "is empty")
    (tmp_path / "empty.txt").write_text("")
    assert_one_line(
        *run(capsys, "generate", "--prompt-file", tmp_path / "empty.txt"), "is empty"
    )
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    assert_one_line(
        *run(capsys, "generate", "--prompt-file", tmp_path / "binary"), "no UTF-8 text"
    )


def test_missing_and_truncated_weights_are_one_line(capsys, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(GOLDEN, folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    arguments = ("generate", "--model", folder, "--prompt-ids", "[[1]]")
    weights.write_bytes(whole[: len(whole) // 2])
    assert_one_line(*run(capsys, *arguments), "model.safetensors")
    weights.write_bytes(b"")
    assert_one_line(*run(capsys, *arguments), "model.safetensors")
    weights.unlink()
    assert_one_line(*run(capsys, *arguments), "safetensors")
    with pytest.raises(ValueError, match="target"):
        embedded.read("target", tmp_path)


@pytest.mark.parametrize(
    "arguments, wanted",
    [
        ("compare --methods nope", "unknown method 'nope'"),
        ("compare --methods ,", "--methods is empty"),
        ("compare --set llada.nope=1", "no knob or size 'nope'"),
        ("compare --set nope.steps=1", "unknown method 'nope'"),
        ("compare --set steps=1", "write METHOD.KNOB=VALUE"),
        ("compare --set jacobi.window=0", "window=0 must be at least 1"),
        ("compare --set llada.block_length=7", "block_length=7 must divide"),
        ("compare --methods llada --set jacobi.window=3", "'jacobi' does not run"),
        ("compare --batch-size 5 --num-prompts 12", "multiple of batch_size=5"),
        ("compare --num-prompts 0", "num_prompts=0 must be at least 1"),
        ("compare --num-prompts 4000", "num_prompts=4000 must lie in"),
        ("compare --hardware abacus", "unknown hardware 'abacus'; known: cpu, h100"),
        ("compare --model no_such_folder", "unknown model"),
        ("bench --suite hotpath --shapes ,", "--shapes is empty"),
        ("bench --suite nope", "invalid choice: 'nope'"),
        ("bench --repeats 0", "repeats=0 must be at least 1"),
        ("bench --out no_such_folder/a.json", "lies in no folder: make it first"),
        ("compile --prompt-len 0", "prompt_len=0 must be at least 1"),
        ("compile --batch-size -1", "batch_size=-1 must be at least 1"),
        ("compile --prompt-len 600", "positions, but target has 512"),
        ("compile --set steps=1", "--set needs --method"),
        (
            "compile --method llada --set block_length=7 --set steps=9",
            "block_length=7 must divide",
        ),
        ("compile --method llada --model target", "needs a model trained with a mask"),
        ("compile --mesh tensor=0", "every size must be at least 1"),
        ("compile --prompt-len few", "invalid int value: 'few'"),
        ("train --config x --process-id 0", "give all three, or none for one"),
        ("train --config no_such.py", "no config file no_such.py"),
        ("methods nope", "unknown method 'nope'"),
        ("info no_such_folder", "no_such_folder"),
        ("info . --mesh four", "write axes and sizes"),
        ("convert no_such_folder target_folder", "no_such_folder"),
        ("nothing", "invalid choice: 'nothing'"),
    ],
)
def test_bad_input_of_other_commands_is_one_line(capsys, arguments, wanted):
    assert_one_line(*run(capsys, *arguments.split()), wanted)


@pytest.mark.parametrize(
    "prompt, options, wanted",
    [
        ("x", {"method": "nope"}, "unknown method"),
        ("x", {"method": "llada", "nope": 1}, "no knob or size 'nope'"),
        ("", {}, "is empty"),
        ([], {}, "is empty"),
        ([[1], []], {}, "row 1 is empty"),
        ([[1, 260]], {}, "id 260"),
        ("x", {"max_new_tokens": 0}, "max_new_tokens=0"),
        ("x", {"max_new_tokens": 4.0}, "must be an int"),
        ("x", {"temperature": -1.0}, "temperature=-1.0"),
        ("x" * 600, {}, "positions"),
        ("x", {"method": "llada", "steps": 0}, "steps=0"),
        ("x", {"method": "llada", "block_length": 7, "steps": 9}, "must divide"),
        ("x", {"method": "fast_dllm", "threshold": 1.5}, "threshold=1.5"),
        ("x", {"method": "llada", "model": "target"}, "mask token"),
        ("x", {"model": "no_such_folder"}, "unknown model"),
    ],
)
def test_bad_input_from_python_is_an_exception(prompt, options, wanted):
    with pytest.raises((ValueError, TypeError), match=wanted):
        pdecode.generate(prompt, **options)


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="unknown method"):
        cli.main(["methods", "nope", "--debug"])


def test_methods_lists_everything_and_counts(capsys):
    code, out, _ = run(capsys, "methods")
    assert code == 0
    for name in variants.known():
        assert any(line.startswith(f"{name} ") for line in out.splitlines())
    number, named = len(methods.__all__), len(methods.VARIANTS)
    assert f"{number} methods, {named} named variants" in out


@pytest.mark.parametrize("name", variants.known())
def test_every_method_explains_itself(capsys, name):
    method, settings = variants.resolve(name)
    code, out, _ = run(capsys, "methods", name)
    assert code == 0 and describe.summary(method)
    for part in ("guarantee:", "cost:", "paper:", "recipe:", "max_new_tokens"):
        assert part in out
    assert describe.guarantee(method) and describe.cost(method)
    assert all(knob in out for knob in settings)


def test_info_is_json(capsys):
    code, out, _ = run(capsys, "info", GOLDEN, "--mesh", "tensor=2", "--json")
    assert code == 0 and json.loads(out)["architecture"] == "llada"
    code, out, _ = run(capsys, "info", GOLDEN)
    assert code == 0 and "num_params:" in out
