"""Drafters and whole decoders on the toys: what they propose, and whose law comes out.

A drafter's randomness is its own, so the law is sampled here: many rows against the
exact joint, with the distance that as many draws from the joint itself stay under.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdecode import decode, drafters, prompts, rng, trees
from pdecode.checks import canvas, runs, toys
from pdecode.checks.report import Finding, Report, string
from pdecode.contracts import Decoder, Draft, Drafter, Model, Sampling
from pdecode.families import speculative
from pdecode.models import toy
from pdecode.rules import accept

VOCAB, NEW, SEED = 2, 3, 3
ROWS, CHUNKS = 4096, 4


class Small(NamedTuple):
    """Toys over few strings, so that a law is seen in some thousand rows."""

    law: toy.Table
    near: toy.Table | toy.Chain
    models: dict[str, Model]  # by what they predict


def small() -> Small:
    """A joint of VOCAB ** (1 + NEW) strings, one near it, and their models."""
    law = toy.joint(SEED, VOCAB, 1 + NEW, sharpness=2.0)
    near = toy.mixed(law, toy.joint(SEED + 1, VOCAB, 1 + NEW, sharpness=2.0), 0.5)
    kinds = {kind: toy.make_model(VOCAB, 1 + NEW, predicts=kind)
             for kind in ("next", "masked")}  # fmt: skip
    return Small(law, near, kinds)


def report(
    make: Callable[..., Drafter], knobs: dict, name: str, extra: dict, is_function: bool
) -> Report:
    """What `make(model=..., **knobs)` proposes for a toy; a drafter is of one toy."""
    drafter = make(**knobs)
    params = {"model": toys.LAW, "drafter": toys.NEAR, **extra}
    sampling = Sampling(1.0)

    def build(**traced) -> Decoder:
        return speculative.draft_verify(
            toys.CAUSAL, make(**traced),
            max_new_tokens=toys.NEW, sampling=sampling,
        )  # fmt: skip

    wrong, has_law = shape_of(drafter, build(**knobs), params)
    findings = [Finding("proposals", not wrong, wrong or _proposes(drafter))]
    seen = runs.of(runs.Tried(build, knobs, params))
    findings += seen.findings
    findings.append(_same_as_plain(seen, params))
    if has_law and is_function:
        findings.append(honest_finding(make, knobs, extra))
    calls, tokens = seen.stats.num_calls.sum(), seen.stats.num_committed.sum()
    worth = f"{tokens / calls:.2f} tokens a target call on the toy; plain decoding: 1"
    findings.append(Finding("worth", True, worth))
    return Report(name, "drafter", tuple(findings))


def shape_of(drafter: Drafter, decoder: Decoder, params: dict) -> tuple[str, bool]:
    """What is wrong with a first draft, in words, and whether it has laws q."""

    @toys.quick
    def first(params, keys, prompt):
        state, _ = decoder.init(params, keys, prompt)
        return drafter.propose(params, keys, state.drafter, state.prefix)[0]

    prompt = toys.ragged()
    keys = rng.row_keys(jax.random.key(0), prompt.row_ids)
    draft = first(params, keys, prompt)
    return _wrong(drafter, draft), draft.q is not None


def _wrong(drafter: Drafter, draft: Draft) -> str:
    """What is wrong with a draft of the toys' rows; empty if nothing is."""
    tokens, parents = np.asarray(draft.tokens), np.asarray(draft.parents)
    want = (len(toys.ROWS), drafter.num_nodes)
    for label, found in (("tokens", tokens), ("parents", parents)):
        if found.shape != want:
            return (
                f"{label} of a draft are {found.shape}, but num_nodes asks for {want}"
            )
    late = parents >= np.arange(want[1])[None]
    if late.any():
        row, node = np.argwhere(late)[0]
        return f"node {node} has parent {parents[row, node]}: parents come first"
    if (tokens >= toys.CAUSAL.vocab_size).any():
        return f"a draft holds id {tokens.max()}, outside the vocabulary"
    reach = trees.ancestors(jnp.asarray(parents))
    depth = np.asarray(trees.depths(reach))[:, 1:]
    stored = want[1] - drafter.num_probes
    deepest = int(
        np.where(tokens[:, :stored] >= 0, depth[:, :stored], 0).max(initial=0)
    )
    if deepest > drafter.max_depth:
        return f"a path is {deepest} deep, but max_depth={drafter.max_depth}"
    if draft.q is None:
        return ""
    q, is_real = np.asarray(draft.q), tokens >= 0
    sums = q.sum(-1)[is_real]
    if sums.size and np.abs(sums - 1).max() > 1e-3:
        return f"a law q sums to {sums[np.abs(sums - 1).argmax()]:.3f}, not 1"
    own = np.take_along_axis(q, np.maximum(tokens, 0)[..., None], -1)[..., 0]
    if (own[is_real] <= 0).any():
        return "a token was drawn that its law q gives no probability"
    return ""


