"""Lens x commit x remask x edit x window x stop: what makes sense composes.

Each part is a line of a role; a walk puts one of each together and asks for what holds
of every decode. The default run takes a few by seed, `thorough` all of them.
"""

import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import methods, prompts
from pdecode.contracts import STOPPED_BY, Lanes, Rule, Sampling, Window
from pdecode.decode import decode
from pdecode.drafters import ngram
from pdecode.families import frontier, masked, speculative
from pdecode.models import toy
from pdecode.rules import blocks, commit, lenses, orders, remask, stops, windows

VOCAB, LENGTH, EOS = 4, 14, 3
LAW = toy.chain(2587, VOCAB, LENGTH)
MASKED = toy.make_model(VOCAB, LENGTH, predicts="masked", eos_ids=(EOS,))
CAUSAL = toy.make_model(VOCAB, LENGTH, eos_ids=(EOS,))
NEW, STEPS = 8, 12
ROWS = [[0, 1], [2, 0, 1, 1], [1], [0, 2, 0]]
HOLES = [[False, True], [False] * 4, [False], [False] * 3]
LIMITS = [8, 6, 1, 8]
# A hole far in front, ragged prompts, rows of one token and of eight.
PROMPT = prompts.from_rows(ROWS, max_new_tokens=LIMITS, holes=HOLES, pad_to=5)
KEY = jax.random.key(0)

PLAN = jnp.full(STEPS, 0.15)


def _rethink():
    """Overwrites a token when another is twice as likely now."""

    def apply(params, key, row, prediction, memory):
        return prediction.log_prob > prediction.of_log_prob + 0.7, memory

    return Rule(lambda length: (), apply, ("of_log_prob",))


LENSES = {"none": (), "credit": (lenses.credit(2, 0.7, 0.8, 0.2),)}
COMMITS = {
    "quota": commit.quota(commit.order("entropy"), 3),
    "threshold": commit.threshold(0.6),
    "entropy bound": commit.entropy_bounded(0.5, commit.order("margin")),
    "chance": commit.bernoulli(jnp.full(STEPS, 0.4)),
}
REMASKS = {
    "none": None,
    "chance": remask.bernoulli(PLAN),
    "doubt": remask.by_recorded_confidence(PLAN),
}
EDITS = {"none": None, "rethink": _rethink()}
WINDOWS = {
    "canvas": {"window": windows.canvas},
    "prefix": {"window": windows.from_block_on, "refresh": windows.at_block_start},
    "dual": {"window": windows.active_block, "refresh": windows.at_block_start},
}
STOPS = {
    "none": {},
    "gap": {"stop": stops.clear_gap(0, 3, STEPS, (3.0, 2.0, 1.0))},
    "end of text": {"truncate": stops.end_of_text((EOS,))},
}
ROLES = (LENSES, COMMITS, REMASKS, EDITS, WINDOWS, STOPS)
EVERY = list(itertools.product(*ROLES))
FEW = random.Random(5).sample(EVERY, 6)
# Parts that only these few lines try.
REMASKS["least sure"] = remask.least_sure(lambda row: row.step % 2)
WINDOWS["delayed"] = {"window": windows.delayed, "refresh": windows.every(3)}
WINDOWS["shadowed"] = {"window": windows.shadowed}
WINDOWS["open"] = {"window": windows.open_blocks(2), "refresh": windows.at_block_start}
FEW += [
    ("credit", "threshold", "least sure", "rethink", "delayed", "gap"),
    ("none", "entropy bound", "least sure", "none", "shadowed", "end of text"),
    ("credit", "quota", "doubt", "rethink", "shadowed", "none"),
    ("none", "threshold", "chance", "rethink", "open", "end of text"),
]


def made_of(names):
    """The decoder of one name a role."""
    lens, rule, reopen, edit, window, stop = (
        role[name] for role, name in zip(ROLES, names)
    )
    is_bounded = reopen is not None or edit is not None or names[1] == "chance"
    return masked.masked_diffusion(
        MASKED, rule, max_new_tokens=NEW, sampling=Sampling(1.0), lenses=lens,
        blocks=blocks.generation(4), remask=reopen, edit=edit, **window, **stop,
        progress="schedule" if names[1] == "chance" else "force",
        max_steps=STEPS if is_bounded else None,
    )  # fmt: skip


