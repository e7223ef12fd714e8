"""From a prompt to text in one call: `pdecode.generate("def fib(n):", method="llada")`.

The composed form, which this is made of:

    model, params, tokenizer = pdecode.load("diffusion")
    rows = [tokenizer.encode("def fib(n):")]
    prompt = prompts.from_rows(rows, max_new=64, model=model)
    generation, stats = pdecode.run(methods.llada, model, params, prompt,
                                    jax.random.key(0), max_new_tokens=64, steps=32)
    print(pdecode.texts(generation, tokenizer))
"""

import functools
import operator
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from pdecode import knobs, prompts, rng, sharding
from pdecode import programs as programs_module
from pdecode.contracts import STOPPED_BY, DraftHeads, Generation, Model, Params, Prompt
from pdecode.decode import Stats
from pdecode.families.rows import is_eos
from pdecode.methods import variants
from pdecode.models import transformer

# By what a model predicts: what it is in words, and the method it gets by default.
KINDS = {
    "next": ("a causal model", "autoregressive"),
    "masked": ("a model trained with a mask token", "llada"),
    "uniform": ("a model trained with uniform noise", "diffusion_gemma"),
}


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
    mesh: Mesh | None = None  # where all of it lies; None: on one device


class Result(NamedTuple):
    """Plain Python data; `str(result)` is the text. One entry a row in every list."""

    tokens: list[list[int]]  # the generation before EOS, or all with keep_eos_tail
    lengths: list[int]  # generated tokens before the first EOS
    text: list[str]
    stopped_by: list[str]  # one of contracts.STOPPED_BY
    stats: dict[str, Any]  # lists by row, and "steps" and "dispatches" of the batch
    timing: dict[str, float]  # seconds: compile_s, prefill_s, decode_s
    method: str
    model: str
    settings: dict[str, Any]

    def __str__(self) -> str:
        return "\n\n".join(self.text)


def generate(
    prompt: str | Sequence,
    *,
    method: str | None = None,
    model: str | None = None,
    drafter: str | None = None,
    max_new_tokens: int = 64,
    temperature: float | None = None,
    seed: int = 0,
    keep_eos_tail: bool = False,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    **settings: Any,
) -> Result:
    """Continues `prompt`: a text, texts, one row of ids or rows of ids.

    `method` names a method or a configuration (default: autoregressive, llada or
    diffusion_gemma, by the model), `model` and `drafter` an embedded model or a
    checkpoint folder (default: the embedded one that fits the method; a method that
    takes heads gets them as its drafter). Further settings are the method's knobs and
    sizes. `keep_eos_tail` decodes and returns what lies behind EOS too. With `mesh`
    (`sharding.make_mesh`) weights, caches and rows are split over it; its devices may
    be those of several processes that make the same call. Raises ValueError or
    TypeError.
    """
    job = prepare(
        prompt,
        method=method,
        model=model,
        drafter=drafter,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        keep_eos_tail=keep_eos_tail,
        dtype=dtype,
        mesh=mesh,
        **settings,
    )
    programs, key = compiled(job), rng.key(seed)
    if mesh is not None:
        key = sharding.replicate(key, mesh)
    decoded = programs_module.timed(programs, job.params, job.prompt, key)
    timing = {
        "compile_s": round(programs.compile_s, 6),
        "prefill_s": round(decoded.prefill_s, 6),
        "decode_s": round(decoded.decode_s, 6),
    }
    return result_of(
        job, decoded.generation, decoded.stats, timing, keep_eos_tail=keep_eos_tail
    )


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
    method: str | None = None,
    model: str | None = None,
    drafter: str | None = None,
    max_new_tokens: int = 64,
    temperature: float | None = None,
    keep_eos_tail: bool = False,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    **settings: Any,
) -> Job:
    """Loads and encodes what `generate` needs; arguments and errors as there."""
    max_new_tokens = _count(max_new_tokens)
    if method is None:
        given = None if model is None else load(model, dtype, mesh)[0]
        method = KINDS[given.predicts if isinstance(given, Model) else "next"][1]
    recipe, values = variants.resolve(method)
    values |= settings
    if temperature is not None:
        values["temperature"] = temperature
    values["max_new_tokens"] = max_new_tokens

    model_name = model or default_model(recipe)
    target, params, tokenizer = load(model_name, dtype, mesh)
    _check_target(recipe, method, model_name, target)
    others = _others(
        recipe, method, model_name, drafter, (target, params, tokenizer), dtype, mesh
    )
    models = [target, *(each for each, _ in others)]
    trees = [params, *(tree for _, tree in others)]
    rows = prompts.encode(prompt, tokenizer)
    width = max(map(len, rows))
    made = prompts.from_rows(
        rows,
        max_new=max_new_tokens,
        pad_to=min(prompts.bucket(width), max(width, _room(target, max_new_tokens))),
        model=target,
    )
    if keep_eos_tail:
        models[0] = target._replace(eos_ids=())
    if mesh is not None:
        models = [
            sharding.on_mesh(each, mesh) if isinstance(each, Model) else each
            for each in models
        ]
        made = sharding.shard_rows(made, mesh)
    return Job(
        method=recipe,
        models=tuple(models),
        params=dict(zip(knobs.roles(recipe), trees, strict=True)),
        tokenizer=tokenizer,
        prompt=made,
        settings=values,
        eos_ids=target.eos_ids,
        method_name=method,
        model_name=model_name,
        mesh=mesh,
    )


