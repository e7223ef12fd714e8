"""Logit processing by name: for every method that drafts and verifies, or refused."""

import collections
import functools
import json

import jax
import numpy as np
import pytest
from table import CASES, EOS, VOCAB
from test_text_lenses import MODEL, drafted

import pdecode
from pdecode import cli, methods, prompts, trees
from pdecode.cli import main as command_line
from pdecode.contracts import Sampling
from pdecode.decode import decode
from pdecode.drafters import causal, grown, paced, pruned
from pdecode.families import lensed, speculative
from pdecode.rules import processing

ASKED = {
    "repetition_penalty": 1.7,
    "frequency_penalty": 0.3,
    "ban_ids": [2],
    "min_p": 0.02,
    "forced": {2: 1},
}
PROMPT = prompts.from_rows(
    [[0, 1, 2, 0, 1], [2, 0, 2], [1], [0, 0, 1, 0]], max_new_tokens=10
)


def models_of(case):
    return case.model if type(case.model) is tuple else (case.model,)


def built(name, lenses):
    """The decoder of a case under `lenses`, with plain numbers for its knobs."""
    case = CASES[name]
    method = lensed.lensed(getattr(methods, case.method), lenses)
    return method(*models_of(case), max_new_tokens=10, **case.sizes, **case.knobs)


LENSES, PARAMS = processing.asked(ASKED, VOCAB + 1)


def is_refused(name):
    try:
        built(name, LENSES)
    except ValueError as error:
        assert "lenses" in str(error), error
        return True
    return False


REFUSED = {name for name in CASES if is_refused(name)}
TAKEN = [n for n, c in CASES.items() if n not in REFUSED and c.kind != "lossy"]


def test_what_takes_no_lens_is_named():
    """Every masked, visual and uniform method, and these of the causal ones."""
    from cases import jacobi
    from cases import speculative as speculative_cases

    causal_ones = {*speculative_cases.CASES, *jacobi.CASES}
    assert set(CASES) - causal_ones <= REFUSED
    refused = {CASES[name].method for name in causal_ones & REFUSED}
    assert refused == {
        "early_exit", "gsd", "gsd_codebook", "gsd_partition", "hidden_transfer",
        "pearl", "quantspec", "sjd", "sjd2", "spec_pv",
    }  # fmt: skip
    assert len(TAKEN) >= 30


@functools.cache
def runs(name, temperature, is_lensed):
    """A jitted (params of the lenses, key) -> (Generation, Stats)."""
    case = CASES[name]
    params = case.params if isinstance(case.params, dict) else {"model": case.params}
    method = getattr(methods, case.method)
    if is_lensed:
        method = lensed.lensed(method, LENSES)

    @jax.jit
    def run(given, key):
        made = method(
            *models_of(case), max_new_tokens=10, temperature=temperature, **case.sizes,
            **case.knobs,
        )  # fmt: skip
        return decode(made, {**params, processing.ROLE: given}, PROMPT, key)

    return run


@pytest.mark.parametrize("name", [n for n in TAKEN if n != "autoregressive"])
def test_under_lenses_it_is_plain_decoding_under_them(name):
    """Token for token: sampled with the same seed, or greedy if it is so in law."""
    temperature = 1.0 if CASES[name].kind == "plain" else 0.0
    own = runs(name, temperature, True)
    plain = runs("autoregressive", temperature, True)
    bare = runs(name, temperature, False)
    changed = saved = 0
    for seed in range(10 if temperature else 1):
        key = jax.random.key(seed)
        got, stats = own(PARAMS, key)
        expected, _ = plain(PARAMS, key)
        np.testing.assert_array_equal(got.tokens, expected.tokens)
        obeyed(got)
        # Negative control: the law without them is another.
        changed += int((bare(PARAMS, key)[0].tokens != expected.tokens).sum())
        saved += int((stats.num_committed - stats.num_calls).sum())
    assert changed > 0 and saved >= 0


def obeyed(out):
    for row in range(out.tokens.shape[0]):
        start, length = int(out.start[row]), int(out.lengths[row])
        text = np.asarray(out.tokens[row, start : start + length]).tolist()
        assert 2 not in text
        if length > 2 or (length == 2 and int(out.tokens[row, start + 2]) == EOS):
            assert text[2] == 1