def check(names):
    decoder = made_of(names)

    @jax.jit
    def go(prompt):
        return decode(decoder, LAW, prompt, KEY)

    out, stats = jax.tree.map(np.asarray, go(PROMPT))
    limit = decoder.max_steps + PROMPT.tokens.shape[1]
    assert (stats.num_calls >= 1).all() and (stats.num_calls <= limit).all()
    for b, (words, holes) in enumerate(zip(ROWS, HOLES)):
        kept = ~np.asarray(holes)
        np.testing.assert_array_equal(
            out.tokens[b, : len(words)][kept], np.asarray(words)[kept]
        )
        assert out.lengths[b] <= LIMITS[b]
        told = slice(out.start[b], out.start[b] + out.lengths[b])
        assert out.committed[b, told].all()
        assert (out.tokens[b, told] < EOS).all(), "a mask or an EOS inside"
        # Only a row that the number of steps cut off may have a hole left.
        is_short = STOPPED_BY[out.stopped_by[b]] == "max_steps"
        assert is_short or out.committed[b, : len(words)][~kept].all()
    assert (stats.num_query_tokens <= stats.num_query_tokens_computed).all()
    assert decoder.guarantee == "lossy"
    if names[2] == names[3] == "none":
        assert (stats.num_revoked == 0).all()
    # A row does not depend on its company.
    order = np.array([2, 0, 3, 1])
    mixed = jax.tree.map(lambda leaf: leaf[order], PROMPT)
    other, other_stats = jax.tree.map(np.asarray, go(mixed))
    np.testing.assert_array_equal(out.lengths[order], other.lengths)
    np.testing.assert_array_equal(stats.num_calls[order], other_stats.num_calls)
    for place, b in enumerate(order):
        end = out.start[b] + out.lengths[b]
        np.testing.assert_array_equal(out.tokens[b, :end], other.tokens[place, :end])


IN_BLOCKS = toy.make_model(
    VOCAB, LENGTH, predicts="masked", attention="block_causal", block_len=4
)
# What a canvas is cached by, besides the windows above.
EXACT = {"window": windows.unit, "refresh": windows.finished(blocks.absolute(4))}
MODELS = {"both ways": MASKED, "in blocks": IN_BLOCKS}


def reasons(model, rule, reopen, edit, window, stop, steps, settle):
    """What must be said against a combination; nothing: it is one."""
    if rule == "chance" and steps is None:
        yield "progress='schedule' needs max_steps"
    if reopen in ("chance", "doubt") and steps is None:
        yield "a remask rule needs max_steps"
    if window == "exact" and model == "both ways":
        yield "keeps finished blocks"
    if settle and edit == "none":
        yield "waits for edits"


def test_all_of_the_matrix_is_built_or_refused_with_its_reason():
    """Lens, commit, remask, edit, window and cache, stop, model, steps, settling."""
    found = {}
    ways = WINDOWS | {"exact": EXACT}
    for names in itertools.product(
        LENSES, COMMITS, REMASKS, EDITS, ways, STOPS, MODELS, (None, STEPS), (0, 2)
    ):
        lens, rule, reopen, edit, window, stop, model, steps, settle = names
        against = list(reasons(model, rule, reopen, edit, window, stop, steps, settle))
        try:
            decoder = masked.masked_diffusion(
                MODELS[model], COMMITS[rule], max_new_tokens=NEW,
                sampling=Sampling(1.0), lenses=LENSES[lens],
                blocks=blocks.absolute(4) if window == "exact" else None,
                remask=REMASKS[reopen], edit=EDITS[edit], settle=settle,
                progress="schedule" if rule == "chance" else "force",
                max_steps=steps, **ways[window], **STOPS[stop],
            )  # fmt: skip
        except ValueError as error:
            assert any(each in str(error) for each in against), (names, error)
            found[str(error)[:24]] = names
        else:
            assert not against, names
            assert decoder.guarantee == "lossy", names
    assert len(found) == 4  # every reason was given


