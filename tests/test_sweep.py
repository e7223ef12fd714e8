"""`pdecode.sweep` and `pdecode explain`: what a method does over its knobs, and is."""

import json

import pytest

import pdecode
from pdecode import generation, methods, programs
from pdecode.cli import main as cli
from pdecode.methods import describe, parts


@pytest.fixture(scope="module")
def table():
    programs.forget()
    return pdecode.sweep(
        "fast_dllm", prompts=["def f(", "x = ["], max_new_tokens=8, block_length=4,
        threshold=[0.3, 0.95],
    )  # fmt: skip


def test_a_knob_is_swept_in_one_program(table):
    assert len(programs._kept) == 1
    assert table.varied == ("threshold",) and table.model == "diffusion"
    low, high = table.rows
    assert (low["threshold"], high["threshold"]) == (0.3, 0.95)
    assert low["tokens_per_call"] > high["tokens_per_call"] >= 1
    assert low["tokens"] == high["tokens"] == 16 and low["bits_per_byte"] > 0
    # Each row is what generate makes.
    one = pdecode.generate(
        ["def f(", "x = ["], method="fast_dllm", max_new_tokens=8, block_length=4,
        threshold=0.3,
    )  # fmt: skip
    assert table.results[0].text == one.text
    assert low["calls"] == sum(one.stats["calls"])


def test_the_table_is_text_a_frame_and_a_picture(table, tmp_path):
    lines = str(table).splitlines()
    assert lines[0] == "fast_dllm with diffusion, 2 prompts" and len(lines) == 4
    assert lines[1].split()[:2] == ["threshold", "tokens_per_call"]
    figure = table.plot(str(tmp_path / "sweep.png"))
    assert figure.axes[0].get_xlabel() == "threshold" and len(figure.axes) == 2
    assert (tmp_path / "sweep.png").stat().st_size > 5000
    try:
        import pandas  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError):
            table.to_pandas()
    else:
        assert list(table.to_pandas()["threshold"]) == [0.3, 0.95]


def test_what_cannot_be_swept_is_said():
    with pytest.raises(ValueError, match="no knob or size 'treshold'; did you mean"):
        pdecode.sweep("fast_dllm", treshold=[0.5])
    with pytest.raises(ValueError, match=r"threshold=\[\] has no value"):
        pdecode.sweep("fast_dllm", threshold=[])
    with pytest.raises(ValueError, match="must lie in"):
        pdecode.sweep("fast_dllm", threshold=[2.0])


def test_every_method_is_explained():
    for name in methods.__all__:
        method = getattr(methods, name)
        steps = parts.step_lines(method)
        assert steps or name in ("audited", "specreason"), name
        assert len(steps) <= 9, (name, steps)
        known = set(pdecode.knobs.parameters(method))
        for part in parts.parts(method):
            assert set(part.knobs) <= known
    found = {each.name: each for each in parts.parts(methods.fast_dllm)}
    assert "threshold" in found["commit.threshold"].knobs
    assert found["commit.threshold"].about.startswith("Every position whose token has")


def test_a_variant_says_what_it_is_with_or_without_settings():
    for name, made in methods.VARIANTS.items():
        method = getattr(methods, made.method)
        line = describe.about(name, method, made.settings).splitlines()[1]
        assert line.startswith(f"  = {made.method}")
        assert (" with " in line) == bool(made.settings), line


def test_methods_that_use_a_family_otherwise_say_so():
    llada = parts.when(methods.llada)
    for method in (methods.set_block, methods.distilled_decoding):
        assert parts.when(method) not in (None, llada)


def test_explain_says_what_the_code_says(capsys, tmp_path):
    assert cli.main(["explain", "fast_dllm"]) == 0
    told = capsys.readouterr().out
    assert cli.main(["methods", "fast_dllm"]) == 0
    assert capsys.readouterr().out == told
    for word in ("paper:", "guarantee:", "cost:", "helps:", "a step:", "made of:"):
        assert word in told
    assert "commit_some: The canvas with what the commit rule chose" in told
    own = tmp_path / "mine.py"
    own.write_text(
        "from pdecode import methods\n"
        "from pdecode.contracts import Decoder, Model\n"
        "def mine(model: Model, *, max_new_tokens: int, num: int = 2) -> Decoder:\n"
        '    """Looks back.\n\n    Guarantee: lossless.\n    """\n'
        "    return methods.prompt_lookup(model, max_new_tokens=max_new_tokens,\n"
        "                                 num_draft=num)\n"
    )
    assert cli.main(["methods", f"{own}:mine", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["guarantee"] == "lossless." and data["roles"] == ["model"]
    assert cli.main(["explain", f"{own}:mine"]) == 0
    assert "Looks back." in capsys.readouterr().out


def test_a_sweep_over_a_size_compiles_for_each(monkeypatch):
    seen = []

    def decoded(job, seed):
        seen.append(job.settings["steps"])
        return _made(job)

    monkeypatch.setattr(generation, "decoded", decoded)
    table = pdecode.sweep("llada", prompts=["a"], max_new_tokens=8, steps=[4, 8],
                          judge=None)  # fmt: skip
    assert seen == [4, 8] and [row["steps"] for row in table.rows] == [4, 8]


def _made(job):
    from pdecode.results import Result

    stats = {"calls": [4], "committed": [8], "revoked": [0]}
    times = {"compile_s": 0.0, "prefill_s": 0.0, "decode_s": 0.5}
    return Result([[65] * 8], [8], ["A" * 8], ["length"], stats, times, "llada",
                  "diffusion", None, job.used, [0])  # fmt: skip


def test_a_sweep_of_images_has_no_judge():
    table = pdecode.sweep("any_order", prompts=["7"], model="digits", max_new_tokens=64,
                          temperature=[0.5, 1.0])  # fmt: skip
    assert [row["bits_per_byte"] for row in table.rows] == [None, None]
    assert table.rows[0]["compile_s"] > 0