DRAFTERS = {
    "chain": lambda: causal.draft_model(MODEL, trees.chain(3), Sampling(1.0)),
    "grown": lambda: grown.grown_tree(MODEL, 8, width=3, max_depth=3),
    "paced": lambda: paced.draft_model(
        MODEL, (0, 1, 3), paced.Prices((1.0,) * 6, 0.0), Sampling(1.0)
    ),
    "pruned": lambda: pruned.by_costs(
        grown.grown_tree(MODEL, 8, width=3, max_depth=3), "auto", (1.0,) * 6
    )[0],
}


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_draft_model_drafts_under_them_too(name, monkeypatch):
    bans, params = processing.asked({"ban_ids": [2]}, 4)
    own = lensed._drafter(DRAFTERS[name](), bans)
    init, propose = own.init, own.propose

    def given(function):
        return lambda p, *more: function({**p, processing.ROLE: params}, *more)

    own = own._replace(init=given(init), propose=given(propose))

    def count(drafter):
        found = collections.Counter()
        for tokens, *_ in drafted(drafter):
            found.update(tokens)
        return found

    assert count(own)[2] == 0
    assert count(DRAFTERS[name]())[2] > 0


def test_other_numbers_are_the_same_program():
    run = runs("prompt_lookup", 1.0, True)
    key = jax.random.key(0)
    first = run(PARAMS, key)[0].tokens
    size = run._cache_size()
    _, others = processing.asked({**ASKED, "repetition_penalty": 5.0}, VOCAB + 1)
    second = run(others, key)[0].tokens
    assert run._cache_size() == size and (first != second).any()


def test_what_is_forced_is_so_whatever_is_banned():
    lenses, params = processing.asked(
        {"forced": {0: 2}, "ban_ids": [2], "min_p": 1.0}, VOCAB + 1
    )
    made = lensed.lensed(methods.autoregressive, lenses)(
        CASES["autoregressive"].model, max_new_tokens=10, temperature=1.0
    )
    given = {"model": CASES["autoregressive"].params, processing.ROLE: params}
    run = jax.jit(functools.partial(decode, made))
    out, _ = run(given, PROMPT, jax.random.key(0))
    start = np.asarray(out.start)
    assert (np.asarray(out.tokens)[np.arange(4), start] == 2).all()
    assert 2 not in np.asarray(out.tokens)[0, start[0] + 1 :]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"repetition": 1.0}, "no lens 'repetition'.*repetition_penalty"),
        ({"repetition_penalty": 0}, r"must be a number in \[0.01, 100\]"),
        ({"min_p": float("nan")}, "must be a number"),
        ({"ban_ids": []}, "one or more"),
        ({"ban_ids": [5]}, r"ids in \[0, 5\)"),
        ({"ban_ids": range(5)}, "holds every id"),
        ({"forced": {}}, "at least one"),
        ({"forced": {-1: 2}}, "places from 0"),
        ({"forced": {0: 5}}, r"ids in \[0, 5\)"),
        ({"grammar": {}}, "must have states"),
        ({"grammar": {"states": [{}], "end": 1}}, "has 'end'"),
        ({"grammar": {"states": [{"9": 0}]}}, "state 0 leads by token 9"),
        ({"grammar": {"states": [{"1": 1}, {}]}}, "allows no token"),
        ({"grammar": {"states": [{"1": 0}], "ends": [7]}}, r"ends=\[7\] must be ids"),
        ({"grammar": {"states": [{"1": 0}], "ends": 7}}, "ends .a list"),
        ({"grammar": {"states": [["a"]]}}, r"state 0 is \['a'\], but must map"),
        ({"grammar": {"states": {"97": 0}}}, "must have states .a list"),
        ({"grammar": {"states": "abc"}}, "must have states .a list"),
        ({"grammar": {"states": [{"a": 0}]}}, "state 0 leads by token a to state 0"),
        ({"grammar": {"states": [{"1": None}]}}, "by token 1 to state None"),
        ({"grammar": {"states": [{"1": 0.5}]}}, "by token 1 to state 0.5"),
        ({"grammar": {"states": [{"1": 0}], "start": "x"}}, "start=-1"),
        ({"ban_ids": ["x"]}, r"ids in \[0, 5\)"),
        ({"ban_ids": 3}, r"ids in \[0, 5\)"),
        ({"forced": {"x": 2}}, "places from 0"),
        ({"forced": {0: "x"}}, r"ids in \[0, 5\)"),
    ],
)
def test_what_cannot_be_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        processing.asked(given, 5)


