"""How far a drafter is followed: acceptance by depth, measured by decoding.

A round that its row's end or EOS cut says that what it kept was accepted, and nothing
of the depth behind: it counts as watched down to there (Kaplan & Meier, 1958). The mean
accepted length is the sum over depths of the products of their rates, as if no round
were cut.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from pdecode import decode as loops
from pdecode import generation, knobs, rng
from pdecode.data import snippets
from pdecode.evals import quality
from pdecode.families import speculative
from pdecode.models import embedded


class Depth(NamedTuple):
    """One depth of the draft: of the rounds that came so far, how many went on."""

    depth: int  # 1 is the root's child
    reached: int
    accepted: int
    rate: float
    low: float  # Wilson's 95 %
    high: float


class Acceptance(NamedTuple):
    """What a drafter is worth in tokens; intervals are 95 %."""

    method: str
    model: str
    drafter: str | None
    num_rounds: int
    depths: list[Depth]
    mean_accepted: float
    tokens_per_call: float
    tokens_per_call_interval: tuple[float, float]  # rows drawn again


def measure(
    *,
    method: str | None = None,
    model: str | None = None,
    drafter: str | None = None,
    num_prompts: int = 16,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    prompts: list | None = None,
    **settings: Any,
) -> Acceptance:
    """Decodes held-out prompts (or `prompts`) and counts what was accepted where.

    Of a run's folder as `drafter`, the method and the target default to its record's.
    Raises ValueError for a method that drafts nothing, and as `generation.prepare`.
    """
    if drafter is not None:
        method, model, settings = _of_record(drafter, method, model, settings)
    if method is None:
        raise ValueError(f"drafter={drafter}: name the method that takes it")
    if prompts is None:
        prompts = [each.prompt for each in snippets.prompts(num_prompts)]
    job = generation.prepare(
        prompts, method=method, model=model, drafter=drafter,
        max_new_tokens=max_new_tokens, temperature=temperature, **settings,
    )  # fmt: skip
    committed, max_depth = rounds(job, seed)
    depths = by_depth(committed, max_depth)
    rates = np.array([each.rate for each in depths])
    tokens, calls = committed.sum(0), (committed > 0).sum(0)
    return Acceptance(
        method=job.method_name,
        model=job.model_name,
        drafter=job.drafter_name,
        num_rounds=int(calls.sum()),
        depths=depths,
        mean_accepted=float(np.cumprod(rates).sum()),
        tokens_per_call=float(tokens.sum() / calls.sum()),
        tokens_per_call_interval=quality.interval(tokens, calls),
    )


def rounds(job: generation.Job, seed: int = 0) -> tuple[np.ndarray, int]:
    """Tokens committed in each round, int [steps, B] (0: done), and the draft's depth.

    ValueError for a method whose family drafts and verifies nothing.
    """
    traced, sizes = knobs.split(job.method, job.settings)

    def made(values):
        decoder = job.method(*job.models, **sizes, **values)
        plan = getattr(decoder.init, "args", (None,))[0]
        if not isinstance(plan, speculative.Plan) or not plan.drafter.num_nodes:
            raise ValueError(
                f"{job.method_name} has no drafts to accept: take a method that drafts "
                "and verifies (pdecode methods lists them as speculative)"
            )
        return decoder, plan.drafter.max_depth

    _, max_depth = made(traced)

    @functools.partial(jax.jit, static_argnames="num_steps")
    def counted(params, prompt, key, values, num_steps):
        decoder = loops.with_trace(
            made(values)[0], lambda state, info: info.num_committed, num_steps
        )
        return loops.decode_state(decoder, params, prompt, key)[0].saved

    num_steps = job.settings["max_new_tokens"]
    saved = counted(job.params, job.prompt, rng.key(seed), traced, num_steps)
    return np.asarray(saved), max_depth


def by_depth(committed: np.ndarray, max_depth: int) -> list[Depth]:
    """Acceptance by depth from tokens committed in each round, int [steps, B].

    A row's rounds come first and 0 is what follows; its last one may have been cut.
    """
    found = []
    is_last = (committed > 0) & (np.append(committed[1:], 0 * committed[:1], 0) == 0)
    for depth in range(1, max_depth + 1):
        accepted = int((committed > depth).sum())
        # Of a round that may be cut, the depth behind what it kept is not known.
        refused = int(((committed == depth) & ~is_last).sum())
        reached = accepted + refused
        low, high = quality.wilson(accepted, reached)
        rate = accepted / reached if reached else 0.0
        found.append(Depth(depth, reached, accepted, rate, low, high))
    return found


def _of_record(drafter: str, method, model, settings: dict):
    """Method, target and settings that a run's record names, where none are given."""
    if not (drafter in embedded.NAMES or embedded.is_run(drafter)):
        return method, model, settings
    from pdecode.train import objectives

    record = embedded.read_from(drafter)[1]
    origin = record.get("frozen", {}).get("target")
    if model is None and origin is not None and embedded.is_run(drafter):
        model = origin["from"]
    if method is not None:
        return method, model, settings
    decoded_by = objectives.find(record["objective"]).decoded_by
    if decoded_by is None:
        return "speculative_sampling", model, settings
    options = record["config"].get("options", record["config"])
    method, sizes = decoded_by(options)
    return method, model, {**sizes, **settings}
