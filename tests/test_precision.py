"""What float32 is multiplied in, and the near-ties that follow from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_checkpoints import command

from pdecode import methods, precision, programs, prompts
from pdecode.cli import main as cli
from pdecode.evals import compare, quality
from pdecode.models import transformer

CONFIG = transformer.Config(
    vocab_size=19, width=16, num_layers=1, num_heads=2, mlp_width=24
)


@pytest.mark.parametrize(
    "dtype, platform, level, wanted",
    [
        ("float32", "cpu", None, "float32"),
        ("float32", "gpu", None, "tensorfloat32"),
        ("float32", "gpu", "high", "tensorfloat32"),
        ("float32", "gpu", "highest", "float32"),
        ("float32", "tpu", None, "bfloat16"),
        ("float32", "tpu", "high", "float32"),
        ("float32", "tpu", "highest", "float32"),
        ("bfloat16", "gpu", "highest", "bfloat16"),
        ("bfloat16", "cpu", None, "bfloat16"),
        ("float16", "gpu", None, "float16"),
        ("float64", "cpu", None, "float32"),
    ],
)
def test_what_a_device_multiplies(dtype, platform, level, wanted):
    assert precision.products(dtype, platform, level) == wanted


def test_a_near_tie_is_one_of_the_precision_in_use(monkeypatch):
    """The same decode, judged as on a GPU in TensorFloat-32 and in float32."""
    rows, base = [[1, 9]], [[1, 2]]
    margins = [np.array([0.5, 1e-3])]

    def judged(dtype="float32"):
        return quality.identity(rows, base, margins, precision.near_tie(dtype))

    assert judged().mismatches and judged("bfloat16").near_ties
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert judged().near_ties
    with precision.at("highest"):
        assert judged().mismatches
    assert judged().near_ties


def test_a_comparison_judges_in_the_dtype_of_its_model():
    made = [
        compare.prepare(
            compare.Settings(("prompt_lookup",), dtype=dtype, num_prompts=1)
        )
        for dtype in ("float32", "bfloat16")
    ]
    assert [each.judging.near_tie for each in made] == [1e-4, 4e-2]


def test_a_level_is_that_of_the_programs_compiled_at_it():
    model = transformer.make_model(CONFIG)
    params = transformer.init(CONFIG, jax.random.key(0))
    prompt = prompts.from_rows([[1, 2]], max_new_tokens=2)

    def lowered():
        text = jax.jit(lambda x, y: x @ y).lower(*[jnp.ones((2, 2))] * 2).as_text()
        return text.count("HIGHEST")

    def loop():
        return programs.compiled(
            methods.autoregressive, model, params, prompt, max_new_tokens=2
        ).loop

    before = loop()
    with precision.at("highest"):
        assert lowered() == 2
        inside = loop()
        assert inside is not before and inside is loop()
    assert lowered() == 0 and loop() is before
    with pytest.raises(ValueError, match="precision='much' must be one of default"):
        with precision.at("much"):
            pass


def test_the_command_line_sets_the_level_for_its_command_alone(monkeypatch):
    seen = []

    def noting(args):
        seen.append(precision.level())
        return 0

    monkeypatch.setattr(cli, "_compile", noting)
    command("compile", "--precision", "highest")
    command("compile")
    assert seen == ["highest", None]
    code, _, err = command("generate", "--prompt", "x", "--precision", "more")
    assert code == 2 and "invalid choice: 'more'" in err