def default_model(method: Callable) -> str:
    """Name of the embedded model that `method` decodes with."""
    return (
        "target" if knobs.needs(method).get("model", "next") == "next" else "diffusion"
    )


@functools.lru_cache(maxsize=8)
def load(
    name: str, dtype: str | None = None, mesh: Mesh | None = None
) -> tuple[Any, Params, Any]:
    """(model, params, tokenizer) of an embedded model, by name, or of a folder.

    For "heads" the first is a record of heads. `dtype` None keeps the dtype it has.
    With `mesh` the parameters are split over it. Raises ValueError.
    """
    from pdecode import checkpoints
    from pdecode.models import embedded

    if name in embedded.NAMES or embedded.is_run(name):
        model, params, tokenizer = embedded.load(name, dtype=dtype)
        if mesh is not None:
            is_whole = isinstance(model, Model)
            split = sharding.shard_params if is_whole else sharding.replicate
            params = split(params, mesh)
        return model, params, tokenizer
    if not os.path.isdir(name):
        raise ValueError(
            f"unknown model {name!r}: no such folder, and the embedded models are "
            f"{', '.join(embedded.NAMES)}"
        )
    model, params, tokenizer = checkpoints.load(name, dtype=dtype, mesh=mesh)
    if mesh is not None:
        sharding.warn_of_whole(params, mesh)
    return model, params, tokenizer


def texts(generation: Generation, tokenizer: Any) -> list[str]:
    """The generated text of every row, before its EOS."""
    tokens, starts, lengths = map(np.asarray, generation[:3])
    return [
        tokenizer.decode(row[start : start + length].tolist())
        for row, start, length in zip(tokens, starts, lengths)
    ]


def result_of(
    job: Job,
    generation: Generation,
    stats: Stats,
    timing: dict[str, float],
    *,
    keep_eos_tail: bool = False,
) -> Result:
    """Plain data out of arrays."""
    generation, stats = jax.tree.map(np.asarray, (generation, stats))
    rows, lengths, reasons = [], [], []
    for b, start in enumerate(generation.start):
        length = int(generation.lengths[b])
        reason = STOPPED_BY[generation.stopped_by[b]]
        row = generation.tokens[b, start : start + length]
        if keep_eos_tail:
            # The decode knew of no EOS: it fills the row, and the end is found here.
            ends = np.flatnonzero(np.asarray(is_eos(row, job.eos_ids)))
            length, reason = (int(ends[0]), "eos") if ends.size else (length, reason)
        rows.append(row.tolist())
        lengths.append(length)
        reasons.append(reason)
    return Result(
        tokens=rows,
        lengths=lengths,
        text=[job.tokenizer.decode(row[:n]) for row, n in zip(rows, lengths)],
        stopped_by=reasons,
        stats=stats_by_row(stats),
        timing=timing,
        method=job.method_name,
        model=job.model_name,
        settings=job.settings,
    )