@pytest.mark.parametrize("names", FEW, ids="-".join)
def test_a_few_of_the_matrix(names):
    check(names)


@pytest.mark.thorough
@pytest.mark.parametrize("names", [n for n in EVERY if n not in FEW], ids="-".join)
def test_all_of_the_matrix(names):
    check(names)


def test_a_part_that_does_nothing_is_caught():
    """Negative control: each role but the window's changes something in the walk."""

    def told(names):
        decoder = made_of(names)
        out, stats = jax.jit(lambda: decode(decoder, LAW, PROMPT, KEY))()
        return np.asarray(out.tokens).tolist(), np.asarray(stats.num_calls).tolist()

    base = ["none", "threshold", "none", "none", "canvas", "none"]
    plain = told(base)
    for nth, name in ((0, "credit"), (2, "chance"), (5, "gap")):
        assert told([*base[:nth], name, *base[nth + 1 :]]) != plain, name


def _probing(grid, shape):
    place = jnp.arange(shape.length, dtype=jnp.int32)
    every = jnp.ones(shape.length, bool)
    return Window(shape.length, lambda row: Lanes(place, every, probe=~every))


RULE, GRID = commit.threshold(0.5), blocks.generation(4)
UNFIT = [
    ({"remask": REMASKS["chance"]}, "needs max_steps: it may undo every commit"),
    ({"progress": "schedule"}, "needs max_steps: it ends the decode"),
    ({"fill": STOPS["gap"]["stop"]}, "nothing to fill: set stop or max_steps"),
    ({"window": windows.active_block, "blocks": None}, "needs blocks: set block_len"),
    ({"window": _probing, "refresh": windows.at_block_start}, "cannot be refreshed"),
    ({"settle": 3}, "settle=3 waits for edits"),
    (
        {"window": windows.unit, "refresh": windows.finished(blocks.absolute(4))},
        "keeps finished blocks, but toy has bidirectional",
    ),
    ({"edit": EDITS["rethink"]._replace(wants=("sure",))}, "no leaf of Prediction"),
    (
        {"lenses": (lenses.credit(2, 1, 1, 1)._replace(role="credit"),)},
        "role 'credit', but there are",
    ),
]


@pytest.mark.parametrize("parts, reason", UNFIT, ids=[reason for _, reason in UNFIT])
def test_what_does_not_fit_is_refused_with_the_reason(parts, reason):
    with pytest.raises(ValueError, match=reason):
        decoder = masked.masked_diffusion(
            MASKED, RULE, max_new_tokens=NEW, sampling=Sampling(),
            **{"blocks": GRID, **parts},
        )  # fmt: skip
        # What depends on shapes is refused when they are known.
        jax.eval_shape(lambda: decode(decoder, LAW, PROMPT, KEY))


def test_a_lens_with_memory_is_refused_where_positions_have_none():
    lens = lenses.credit(2, 0.7, 0.8, 0.2)
    common = {"max_new_tokens": NEW, "sampling": Sampling(), "lenses": (lens,)}
    with pytest.raises(ValueError, match="keeps no memory of positions"):
        speculative.draft_verify(CAUSAL, ngram.prompt_lookup(2, 2), **common)
    with pytest.raises(ValueError, match="keeps no memory of positions"):
        frontier.frontier(MASKED, orders.raster(1, NEW), **common)


def test_a_causal_model_is_refused():
    with pytest.raises(ValueError, match="use draft-and-verify or"):
        masked.masked_diffusion(CAUSAL, RULE, max_new_tokens=NEW, sampling=Sampling())
    with pytest.raises(ValueError, match="attends by blocks of its own"):
        causal_blocks = toy.make_model(
            VOCAB, LENGTH, predicts="masked", attention="block_causal", block_len=4
        )
        methods.adablock(causal_blocks, max_new_tokens=NEW, delimiter_ids=(1,))
