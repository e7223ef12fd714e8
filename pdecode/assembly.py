"""The models that a method decodes with: loaded, and checked against each other."""

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from pdecode import knobs, names, other_words, sharding
from pdecode.checkpoints import drafters
from pdecode.contracts import DraftLayer, Model, Params
from pdecode.data import role_files
from pdecode.methods import variants
from pdecode.models import denoiser, fusing, transformer
from pdecode.models.staged import Staged
from pdecode.other_words import SHARED
from pdecode.recipes import Recipe

# By what a model predicts: what it is in words, and the method it gets by default.
KINDS = {
    "next": ("a causal model", "autoregressive"),
    "masked": ("a model trained with a mask token", "llada"),
    "uniform": ("a model trained with uniform noise", "diffusion_gemma"),
    "noised": ("a model that was taught a function of noise", "distilled_decoding"),
}
# What a run's folder may hold, by `knobs.word`, and which of it goes with a model.
HELD = {
    "model": "a model",
    "heads": "a set of heads",
    "chained_heads": "a set of chained heads",
    "layer": "a draft layer",
    "modules": "a row of draft modules",
    "filter": "a filter",
    "prompt_tokens": "a set of prompt tokens",
    "judge": "a judge",
    "block_layer": "a draft layer of blocks",
    "transfer": "a set of maps of hidden states",
}
BESIDE = (
    "heads", "chained_heads", "layer", "modules", "filter", "prompt_tokens",
    "block_layer", "transfer", "judge",
)  # fmt: skip


# What a drafter may be made of a named model: NAME@group=2, NAME@shared.
GROUP = "group="


class Assembled(NamedTuple):
    """The models that a method decodes with."""

    names: list[str]  # one a role
    models: tuple
    params: dict[str, Params]  # by role
    tokenizer: Any


def assemble(
    recipe: Recipe,
    values: dict[str, Any],
    model: str | None,
    drafter: str | None,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    fused: bool | None = None,
    files: Mapping[str, str] | None = None,
) -> Assembled:
    """Loads what `recipe` decodes with; ValueError for what does not fit it.

    `files` are those of `data.role_files`, by role.
    """
    from pdecode.models import embedded

    roles = knobs.roles(recipe.method)
    files = dict(files or {})
    if "corpus" in roles and drafter is not None:
        files.setdefault("corpus", drafter)
    kinds = {role: _checked_kind(role, recipe) for role in files}
    if drafter is not None and len(roles) == 1:
        raise ValueError(f"{recipe.label} takes no drafter, but drafter={drafter!r}")
    model_name = model or default_model(recipe, values)
    if model_name in embedded.SETS:
        model_name = first_taken(recipe, values, embedded.SETS[model_name])
    place = dtype, mesh, fused
    target, params, tokenizer = load(model_name, *place)
    if not isinstance(target, Model):
        raise ValueError(_no_model(model_name, target))
    needed = knobs.needs(recipe.method).get("model", target.predicts)
    if needed != target.predicts:
        raise ValueError(
            f"{recipe.label} needs {KINDS[needed][0]}, but {model_name} is "
            f"{KINDS[target.predicts][0]}: use one of "
            f"{', '.join(variants.fitting(target.predicts))}"
        )
    whole = Assembled([model_name], (target,), {"model": params}, tokenizer)
    unread = [role for role in roles[1:] if role not in files]
    if drafter is not None and not unread and drafter not in files.values():
        raise ValueError(
            f"drafter={drafter!r} would not be read: of {recipe.label} the files are "
            f"the {', '.join(files)}; leave one of them out"
        )
    named = dict(zip(unread, _named(recipe, unread, drafter), strict=True))
    for role in roles[1:]:
        if role in files:
            name = files[role]
            second, tree = _of_file(kinds[role], name, whole, mesh)
        else:
            name, second, tree = _beside(role, recipe, whole, named[role], place)
        first = whole.models[0]
        if isinstance(second, DraftLayer) and second.taps and target.tapped:
            first = target.tapped(second.taps)
        whole = whole._replace(
            names=[*whole.names, name],
            models=(first, *whole.models[1:], second),
            params={**whole.params, role: tree},
        )
    return whole


