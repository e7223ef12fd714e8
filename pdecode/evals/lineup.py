"""Which methods `compare` races by default, and with which settings.

The settings suit the embedded byte models and a laptop: short drafts, because on a CPU
a call's cost soon grows with its queries (see the cost curve that `compare` prints),
and two or more tokens a call for masked methods. ReMDM runs without its top-p of 0.9,
whose sort of every position's law takes longer than the model here.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from pdecode import assembly, knobs, names, recipes, sharding
from pdecode.contracts import Model
from pdecode.recipes import Recipe

BASELINE = "autoregressive"
BLOCK = 24  # positions of a block, where that many divide the canvas


def defaults(max_new_tokens: int) -> dict[str, dict[str, Any]]:
    """Name of a method or configuration -> settings, beside its own."""
    half = max(1, max_new_tokens // 2)
    # Steps are shared by blocks: these must divide the canvas evenly.
    is_even = max_new_tokens % BLOCK == 0
    block = {"block_length": min(BLOCK, max_new_tokens)}
    return {
        BASELINE: {},
        "prompt_lookup": {"num_draft": 4},
        "blockwise": {"num_draft": 3},
        "relaxed_blockwise": {"num_draft": 3},
        "jacobi": {"window": 4},
        "sjd": {"window": 4},
        "speculative_sampling": {"num_draft": 3},
        "block_verification": {"num_draft": 3},
        "specinfer": {"branching": (2, 1)},
        "llada": {"steps": half, **(block if is_even else {})},
        "dream_entropy": {"steps": half},
        "fast_dllm_threshold": block,
        "fast_dllm_dual": block,
        "eb_sampler": block,
        "maskgit": {"steps": max(1, max_new_tokens // 4)},
        "mdlm": {"steps": half},
        "remdm": {"steps": half, "top_p": None},
        "any_order": {"steps": half},
    }


class Choice(NamedTuple):
    """What the methods decode with."""

    model: str | None = None  # None: the embedded one that fits
    drafter: str | None = None  # a model or heads: for the methods that take such
    dtype: str | None = None
    mesh: Mesh | None = None
    fused: bool | None = None  # see `assembly.load`


class Entry(NamedTuple):
    """One line of the comparison, ready to compile."""

    name: str
    recipe: Recipe
    settings: dict[str, Any]  # without max_new_tokens
    models: tuple
    params: dict[str, Any]  # by role
    model_names: list[str]  # one a role
    tokenizer: Any
    guarantee: str  # says its decoder, under these settings
    temperature: float


def entries(
    wanted: Sequence[str | Callable] | None,
    overrides: dict[str, dict[str, Any]],
    choice: Choice,
    max_new_tokens: int,
) -> tuple[list[Entry], list[str]]:
    """The lines to run, the baseline first, and notes on what was left out.

    `wanted` None: all of `defaults` that fit. `overrides` maps a name to settings.
    Lossless methods run greedily, so that they can be compared with greedy decoding.
    Raises ValueError, naming the method, for an unknown name, knob or value, and for a
    method that was asked for and does not fit.
    """
    known = defaults(max_new_tokens)
    found = [recipes.find(each) for each in (known if wanted is None else wanted)]
    chosen = {each.name: each for each in found}
    for name in overrides:
        if name not in chosen:
            raise ValueError(
                f"{name!r} does not run, but has settings; {names.listed(name, chosen)}"
            )
    given = None
    if choice.model is not None:
        given = assembly.load(choice.model, *choice[2:])[0]
    if given is None or getattr(given, "predicts", "next") == "next":
        chosen = {BASELINE: recipes.find(BASELINE), **chosen}
    made, notes = [], []
    for name, recipe in chosen.items():
        settings = {**recipe.settings, **known.get(name, {}), **overrides.get(name, {})}
        try:
            made.append(entry(recipe, settings, choice, max_new_tokens))
        except (ValueError, TypeError) as error:
            if wanted is None and name not in overrides:
                notes.append(f"{recipe.label} left out: {error}")
                continue
            if str(error).startswith(recipe.label):
                raise
            raise ValueError(f"{recipe.label}: {error}") from error
    if not made:
        raise ValueError(f"no method fits {choice.model}: {'; '.join(notes)}")
    return made, notes


def entry(recipe: Recipe, settings, choice: Choice, max_new_tokens: int) -> Entry:
    """One line, its decoder built once to see that the settings are good."""
    method, known = recipe.method, knobs.parameters(recipe.method)
    values = {**settings, "max_new_tokens": max_new_tokens}
    mesh = choice.mesh
    found = assembly.assemble(
        recipe, values, choice.model, _second(recipe, choice), *choice[2:]
    )
    # Building the recipe checks what the signature cannot say.
    traced, sizes = knobs.split(method, values)
    decoder = method(*found.models, **sizes, **traced)
    if decoder.guarantee == "lossless" and "temperature" in known:
        settings.setdefault("temperature", 0.0)
    temperature = settings.get("temperature")
    if temperature is None and "temperature" in known:
        temperature = known["temperature"].default
    models = found.models
    if mesh is not None:
        models = tuple(
            sharding.on_mesh(each, mesh) if isinstance(each, Model) else each
            for each in models
        )
    return Entry(
        name=recipe.name,
        recipe=recipe,
        settings=settings,
        models=models,
        params=found.params,
        model_names=found.names,
        tokenizer=found.tokenizer,
        guarantee=decoder.guarantee,
        temperature=float(temperature or 0.0),
    )


def _second(recipe: Recipe, choice: Choice) -> str | None:
    """The chosen drafter, for a method that takes such a one."""
    roles = knobs.roles(recipe.method)
    if choice.drafter is None or len(roles) == 1:
        return None
    given = assembly.load_drafter(choice.drafter, *choice[2:])[0]
    held = [role for role in assembly.BESIDE if role in roles] or ["model"]
    return choice.drafter if knobs.word(given) in held else None