# Behind 1 nothing but 2; 3 leads to where only 1 goes on.
WAYS = {"states": [{1: 1, 3: 2}, {2: 0}, {1: 0}]}


@pytest.mark.parametrize(
    "given, message",
    [
        ({"ban_ids": [1], "grammar": {"states": [{1: 1}, {2: 0}]}}, "state 0 of"),
        ({"ban_ids": [2], "grammar": WAYS}, "state 1 of the grammar allows no token"),
        ({"ban_ids": [1], "grammar": WAYS}, "state 2 of the grammar allows no token"),
        ({"grammar": {"states": [{4: 0}]}}, "ban_ids and the mask are not"),
        ({"ban_ids": [3], "grammar": {"states": [{1: 0}], "ends": [3]}}, None),
        ({"ban_ids": [1], "grammar": {"states": [{1: 1, 2: 0}, {1: 1}]}}, None),
        # What is banned and forced leads on: the state behind it must too.
        (
            {
                "ban_ids": [1],
                "forced": {0: 1},
                "grammar": {"states": [{1: 1, 2: 0}, {1: 1}]},
            },
            "state 1 of",
        ),
        ({"ban_ids": range(4)}, "holds every id that may be drawn"),
        ({"ban_ids": range(3)}, None),
        ({"forced": {0: 4}}, r"ids in \[0, 5\), but not to the mask's, 4"),
        ({"forced": {0: 5}}, r"ids in \[0, 5\), but"),
    ],
)
def test_bans_and_the_mask_leave_a_token_everywhere(given, message):
    if message is None:
        processing.asked(given, 5, mask_id=4)
        return
    with pytest.raises(ValueError, match=message):
        processing.asked(given, 5, mask_id=4)


def test_a_command_line_gives_them(tmp_path, capsys):
    """Twelve tokens of an automaton, by drafts and without: the same ones."""
    path = tmp_path / "dfa.json"
    path.write_text(json.dumps({"states": [{"97": 1, "98": 1}, {"99": 0}]}))
    texts = []
    for more in ([], ["--method", "prompt_lookup"]):
        words = ["generate", "--prompt", "def f(", "--max-new-tokens", "12", "--json"]
        words += ["--grammar", str(path), "--forced", "2:98", "--temperature", "1"]
        assert command_line.main([*words, *more]) == 0
        made = json.loads(capsys.readouterr().out)
        texts.append(made["text"][0])
        assert set(made["settings"]["lenses"]) == {"grammar", "forced"}
    assert texts[0] == texts[1] and texts[0][2] == "b"
    assert set(texts[0][::2]) <= set("ab") and set(texts[0][1::2]) == {"c"}


def test_a_command_line_names_what_it_cannot_read(tmp_path, capsys):
    path = tmp_path / "dfa.json"
    path.write_text("[1]")
    words = ["generate", "--prompt", "a"]
    for more, message in (
        (["--forced", "1"], "write places and ids"),
        (["--forced", "0:100,0:101"], "force every place once"),
        (["--forced", "0:260"], "ids in [0, 260)"),
        (["--method", "pearl", "--ban-ids", "1"], "pearl takes no lenses"),
        (["--ban-ids", "x"], "--ban-ids x: write whole numbers"),
        (["--grammar", str(path)], "must hold an object with states"),
        (["--method", "llada", "--ban-ids", "1"], "llada takes no lenses"),
    ):
        assert command_line.main([*words, *more]) == cli.main.BAD_INPUT
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="no lens 'bans'"):
        pdecode.generate("a", lenses={"bans": [1]})


def test_its_name_and_signature_are_the_methods():
    import inspect

    made = lensed.lensed(methods.opt_tree, LENSES)
    assert made is lensed.lensed(methods.opt_tree, LENSES)
    assert inspect.signature(made) == inspect.signature(methods.opt_tree)
    assert made.__name__ == "opt_tree"
    assert isinstance(built("opt_tree", LENSES).step.args[0], speculative.Plan)