def _beside(role: str, recipe: Recipe, whole: Assembled, drafter: str | None, place):
    """(name, itself, params) of a model, heads or a layer that fit the target."""
    from pdecode.models import embedded

    mesh, model_name, target = place[1], whole.names[0], whole.models[0]
    wanted = knobs.needs(recipe.method).get(role, "next")
    if file_kind(recipe, role) and (wanted not in BESIDE or drafter is None):
        raise ValueError(
            f"{recipe.label} needs a {role}, which is a file (data.role_files): "
            f"pdecode generate takes it as --file {role}=FILE, pdecode.generate as "
            f"files={{{role!r}: FILE}}; compare and tune take none"
        )
    if wanted not in (*KINDS, *BESIDE, "spelled"):
        raise ValueError(
            f"{recipe.label} needs a {role}, which no model folder holds: make "
            "its record and params in Python and call pdecode.run"
        )
    name, second, tree, words = _second(role, recipe, model_name, drafter, *place)
    if isinstance(second, Model):
        _check_kind(recipe, name, second, "next" if wanted == "spelled" else wanted)
    if wanted == "spelled" or parted(name)[1] == SHARED:
        own = other_words.words(name, second, words)
        its = other_words.words(model_name, target, whole.tokenizer)
        size = target.vocab_size
        second, tree = other_words.spelled_in(
            wanted, second, tree, own, its, size, mesh
        )
    elif getattr(second, "vocab_size", target.vocab_size) != target.vocab_size:
        second, tree = other_words.resized(
            second, tree, words, target, whole.tokenizer, mesh
        )
    if not isinstance(second, Model) and not drafters.is_published(name):
        embedded.check_drafter(model_name, whole.params["model"], name)
    return name, second, tree


def _no_model(name: str, record: Any) -> str:
    """Why what was found under a name is not decoded by itself."""
    if isinstance(record, Staged):
        return f"{name} draws values, no tokens: pdecode.families.staged does"
    return f"{name} is {HELD[knobs.word(record)]}: give it as the drafter"


def _named(recipe: Recipe, roles: Sequence[str], drafter: str | None) -> list:
    """What is named for each role beside the model: one name for all, or A,B."""
    found = [drafter] * len(roles)
    if drafter is not None and "," in drafter and not os.path.exists(drafter):
        found = drafter.split(",")
    is_short = "judge" in roles and drafter is not None and "," not in drafter
    if len(found) != len(roles) or is_short:
        raise ValueError(
            f"{recipe.label} takes a {' and a '.join(roles)}: name each, as in "
            f"drafter={','.join(role.upper() for role in roles)!r}, not {drafter!r}"
        )
    return found


def default_model(recipe: Recipe, values: dict[str, Any]) -> str:
    """Name of the embedded model that a method decodes with.

    A method that does not say what it needs is built with either, to see.
    """
    needed = knobs.needs(recipe.method).get("model")
    if needed is not None:
        return "target" if needed == "next" else "diffusion"
    return first_taken(recipe, values, ("target", "diffusion"))


def first_taken(recipe: Recipe, values: dict[str, Any], some: Sequence[str]) -> str:
    """The first of `some` embedded models that a method can be built with.

    A method that takes a second model besides is asked for what it needs alone.
    ValueError, with each one's refusal, if there is none.
    """
    needed = knobs.needs(recipe.method).get("model")
    if needed is not None:
        some = [name for name in some if load(name)[0].predicts == needed] or some
    if len(knobs.roles(recipe.method)) > 1 and needed is not None:
        return some[0]
    seconds = [load(role)[0] for role in knobs.roles(recipe.method)[1:]]
    traced, sizes = knobs.split(recipe.method, values)
    refusals = []
    for name in some:
        try:
            recipe.method(load(name)[0], *seconds, **sizes, **traced)
            return name
        except (ValueError, TypeError) as error:
            refusals.append(f"{name}: {error}")
    raise ValueError(f"{recipe.label} takes no embedded model; {'; '.join(refusals)}")


def load(
    name: str,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    fused: bool | None = None,
) -> tuple[Any, Params, Any]:
    """(model, params, tokenizer) of an embedded model, by name, or of a folder.

    Of heads or a layer the first is their record. `dtype` None keeps the dtype it has.
    With `mesh` the parameters are split over it. `fused` joins the projections of a
    layer (`models.fusing`), None: where that is faster, on one GPU. What was loaded is
    kept until a file of its folder changes. Raises ValueError.
    """
    if fused is None:
        fused = fusing.by_default(mesh)
    return _load(name, dtype, mesh, fused, _stamp(name))


def load_drafter(
    name: str,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    fused: bool | None = None,
) -> tuple[Any, Params, Any]:
    """`load` of a drafter, which may be made of a named model.

    NAME@group=2: two of its layers attend at a time (`transformer.layer_parallel`).
    NAME@shared: a model of another tokenizer, drafting the tokens that both have
    (`models.translated`, which `assemble` makes, as it knows the target).
    """
    name, made = parted(name)
    model, params, tokenizer = load(name, dtype, mesh, fused)
    if made is None:
        return model, params, tokenizer
    if not isinstance(model, Model):
        what = HELD[knobs.word(model)]
        raise ValueError(f"{name} is {what}: give it without @{made}")
    if made != SHARED:
        model = transformer.layer_parallel(model, int(made.removeprefix(GROUP)))
    return model, params, tokenizer


