"""`pdecode.check` names the faults of wrong parts, and believes the right ones."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdecode
from pdecode import accept, commit, methods, remask, trees
from pdecode.checks import canvas, decoders, masked_rules, runs, toys
from pdecode.cli import main as cli
from pdecode.contracts import Draft, Drafter, NodeRule, Sampling
from pdecode.drafters import causal as causal_drafter
from pdecode.drafters import ignore
from pdecode.families import masked, speculative
from pdecode.models import toy

# Five wrong parts.


def by_the_drawn_token():
    """Chooses the position whose drawn token is likeliest."""
    return commit.stateless(
        lambda key, row, p: commit.best(p.log_prob, row.open, 1)
    )._replace(is_exact=True)


def reopens_everything():
    """Takes back whatever was committed, and says that it is bounded."""

    def apply(params, key, row, prediction, memory):
        return ~row.open, memory

    return pdecode.Rule(lambda length: (), apply, is_bounded=True)


def over_the_batch():
    """Fills as many as are open in all rows by the mean, which no one row knows."""

    @jax.custom_batching.custom_vmap
    def mean(count):
        return count

    @mean.def_vmap
    def _(size, batched, count):
        return jnp.full((size,), count.mean()), True

    def apply(key, row, prediction):
        share = jnp.ceil(mean(1.0 * row.open.sum()) / 3)
        return commit.best(-prediction.entropy, row.open, share)

    return commit.stateless(apply, wants=("entropy",))


def reads_its_knob(level: float = 0.5):
    """Asks a Python question of a knob."""
    count = 2 if level > 0.4 else 1

    def apply(key, row, prediction):
        return commit.best(-prediction.entropy, row.open, count)

    return commit.stateless(apply, wants=("entropy",))


def residual_not_renormalised():
    def apply(p, q, tokens):
        kept, _ = accept.rejection().apply(p, q, tokens)
        residual = jnp.where(tokens[0] >= 0, jnp.maximum(p - q[0], 0), p)
        return kept, residual

    return NodeRule(apply, 1, is_lossless=True)


def test_the_drawn_tokens_confidence_is_named():
    report = pdecode.check(by_the_drawn_token)
    assert report.faults == ["law", "claim"]
    law = report["law"]
    assert law.value > 0.05
    assert "at one token a step, because which positions it fills depends on the" in (
        law.says
    )
    # The example is true: the walk's own law of the smallest canvas.
    assert 'Smallest counterexample: 2 positions of 2 tokens: "' in law.says
    assert not report.is_claim_true and "NO: that is not so" in str(report)


def test_a_rule_that_does_not_end_is_named():
    report = pdecode.check(reopens_everything, use="remask")
    assert "terminates" in report.faults
    assert "does not terminate: after " in report["terminates"].says


@pytest.mark.thorough
def test_a_remask_rule_that_never_settles_is_named():
    without = reopens_everything()._replace(is_bounded=False)
    report = pdecode.check(without, use="remask")
    assert "does not terminate by itself" in report["settles"].says
    assert "settles" in report.faults and report["terminates"].holds


def test_a_rule_over_the_batch_is_named():
    report = pdecode.check(over_the_batch)
    assert "row-independent" in report.faults
    assert "batch-dependent: the row [" in report["row-independent"].says


def test_a_rule_that_reads_its_knob_is_named():
    report = pdecode.check(reads_its_knob)
    assert report.faults == ["one trace"]
    says = report["one trace"].says
    assert "it reads level as a Python number (test_check.py:" in says
    assert "count = 2 if level > 0.4 else 1" in says


def test_a_residual_that_is_no_law_is_named():
    report = pdecode.check(residual_not_renormalised)
    assert report.faults == ["laws", "law", "claim"]
    assert "the residual is not renormalised: for the draft" in report["laws"].says
    assert "1 drafted token (iid)" in report["law"].says


def test_emitting_from_p_after_a_refusal_is_explained():
    right = accept.rejection()
    wrong = NodeRule(lambda p, q, t: (right.apply(p, q, t)[0], p), 1)
    report = pdecode.check(wrong)
    assert "after a refusal it draws from the target's law p" in report["law"].says
    greedy = NodeRule(lambda p, q, t: (1.0 * (t >= 0), p), 1)
    assert "accepts token" in pdecode.check(greedy)["law"].says


@pytest.mark.thorough
def test_a_program_that_is_another_each_time_is_named():
    count = iter(range(100))

    def impure():
        level = next(count)
        return commit.stateless(
            lambda key, row, p: commit.best(p.entropy + level, row.open, 1),
            ("entropy",),
        )

    assert (
        "reads something that is no argument" in pdecode.check(impure)["one trace"].says
    )


def test_a_drafter_is_tried():
    def stutter(length, by_slot=False):
        def propose(params, keys, state, prefix):
            root = jnp.take_along_axis(prefix.tokens, prefix.length[:, None] - 1, 1)
            slot = jnp.arange(root.shape[0])[:, None] % 3
            tokens = jnp.broadcast_to(slot if by_slot else root, (len(root), length))
            parents = jnp.broadcast_to(jnp.arange(-1, length - 1), tokens.shape)
            return Draft(tokens=tokens, parents=parents), state

        return Drafter(length, length, lambda *_: (), propose, observe=ignore)

    report = pdecode.check(stutter, length=2)
    assert report.is_well and "2 nodes, at most 2 deep" in report["proposals"].says
    assert report["same tokens"].holds
    # What it proposes hangs on the slot in the batch: the calls change.
    wrong = pdecode.check(stutter, length=2, by_slot=True)
    assert wrong.faults == ["row-independent"]
    assert "calls and not" in wrong["row-independent"].says


@pytest.mark.thorough
def test_a_dishonest_q_is_named():
    def honest(model):
        return causal_drafter.draft_model(model, trees.chain(2), Sampling(1.0))

    def flat(model):
        right = honest(model)

        def propose(params, keys, state, prefix):
            draft, state = right.propose(params, keys, state, prefix)
            even = jnp.ones_like(draft.q).at[..., -1].set(0)
            return draft._replace(q=even / even.sum(-1, keepdims=True)), state

        return right._replace(propose=propose)

    assert pdecode.check(honest)["honest q"].holds
    assert "q is not the law" in pdecode.check(flat)["honest q"].says


# What ships agrees with what it says.

COMMITS = {
    "one_by_one(entropy)": commit.one_by_one(commit.order("entropy")),
    "one_by_one(low_confidence)": commit.one_by_one(commit.order("low_confidence")),
    "one_by_one(random)": commit.one_by_one(commit.order("random")),
    "one_by_one(margin)": commit.one_by_one(commit.order("margin")),
    "one_by_one(max_prob)": commit.one_by_one(commit.order("max_prob")),
    "one_by_one(sequential)": commit.one_by_one(commit.order("sequential")),
    "quota(entropy)": commit.quota(commit.order("entropy"), 2),
    "threshold": commit.threshold(0.6),
    "factor": commit.factor(1.0),
    "entropy_bounded": commit.entropy_bounded(0.5, commit.order("entropy")),
    "by_rank": commit.by_rank(np.array([2, 0, 1, 3, 5, 4, 7, 6])),
    "by_rank(pairs)": commit.by_rank(np.array([0, 1, 0, 1, 2, 2, 3, 3])),
    "bernoulli": commit.bernoulli(jnp.full(40, 0.5)),
}
QUICK = ("entropy_bounded",)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in QUICK else pytest.mark.thorough)
        for n in COMMITS
    ],
)
def test_shipped_commit_rules_agree(name):
    report = pdecode.check(COMMITS[name], name=name)
    assert report.is_claim_true
    assert set(report.faults) <= {"law"}, report
    reads_draws = name in ("one_by_one(low_confidence)", "threshold", "factor")
    assert report["law"].holds != reads_draws, report
    if COMMITS[name].is_exact:
        assert "several" not in report["law"].says and report["law"].value < 2e-5


@pytest.mark.thorough
@pytest.mark.parametrize(
    "rule",
    [remask.bernoulli(jnp.array([0.5] * 4 + [0.0])),
     remask.by_recorded_confidence(jnp.array([0.5] * 4 + [0.0])),
     remask.least_sure(lambda row: jnp.int32(1) * (row.turn < 3), is_bounded=False)],
    ids=["bernoulli", "by_recorded_confidence", "least_sure"],
)  # fmt: skip
def test_shipped_remask_rules_end(rule):
    report = pdecode.check(rule, use="remask")
    assert set(report.faults) <= {"law"}, report


ACCEPTS = {
    "rejection": accept.rejection(),
    "rejection(2)": accept.rejection(2),
    "k_seq": accept.k_seq(2),
    "block": accept.block_verification(),
    "traversal": accept.traversal_verification(),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n == "rejection" else pytest.mark.thorough)
        for n in ACCEPTS
    ],
)
def test_shipped_acceptance_rules_agree(name):
    report = pdecode.check(ACCEPTS[name], name=name)
    assert report.is_well and report.claim == "lossless", report


def toy_only(name):
    """Methods whose models are all toys here."""
    try:
        decoders.models_of(getattr(methods, name), toys.OF_KIND, name)
    except ValueError:
        return False
    return True


# Methods of two models or of sizes without a default need their cases' settings.
SETTINGS = {
    "autoregressive": {}, "prompt_lookup": {}, "speculative_sampling": {},
    "block_verification": {}, "llada": {}, "fast_dllm": {}, "eb_sampler": {},
    "jacobi": {"window": 4}, "sjd": {"window": 4}, "specinfer": {"branching": (2, 1)},
    "typical_acceptance": {"num_nodes": 5, "width": 2, "max_depth": 3},
    "any_order": {}, "mdlm": {"steps": 4},
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("name", SETTINGS)
def test_shipped_methods_agree(name):
    assert toy_only(name)
    report = pdecode.check(name, **SETTINGS[name])
    assert report.is_claim_true, report
    assert not {"terminates", "row-independent", "one trace"} & set(report.faults), (
        report
    )


# The walk itself.


@pytest.mark.thorough
def test_the_walk_is_the_law_that_is_sampled():
    """Negative control on the enumeration: many rows of a biased rule say the same."""
    rule = commit.one_by_one(commit.order("low_confidence"))
    decoder = masked_rules.decoder_of(canvas.model_of(2, 3, toys.MASKED), rule,
                                      "commit", 3)  # fmt: skip
    walk = canvas.walk(canvas.plan_of(decoder), {}, vocab=2, new=3, max_turns=9)
    law = toy.joint(3, 2, 4, sharpness=2.0)
    prompt = pdecode.from_rows([[0]] * 20000, max_new_tokens=3)
    out, _ = jax.jit(lambda key: pdecode.decode.decode(decoder, law, prompt, key))(
        jax.random.key(0)
    )
    codes = np.asarray(out.tokens[:, 1:4]) @ np.array([4, 2, 1])
    seen = np.bincount(codes, minlength=8) / len(codes)
    assert 0.5 * np.abs(seen - list(walk.law.values())).sum() < 0.015
    assert walk.variation > 0.05
    assert walk.unfinished < 1e-5


def test_only_a_decoder_of_the_masked_family_has_a_plan():
    plain = speculative.draft_verify(
        toys.CAUSAL, causal_drafter.draft_model(toys.CAUSAL, trees.chain(1),
                                                Sampling(0.0)),
        max_new_tokens=4, sampling=Sampling(0.0),
    )  # fmt: skip
    assert canvas.plan_of(plain) is None
    rule = commit.one_by_one(commit.order("random"))
    made = masked.masked_diffusion(toys.MASKED, rule, max_new_tokens=4,
                                   sampling=Sampling(1.0))  # fmt: skip
    assert isinstance(canvas.plan_of(made), masked.Plan)
    assert "decoder" == pdecode.check(made).kind
    assert runs.of(runs.Tried(lambda: made, {}, {"model": toys.LAW})).findings[0].holds


# At the door.


def test_what_cannot_be_tried_is_said(tmp_path):
    with pytest.raises(ValueError, match="needs nats: give pdecode"):
        pdecode.check(lambda nats: None)
    with pytest.raises(ValueError, match="no argument 'nat'; did you mean nats"):
        pdecode.check(lambda nats: None, nat=1.0)
    with pytest.raises(ValueError, match="check takes a commit, remask or edit"):
        pdecode.check(lambda: 3)
    with pytest.raises(ValueError, match="use='erase' must be one of"):
        pdecode.check(COMMITS["threshold"], use="erase")
    with pytest.raises(ValueError, match="unknown method"):
        pdecode.check("no_such_method")
    filtered = COMMITS["threshold"]._replace(role="filter")
    with pytest.raises(ValueError, match="role 'filter': give"):
        pdecode.check(filtered)


def test_the_command_line(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        "from pdecode import commit\n"
        "RULE = commit.one_by_one(commit.order('entropy'))\n"
        "def never():\n"
        "    return commit.stateless(lambda key, row, p: row.open & False)\n"
    )
    assert cli.main(["check", f"{file}:RULE"]) == 0
    out = capsys.readouterr().out
    assert "exact: the joint's own law at one token a step" in out
    assert cli.main(["check", f"{file}:never", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert "in 32 steps it filled nothing" in found["findings"][3]["says"]
    assert found["faults"] == ["progresses"] and not found["is_well"]
    assert cli.main(["check", f"{file}:nothing"]) == 2
    assert "has no function 'nothing'" in capsys.readouterr().err


def test_a_claim_that_nothing_speaks_to_is_not_repeated():
    """A decoder that takes every draft says that it is lossless."""
    liar = NodeRule(lambda p, q, t: (1.0 * (t >= 0), p), 1, is_lossless=True)
    sampling = Sampling(1.0)
    decoder = speculative.draft_verify(
        toys.CAUSAL,
        causal_drafter.draft_model(toys.CAUSAL, trees.chain(2), sampling),
        max_new_tokens=toys.NEW,
        sampling=sampling,
        acceptance=accept.by_node(liar),
    )
    assert decoder.guarantee == "lossless" and pdecode.check(decoder).claim is None


def test_what_would_be_dropped_or_lacks_is_said():
    with pytest.raises(ValueError, match="made already"):
        pdecode.check(accept.rejection(), level=0.5)
    with pytest.raises(ValueError, match="reads the params of the role 'filter'"):
        pdecode.check(accept.rejection()._replace(role="filter"))
    with pytest.raises(ValueError, match="whose roles get toys"):
        pdecode.check("llada", {"nothing": 1}, steps=4)