def stats_by_row(stats: Stats) -> dict[str, Any]:
    """`Stats` under short names, as lists and ints."""
    calls, committed = np.asarray(stats.num_calls), np.asarray(stats.num_committed)
    return {
        "calls": calls.tolist(),
        "prefill_calls": np.asarray(stats.num_prefill_calls).tolist(),
        "prefill_tokens": np.asarray(stats.num_prefill_tokens).tolist(),
        "query_tokens": np.asarray(stats.num_query_tokens).tolist(),
        "query_tokens_computed": np.asarray(stats.num_query_tokens_computed).tolist(),
        "committed": committed.tolist(),
        "proposed": np.asarray(stats.num_proposed).tolist(),
        "revoked": np.asarray(stats.num_revoked).tolist(),
        "tokens_per_call": (committed / np.maximum(calls, 1)).round(4).tolist(),
        "steps": int(stats.num_steps),
        "dispatches": int(stats.num_dispatches),
    }


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


def _check_target(recipe: Callable, method: str, model: str, target: Any) -> None:
    """ValueError unless `target` is a model of the kind that `recipe` takes."""
    if not isinstance(target, Model):
        raise ValueError(f"{model} is a set of heads: give it as the drafter")
    needed = knobs.needs(recipe)["model"]
    if needed != target.predicts:
        raise ValueError(
            f"{method} needs {KINDS[needed][0]}, but {model} is "
            f"{KINDS[target.predicts][0]}: use one of "
            f"{', '.join(variants.fitting(target.predicts))}"
        )


def _others(
    recipe: Callable, method: str, model: str, drafter: str | None, loaded, dtype, mesh
) -> list[tuple[Any, Params]]:
    """(drafter or heads, parameters) of each further role of `recipe`, checked.

    `loaded` is the target, its parameters and its tokenizer.
    """
    from pdecode.models import embedded

    target, params, tokenizer = loaded
    roles = knobs.roles(recipe)[1:]
    if drafter is not None and not roles:
        raise ValueError(f"{method} takes no drafter, but drafter={drafter!r}")
    found = []
    for role in roles:
        second, tree, words = _second(role, method, model, drafter, dtype, mesh)
        wanted = knobs.needs(recipe).get(role, "next")
        if isinstance(second, Model) and second.predicts != wanted:
            raise ValueError(
                f"{method} needs {KINDS[wanted][0]} as its drafter, but {drafter} is "
                f"{KINDS[second.predicts][0]}"
            )
        if getattr(second, "vocab_size", target.vocab_size) != target.vocab_size:
            second, tree = _resized(second, tree, words, target, tokenizer, mesh)
        if isinstance(second, DraftHeads):
            embedded.check_heads(model, params, drafter or "heads", tree)
        found.append((second, tree))
    return found


def _second(role: str, method: str, model: str, drafter: str | None, dtype, mesh):
    """The drafter or heads of a two-model method, and its parameters."""
    if drafter is None:
        if model != "target":
            raise ValueError(
                f"{method} needs a {role} for {model}: name an embedded model or a "
                "folder as the drafter"
            )
        drafter = role
    second, tree, tokenizer = load(drafter, dtype, mesh)
    is_heads = not isinstance(second, Model)
    if is_heads != (role == "heads"):
        kind = "a set of heads" if is_heads else "a model"
        raise ValueError(f"{method} takes a {role}, but {drafter} is {kind}")
    return second, tree, tokenizer


def _resized(drafter: Model, params: Params, own, target: Model, tokenizer, mesh):
    """`drafter` over the target's ids, where they differ by padding alone."""
    sizes = f"the drafter has {drafter.vocab_size} token ids and the target "
    sizes += str(target.vocab_size)
    words = [
        each.backend.get_vocab() if hasattr(each, "backend") else None
        for each in (own, tokenizer)
    ]
    num_words = min(drafter.vocab_size, target.vocab_size)
    if words[0] is None or words[0] != words[1] or max(words[0].values()) >= num_words:
        raise ValueError(
            f"{sizes}: they need one vocabulary, or one tokenizer and padding behind it"
        )
    warnings.warn(
        f"{sizes}; their tokenizer is one, so what lies behind {num_words} is padding, "
        "which is never drafted",
        stacklevel=3,
    )
    drafter, params = transformer.resized(drafter, params, target.vocab_size)
    return drafter, params if mesh is None else sharding.shard_params(params, mesh)
