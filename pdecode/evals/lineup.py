"""Which methods `compare` races by default, and with which settings.

The settings suit the embedded byte models and a laptop: short drafts, because on a CPU
a call's cost soon grows with its queries (see the cost curve that `compare` prints),
and two or more tokens a call for masked methods. ReMDM runs without its top-p of 0.9,
whose sort of every position's law takes longer than the model here.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from pdecode import generation, knobs
from pdecode.methods import describe, variants

BASELINE = "autoregressive"

# Name of a method or configuration -> settings, beside its own.
DEFAULT: dict[str, dict[str, Any]] = {
    "autoregressive": {},
    "prompt_lookup": {"num_draft": 4},
    "blockwise": {"num_draft": 3},
    "relaxed_blockwise": {"num_draft": 3},
    "jacobi": {"window": 4},
    "sjd": {"window": 4},
    "speculative_sampling": {"num_draft": 3},
    "block_verification": {"num_draft": 3},
    "specinfer": {"branching": (2, 1)},
    "llada": {"steps": 24, "block_length": 24},
    "dream_entropy": {"steps": 24},
    "fast_dllm_threshold": {"block_length": 24},
    "fast_dllm_dual": {"block_length": 24},
    "eb_sampler": {"block_length": 24},
    "maskgit": {"steps": 12},
    "mdlm": {"steps": 24},
    "remdm": {"steps": 24, "top_p": None},
    "any_order": {"steps": 24},
}


class Entry(NamedTuple):
    """One line of the comparison, ready to compile."""

    name: str
    method: Callable
    settings: dict[str, Any]  # without max_new_tokens
    models: tuple
    params: dict[str, Any]  # by role
    is_lossless: bool  # says its decoder, under these settings
    temperature: float


def entries(
    names: Sequence[str] | None,
    overrides: dict[str, dict[str, Any]],
    model: str | None,
    max_new_tokens: int,
) -> tuple[list[Entry], list[str]]:
    """The lines to run, the baseline first, and notes on what was left out.

    `names` None: all of DEFAULT that fit `model`. `overrides` maps a name to settings.
    Methods of lossless kind run greedily, so that they can be compared with greedy
    decoding. Raises ValueError for an unknown name, knob or value, and for a named
    method that does not fit the model.
    """
    chosen = list(DEFAULT) if names is None else list(dict.fromkeys(names))
    for name in overrides:
        if name not in chosen:
            raise ValueError(
                f"--set {name}.…, but {name!r} does not run; running: "
                f"{', '.join(chosen)}"
            )
    given = None if model is None else generation.load(model)[0]
    if given is None or given.predicts == "next":
        chosen = [BASELINE, *(name for name in chosen if name != BASELINE)]
    made, notes = [], []
    for name in chosen:
        try:
            made.append(_entry(name, overrides.get(name, {}), model, max_new_tokens))
        except ValueError as error:
            if names is not None or model is None or name in overrides:
                raise
            notes.append(f"{name} left out: {error}")
    if not made:
        raise ValueError(f"no method fits {model}: {'; '.join(notes)}")
    return made, notes


def parse(overrides: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{"llada": {"steps": 16}} from "llada.steps=16"; ValueError for other forms."""
    found: dict[str, dict[str, Any]] = {}
    for setting in overrides:
        place, equals, text = setting.partition("=")
        name, dot, knob = place.partition(".")
        if not (equals and dot and name and knob):
            raise ValueError(f"--set {setting}: write METHOD.KNOB=VALUE")
        method, _ = variants.resolve(name.strip())
        value = knobs_value(method, knob.strip(), text)
        found.setdefault(name.strip(), {})[knob.strip()] = value
    return found


def knobs_value(method: Callable, name: str, text: str) -> Any:
    """`text` as the value of a knob, by its kind; ValueError if there is no such knob.

    Ranges are checked later, with everybody else's.
    """
    known = knobs.parameters(method)
    if name not in known:
        raise ValueError(
            f"{method.__name__} has no knob or size {name!r}; known: {', '.join(known)}"
        )
    parameter, text = known[name], text.strip()
    if isinstance(parameter.kind, knobs.Choice):
        return None if text == "None" and parameter.is_optional else text
    if text in ("None", "none"):
        return None
    try:
        if parameter.base is tuple:
            return tuple(int(part) for part in text.strip("()[] ,").split(","))
        is_whole = isinstance(parameter.kind, knobs.Size) or parameter.base is int
        return int(text) if is_whole else float(text)
    except ValueError:
        limits = {n: r for n, r, _ in describe.knob_lines(method)}[name]
        raise ValueError(
            f"{method.__name__}: {name}={text!r} is no value; it takes {limits}"
        ) from None


def _entry(name, overrides, model, max_new_tokens: int) -> Entry:
    method, settings = variants.resolve(name)
    settings = {**settings, **DEFAULT.get(name, {}), **overrides}
    known = knobs.parameters(method)
    base = generation.default_model(method)
    names = [model or base, *knobs.roles(method)[1:]]
    if model is not None and len(names) > 1:
        raise ValueError(f"it needs a {names[1]} that fits {model}")
    loaded = [generation.load(each) for each in names]
    models = tuple(each[0] for each in loaded)
    trees = [each[1] for each in loaded]
    params = dict(zip(knobs.roles(method), trees, strict=True))
    # Building the recipe checks what the signature cannot say.
    traced, sizes = knobs.split(method, {**settings, "max_new_tokens": max_new_tokens})
    decoder = method(*models, **sizes, **traced)
    is_lossless = decoder.guarantee == "lossless"
    if is_lossless and "temperature" in known:
        settings.setdefault("temperature", 0.0)
    temperature = settings.get("temperature")
    if temperature is None and "temperature" in known:
        temperature = known["temperature"].default
    return Entry(
        name=name,
        method=method,
        settings=settings,
        models=models,
        params=params,
        is_lossless=is_lossless,
        temperature=float(temperature or 0.0),
    )
