"""From a prompt to text in one call: `pdecode.generate("def fib(n):", method="llada")`.

The composed form, which this is made of:

    model, params, tokenizer = pdecode.load("diffusion")
    rows = [tokenizer.encode("def fib(n):")]
    prompt = prompts.from_rows(rows, max_new_tokens=64, model=model)
    generation, stats = pdecode.run(methods.llada, model, params, prompt,
                                    jax.random.key(0), max_new_tokens=64, steps=32)
    print(pdecode.texts(generation, tokenizer))
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from pdecode import assembly, knobs, prompts, recipes, rng, sharding
from pdecode import programs as programs_module
from pdecode.assembly import load
from pdecode.contracts import Model, Params, Prompt
from pdecode.families import lensed
from pdecode.replay import recording
from pdecode.results import Result, result_of
from pdecode.rules import processing


class Job(NamedTuple):
    """Everything a decode needs, loaded and checked; settings are checked later."""

    method: Callable
    models: tuple
    params: dict[str, Params]  # by role
    tokenizer: Any
    prompt: Prompt
    settings: dict[str, Any]  # knobs and sizes, max_new_tokens among them
    eos_ids: tuple[int, ...]  # of the model, also where the decode ignores them
    method_name: str
    model_name: str
    drafter_name: str | None  # or the heads
    row_ids: list[int]
    mesh: Mesh | None = None  # where all of it lies; None: on one device
    lenses: Mapping[str, Any] = MappingProxyType({})  # as they were asked for

    @property
    def used(self) -> dict[str, Any]:
        """`settings`, the defaults of those that were not given, and lenses, if any."""
        used = knobs.used(self.method, self.settings)
        return {**used, "lenses": dict(self.lenses)} if self.lenses else used


def generate(
    prompt: str | Sequence,
    *,
    method: str | Callable | None = None,
    model: str | None = None,
    drafter: str | None = None,
    max_new_tokens: int = 64,
    temperature: float | None = None,
    seed: int = 0,
    row_ids: Sequence[int] | None = None,
    keep_eos_tail: bool = False,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    fused: bool | None = None,
    lenses: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    **settings: Any,
) -> Result:
    """Continues `prompt`: a text, texts, one row of ids or rows of ids.

    `method` names a method or a configuration (default: autoregressive, llada or
    diffusion_gemma, by the model), or is one: a function, or where its code is
    ("file.py:name", "module:name"). `model` and `drafter` are an embedded model or a
    checkpoint folder (default: the embedded one that fits the method; a method that
    takes heads gets them as its drafter). A drafter may be made of a model:
    "NAME@group=2" has two of its layers attend at a time, "NAME@shared" is of another
    tokenizer and drafts the tokens that both have. Further settings are the method's
    knobs and sizes. A row's noise is named by its prompt and by its number among equal
    ones, so that it decodes the same in any company; `row_ids` names it otherwise.
    `keep_eos_tail` decodes and returns what lies behind EOS too. With `mesh`
    (`sharding.make_mesh`) weights, caches and rows are split over it; its devices may
    be those of several processes that make the same call. `fused` computes the
    projections of a layer as one product (None: on one GPU). `lenses` change the law
    of the target, and of a draft model alike, before anything is drawn: a mapping of
    repetition_penalty, presence_penalty, frequency_penalty, min_p, ban_ids, forced or
    grammar (`rules.processing.asked`), for methods of the draft-and-verify family, but
    not for pearl, quantspec, spec_pv, hidden_transfer and early_exit, whose steps are
    their own, nor for sjd, sjd2 and gsd, which tell the law of their drafts from the
    target's. `files` are those of roles that are no model, such as
    {"corpus": "texts.npy"} (`data.role_files`); published Medusa and EAGLE folders are
    drafters. A row whose model says what is no number ends there, with stopped_by
    "not_finite". Raises ValueError or TypeError.
    """
    job = prepare(
        prompt,
        method=method,
        model=model,
        drafter=drafter,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        row_ids=row_ids,
        keep_eos_tail=keep_eos_tail,
        dtype=dtype,
        mesh=mesh,
        fused=fused,
        lenses=lenses,
        files=files,
        **settings,
    )
    return decoded(job, seed=seed, keep_eos_tail=keep_eos_tail)


def decoded(job: Job, *, seed: int = 0, keep_eos_tail: bool = False) -> Result:
    """Compiles `job`, unless that was done before, and decodes it."""
    programs, key = compiled(job), rng.key(seed)
    if job.mesh is not None:
        key = sharding.replicate(key, job.mesh)
    made = programs_module.timed(programs, job.params, job.prompt, key)
    timing = {
        "compile_s": round(programs.compile_s, 6),
        "prefill_s": round(made.prefill_s, 6),
        "decode_s": round(made.decode_s, 6),
    }
    return result_of(
        job, made.generation, made.stats, timing, made.commit_step,
        keep_eos_tail=keep_eos_tail,
    )  # fmt: skip


def recorded(job: Job, *, seed: int = 0, keep_eos_tail: bool = False) -> Result:
    """`decoded`, and what every step did: what a replay of revisions needs.

    The program runs twice: at a go, for its times, and a step at a time.
    """
    made = decoded(job, seed=seed, keep_eos_tail=keep_eos_tail)
    programs, key = compiled(job), rng.key(seed)
    if job.mesh is not None:
        key = sharding.replicate(key, job.mesh)
    with programs_module.on(job.mesh):
        steps = programs_module.steps(programs, job.params, job.prompt, key)
        return made._replace(recorded=recording.rows(steps, job.tokenizer))


def slices(job: Job, size: int | None) -> Iterator[Job]:
    """`job` in parts of `size` rows at most, each as wide as the whole."""
    count = len(job.row_ids)
    if size is None or size >= count:
        yield job
        return
    for begin in range(0, count, size):
        here = slice(begin, begin + size)
        prompt = jax.tree.map(lambda leaf, here=here: leaf[here], job.prompt)
        if job.mesh is not None:
            prompt = sharding.shard_rows(prompt, job.mesh)
        yield job._replace(prompt=prompt, row_ids=job.row_ids[here])


def compiled(job: Job) -> programs_module.Programs:
    """The programs that decode `job`; from memory or the cache on disk if kept there.

    Prompts of one `prompts.bucket`, seeds and knobs share them.
    """
    return programs_module.compiled(
        job.method, job.models, job.params, job.prompt, mesh=job.mesh, **job.settings
    )


def prepare(
    prompt: str | Sequence,
    *,
    method: str | Callable | None = None,
    model: str | None = None,
    drafter: str | None = None,
    max_new_tokens: int = 64,
    temperature: float | None = None,
    row_ids: Sequence[int] | None = None,
    keep_eos_tail: bool = False,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    fused: bool | None = None,
    lenses: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    **settings: Any,
) -> Job:
    """Loads and encodes what `generate` needs; arguments and errors as there."""
    max_new_tokens = _count(max_new_tokens)
    place = dtype, mesh, fused
    recipe = recipes.find(_by_default(model, place) if method is None else method)
    values = {**recipe.settings, **settings, "max_new_tokens": max_new_tokens}
    if temperature is not None:
        values["temperature"] = temperature
    chosen = assembly.assemble(recipe, values, model, drafter, *place, files)
    target = chosen.models[0]
    rows = prompts.encode(prompt, chosen.tokenizer)
    width = max(map(len, rows))
    made = prompts.from_rows(
        rows,
        max_new_tokens=max_new_tokens,
        row_ids=prompts.row_ids(rows) if row_ids is None else row_ids,
        pad_to=min(prompts.bucket(width), max(width, _room(target, max_new_tokens))),
        model=target,
    )
    named = made.row_ids.tolist()
    own, params = _under(lenses, recipe.method, chosen, mesh)
    models = list(chosen.models)
    if keep_eos_tail:
        models[0] = target._replace(eos_ids=())
    if mesh is not None:
        models = [
            sharding.on_mesh(each, mesh) if isinstance(each, Model) else each
            for each in models
        ]
        made = sharding.shard_rows(made, mesh)
    return Job(
        method=own,
        models=tuple(models),
        params=params,
        tokenizer=chosen.tokenizer,
        prompt=made,
        settings=values,
        eos_ids=target.eos_ids,
        method_name=recipe.name,
        model_name=chosen.names[0],
        drafter_name=chosen.names[1] if len(chosen.names) > 1 else None,
        row_ids=named,
        mesh=mesh,
        lenses=lenses or {},
    )


def _by_default(model: str | None, place: tuple) -> str:
    """Name of the method that `model` gets if none is asked for."""
    given = None if model is None else load(model, *place)[0]
    return assembly.KINDS[given.predicts if isinstance(given, Model) else "next"][1]


def _under(lenses: Mapping[str, Any] | None, method: Callable, chosen, mesh):
    """The method under `lenses`, and the params that they are among."""
    if not lenses:
        return method, chosen.params
    target = chosen.models[0]
    changes, own = processing.asked(lenses, target.vocab_size, target.mask_id)
    own = own if mesh is None else sharding.replicate(own, mesh)
    return lensed.lensed(method, changes), {**chosen.params, processing.ROLE: own}


def _room(model: Model, max_new_tokens: int) -> int:
    """How wide a prompt may be for `model` to have positions for all that follows."""
    if model.max_positions is None:
        return np.iinfo(np.int32).max
    size = model.block_len or 1  # canvases are whole
    return model.max_positions - -(-max_new_tokens // size) * size


def _count(max_new_tokens: Any) -> int:
    """A whole number of at least 1, Python's or numpy's."""
    if isinstance(max_new_tokens, bool) or not hasattr(max_new_tokens, "__index__"):
        raise ValueError(f"max_new_tokens={max_new_tokens!r} must be an int")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if max_new_tokens > knobs.MOST:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} must be at most {knobs.MOST}"
        )
    return operator.index(max_new_tokens)