def parted(name: str) -> tuple[str, str | None]:
    """A drafter's name without what is made of it, and that, if anything.

    A folder may be called anything. ValueError for what cannot be made.
    """
    base, at, made = name.rpartition("@")
    if not at or os.path.isdir(name):
        return name, None
    group = made.removeprefix(GROUP)
    is_group = made.startswith(GROUP) and group.isascii() and group.isdigit()
    if made != SHARED and not is_group:
        raise ValueError(
            f"drafter={name!r}: no such folder, and of a model can be made "
            f"NAME@{GROUP}N, with N of its layers side by side, or NAME@{SHARED}, by "
            "the tokens that are the target's too"
        )
    return base, made


def _stamp(folder: str) -> tuple:
    """What changes when a file of `folder` does."""
    if not os.path.isdir(folder):
        return ()
    with os.scandir(folder) as entries:
        files = [(each.name, each.stat()) for each in entries if each.is_file()]
    return tuple(sorted((name, s.st_mtime_ns, s.st_size) for name, s in files))


@functools.lru_cache(maxsize=8)
def _load(name: str, dtype: str | None, mesh: Mesh | None, fused: bool, stamp: tuple):
    del stamp
    from pdecode import checkpoints
    from pdecode.checkpoints import tokenizer as tokenizers
    from pdecode.models import embedded

    name = embedded.SETS.get(name, (name,))[0]
    if name in embedded.NAMES or embedded.is_run(name):
        model, params, tokenizer = embedded.load(name, dtype=dtype)
        if isinstance(model, denoiser.Net):
            raise ValueError(
                f"{name} denoises frames, which are no tokens: draw them with python "
                "-m pdecode.evals.bench.films"
            )
        if isinstance(model, Model) and model.vocab_size != tokenizer.vocab_size:
            tokenizer = tokenizers.load(pathlib.Path(name))  # no bytes: ids only
        if fused and isinstance(model, Model):
            params = fusing.fused(params)
        if mesh is not None:
            is_whole = isinstance(model, Model)
            split = sharding.shard_params if is_whole else sharding.replicate
            params = split(params, mesh)
        return model, params, tokenizer
    if not os.path.isdir(name):
        raise ValueError(
            f"unknown model {name!r}: no such folder; embedded models, "
            f"{names.listed(name, embedded.NAMES)}"
        )
    model, params, tokenizer = checkpoints.load(
        name, dtype=dtype, mesh=mesh, fused=fused
    )
    if mesh is not None:
        sharding.warn_of_whole(params, mesh)
    return model, params, tokenizer


def _second(
    role: str, recipe: Recipe, model: str, drafter: str | None, dtype, mesh, fused
) -> tuple[str, Any, Params, Any]:
    """What stands beside the target: name, itself, params and tokenizer, if any."""
    from pdecode.models import embedded

    if drafter is None:
        if role == "filter":
            raise ValueError(
                f"{recipe.label} needs a filter trained for {model}: give the folder "
                "of a run of objective=block_filter as the drafter"
            )
        if model != "target" or role not in embedded.NAMES:
            raise ValueError(
                f"{recipe.label} needs a {role} for {model}: name an embedded model or "
                "a folder as the drafter"
            )
        drafter = role
    if role in drafters.PUBLISHED and drafters.is_published(drafter):
        second, tree = drafters.published(role, drafter, model)
        return drafter, second, tree, None
    second, tree, words = load_drafter(drafter, dtype, mesh, fused)
    word = knobs.word(second)
    if word != (role if role in BESIDE else "model"):
        raise ValueError(
            f"{recipe.label} takes a {role}, but {drafter} is {HELD[word]}"
        )
    return drafter, second, tree, words


def file_kind(recipe: Recipe, role: str) -> str | None:
    """Which of `role_files.READERS` a role's file is for; None: it is no file."""
    kind = "store" if role == "corpus" else knobs.needs(recipe.method).get(role)
    return kind if kind in role_files.READERS else None


def _checked_kind(role: str, recipe: Recipe) -> str:
    roles = knobs.roles(recipe.method)[1:]
    known = [each for each in roles if file_kind(recipe, each)]
    if role not in known:
        its = f"takes a file as its {', '.join(known)}" if known else "takes no files"
        raise ValueError(f"{recipe.label} {its}, but files has {role!r}")
    return str(file_kind(recipe, role))


def _of_file(kind: str, path: str, whole: Assembled, mesh: Mesh | None):
    """(record, params) of a file; ValueError for a judge of other states."""
    record, tree = role_files.read(kind, path)
    if kind == "judge":
        head = jax.eval_shape(whole.models[0].head, whole.params["model"])
        own, its = tree["weight"].shape[0], head.weight.shape[1]
        if own != its:
            raise ValueError(
                f"{path} judges states of {own} numbers, but those of "
                f"{whole.names[0]} have {its}"
            )
    return record, tree if mesh is None else sharding.replicate(tree, mesh)


def _check_kind(recipe: Recipe, name: str, drafter: Model, kind: str) -> None:
    if drafter.predicts != kind:
        raise ValueError(
            f"{recipe.label} needs {KINDS[kind][0]} as its drafter, but {name} is "
            f"{KINDS[drafter.predicts][0]}"
        )