def _proposes(drafter: Drafter) -> str:
    return (
        f"drafts are well formed: {drafter.num_nodes} nodes, at most "
        f"{drafter.max_depth} deep"
    )


def _same_as_plain(seen: runs.Runs, params: dict) -> Finding:
    """Under `match` the tokens are those of plain sampling, whatever is proposed."""
    says = unlike_plain(seen.generation, params, 1.0)
    kept = "with acceptance 'match' every token is plain sampling's with the same key"
    return Finding("same tokens", not says, says or kept)


def unlike_plain(made: Any, params: dict, temperature: float) -> str:
    """The first row that differs from plain decoding's, in words; empty if none does.

    `made` is what the rows of `toys.ragged` became with the key of `runs`.
    """
    plain = speculative.draft_verify(
        toys.CAUSAL, drafters.nothing(), max_new_tokens=toys.NEW,
        sampling=Sampling(temperature),
    )  # fmt: skip
    want, _ = runs._Program(runs.Tried(lambda: plain, {}, params))(toys.ragged())
    for row, tokens in enumerate(toys.ROWS):
        mine, its = (
            each.tokens[row, : each.start[row] + each.lengths[row]]
            for each in (made, want)
        )
        if mine.tolist() != its.tolist():
            return (
                f"the row [{string(tokens)}] became [{string(mine)}] and plain "
                f"decoding says [{string(its)}]"
            )
    return ""


class Sampled(NamedTuple):
    """A law seen in many rows."""

    variation: float  # total variation of the counts from the exact law
    floor: float  # what so many draws of the law itself stay under, 999 in 1000
    worst: tuple[int, ...]
    exact: float  # probability of `worst`
    seen: float


def sampled(decoder: Decoder, params: dict[str, Any], exact: dict) -> Sampled:
    """The law of `decoder` behind the prompt [0], from ROWS * CHUNKS rows."""
    strings = list(exact)
    prompt = prompts.from_rows([[0]] * ROWS, max_new_tokens=NEW)
    weights = jnp.array([VOCAB ** (NEW - 1 - i) for i in range(NEW)])

    @jax.jit
    def outcomes(params, key):
        made, _ = decode.decode(decoder, params, prompt, key)
        codes = (made.tokens[:, 1 : NEW + 1] * weights[None]).sum(1)
        return jnp.zeros(VOCAB**NEW, jnp.int32).at[codes].add(1)

    keys = map(jax.random.key, range(CHUNKS))
    counts = np.sum([np.asarray(outcomes(params, key)) for key in keys], axis=0)
    law = np.array([exact[string] for string in strings])
    law = law / law.sum()
    total = counts.sum()
    draws = np.random.default_rng(0).multinomial(total, law, size=2000) / total
    off = int(np.abs(counts / total - law).argmax())
    return Sampled(
        float(0.5 * np.abs(counts / total - law).sum()),
        float(np.quantile(0.5 * np.abs(draws - law[None]).sum(1), 0.999)),
        strings[off], float(law[off]), float(counts[off] / total),
    )  # fmt: skip


def sampled_finding(decoder: Decoder, params: dict[str, Any]) -> Finding:
    """Whether the sampled law is the joint's."""
    toys_ = small()
    found = sampled(decoder, params, canvas.exact_law(toys_.law, VOCAB, NEW))
    rows = f"{ROWS * CHUNKS:,} rows"
    if found.variation < found.floor:
        says = (
            f"the target's law, as far as {rows} tell (total variation "
            f"{found.variation:.2g}; so many draws of the law itself stay under "
            f"{found.floor:.2g})"
        )
        return Finding("law", True, says, found.variation)
    says = (
        f"biased: total variation {found.variation:.2g} from the target's law in "
        f'{rows} (chance stays under {found.floor:.2g}); "{string(found.worst)}" has '
        f"probability {found.exact:.3f} and came with {found.seen:.3f}"
    )
    return Finding("law", False, says, found.variation)


def honest_finding(make: Callable[..., Drafter], knobs: dict, extra: dict) -> Finding:
    """Whether the laws q of a drafter are those that its tokens were drawn from."""
    these = small()
    target = these.models["next"]
    decoder = speculative.draft_verify(
        target, make(model=target, **knobs), max_new_tokens=NEW,
        sampling=Sampling(1.0), acceptance=accept.traversal_verification(),
    )  # fmt: skip
    params = {"model": these.law, "drafter": these.near, **extra}
    found = sampled_finding(decoder, params)
    lead = "q is the law of what it draws: a lossless rule keeps " if found.holds else (
        "q is not the law of what it draws: a lossless rule is then "
    )  # fmt: skip
    return Finding("honest q", found.holds, lead + found.says, found.value)
