"""Cases of methods/speculative."""

import jax
import jax.numpy as jnp
import numpy as np

from cases import (
    CAUSAL,
    HEADS,
    LAYER,
    LAYER_PARAMS,
    LAYER_SIZES,
    LENGTH,
    MASKED,
    NEAR,
    STORED,
    TARGET,
    TWO,
    TWO_HEADS,
    VOCAB,
    WITH_LAYER,
    case,
)
from pdecode.contracts import ChainedHeads, Codes, Judge, PromptTokens, Transfer
from pdecode.data import datastore, trigrams
from pdecode.drafters import spelled
from pdecode.models import draft_modules, falcon_layers, toy
from pdecode.models.config import Config
from pdecode.rules import relaxed

_CODES = np.random.default_rng(0).normal(size=(VOCAB + 1, 2))


def _with(role, facts, params):
    """The two causal toys and one more role."""
    return {
        "model": (CAUSAL, CAUSAL, facts),
        "params": {"model": TARGET, "drafter": NEAR, role: params},
    }


# A draft model of letters, for a target with a token of two: 0 a, 1 b, 2 ab.
_LETTERS = toy.make_model(2, 2 * LENGTH)
_SPELLING = spelled.tables(
    toy.chain(7, 2, 2 * LENGTH), {"a": 0, "b": 1}, {"a": 0, "b": 1, "ab": 2}, VOCAB + 1
)
SPELLED = {
    "model": (CAUSAL, _LETTERS),
    "params": {"model": TARGET, "drafter": _SPELLING},
}
_OTHER, _MORE = datastore.build([[0, 2, 1, 1, 0, 1, 2, 0, 0], [2, 2, 0, 1]])
_TABLE, _FOLLOWERS = trigrams.build([[0, 1, 2, 0, 1, 1, 0, 2, 1], [2, 2, 0, 0, 1]], 2)
TABLED = {
    "model": (CAUSAL, _TABLE),
    "params": {"model": TARGET, "table": jax.tree.map(jnp.asarray, _FOLLOWERS)},
}
TWO_STORES = {
    "model": (*STORED["model"], _OTHER),
    "params": {**STORED["params"], "other": jax.tree.map(jnp.asarray, _MORE)},
}
NEAREST = _with("codes", Codes(VOCAB + 1), jnp.asarray(relaxed.nearest(_CODES, 2)))
SHARES = _with("codes", Codes(VOCAB + 1), jnp.asarray(relaxed.shares(_CODES, 0.5)))
BLANKS = {
    "model": (CAUSAL, MASKED),
    "params": {"model": TARGET, "drafter": NEAR},
}
JUDGE = _with(
    "judge", Judge(lambda params, hidden: hidden @ params), jnp.ones(VOCAB + 1)
)


# Heads that see what was drafted: the toy's own moves, which are often right.
def _chained(params, target, index, hidden, tokens):
    own = params[index][tokens[..., -1]] + 0.3 * jax.nn.softmax(hidden)
    return own, CAUSAL.head(target)


CHAINED = {
    "model": (CAUSAL, ChainedHeads(3, _chained)),
    "params": {
        "model": TARGET,
        "chained_heads": jnp.pad(
            TARGET.moves[jnp.arange(3, 6), jnp.arange(3, 6)], ((0, 0), (0, 1), (0, 1))
        ),
    },
}


# A block layer of random weights on the toy's log-probabilities.
_PAIRS = falcon_layers.make_layer(LAYER_SIZES, 2, 1)


def _advance(params, target, tokens, features, memory):
    del target
    features = jax.nn.softmax(features)  # impossible tokens have -1e9
    return _PAIRS.advance(params, params, tokens, features, memory)


IN_PAIRS = {
    "model": (CAUSAL, _PAIRS._replace(advance=_advance)),
    "params": {
        "model": TARGET,
        "block_layer": {
            **falcon_layers.init(LAYER_SIZES, jax.random.key(4), 1),
            "embed": LAYER_PARAMS["embed"],
        },
    },
}


# A layer whose second guess is another reading of the same state.
def _ahead(params, target, features):
    return 4 * features[..., ::-1], CAUSAL.head(target)


TWO_AHEAD = {
    "model": (CAUSAL, LAYER._replace(ahead=_ahead)),
    "params": WITH_LAYER["params"],
}
# A toy reads a prompt token as the token that it is fed as.
PROMPTED = {
    "model": (CAUSAL, PromptTokens(3, token=1)),
    "params": {"model": TARGET, "prompt_tokens": {"change": jnp.ones((3, VOCAB + 1))}},
}
# The same behind a layer of its own, whose answers are small.
CHAINED_PAST = {
    "model": (
        CAUSAL,
        ChainedHeads(
            3,
            lambda params, target, index, hidden, tokens: _chained(
                params["moves"], target, index, hidden, tokens
            ),
            past=LAYER,
        ),
    ),
    "params": {
        "model": TARGET,
        "chained_heads": {
            "past": LAYER_PARAMS,
            "moves": CHAINED["params"]["chained_heads"],
        },
    },
}
# Modules of random weights on the toy's log-probabilities.
_INSIDE = Config(
    vocab_size=VOCAB + 1, width=VOCAB + 1, num_layers=1, num_heads=1, head_dim=4,
    mlp_width=8,
)  # fmt: skip
_MODULES = draft_modules.make_modules(_INSIDE, 3)


def _module(params, target, index, query, cache):
    del target
    query = query._replace(extra=jax.nn.softmax(query.extra))
    return _MODULES.apply(params["own"], params, index, query, cache)


MODULES = {
    "model": (
        CAUSAL,
        _MODULES._replace(
            apply=_module,
            law=lambda params, target, index, states: (4 * states, CAUSAL.head(target)),
        ),
    ),
    "params": {
        "model": TARGET,
        "modules": {
            "own": draft_modules.init(_INSIDE, jax.random.key(2), 3),
            "embed": jax.random.normal(jax.random.key(3), (VOCAB + 1, VOCAB + 1)),
        },
    },
}
# A layer that says two features at once.
_LAYER = WITH_LAYER["model"][1]


def _ahead(params, target, query, cache):
    features, cache = _LAYER.apply(params, target, query, cache)
    return jnp.concatenate([features, features[..., ::-1]], -1), cache


SEMI = {
    "model": (CAUSAL, _LAYER._replace(apply=_ahead, num_ahead=2)),
    "params": WITH_LAYER["params"],
}
# A toy has no layers: its pseudo states are tokens of id 0.
TRANSFERRED = {
    "model": (
        CAUSAL,
        Transfer(
            2, lambda own, target, query, cache: CAUSAL.apply(target, query, cache)
        ),
    ),
    "params": {"model": TARGET, "transfer": {"maps": jnp.zeros((2, 1, 1))}},
}
# Each head of its own matrix.
OWN_HEADS = {
    "model": (
        CAUSAL,
        HEADS._replace(
            own_heads=lambda params, its: tuple(
                its._replace(weight=its.weight[::step]) for step in (1, -1, 1, 1)
            )
        ),
    ),
    "params": TWO_HEADS["params"],
}
# Of two sub-models the first is less sure, of all it says and of what is unlikely.
_UNSURE = CAUSAL._replace(
    head=lambda params: CAUSAL.head(params)._replace(scale=0.5), name="unsure"
)
NESTED = {
    "model": (CAUSAL, CAUSAL._replace(exits=(_UNSURE, CAUSAL), name="nested")),
    "params": {"model": TARGET, "drafter": NEAR},
}

CASES = {
    "autoregressive": case("autoregressive", "plain"),
    "prompt_lookup": case("prompt_lookup", "plain", num_draft=4),
    "prompt_lookup_whole": case(
        "prompt_lookup", "plain", num_draft=2, continuation="whole"
    ),
    "prompt_lookup_auto": case(
        "prompt_lookup", "plain", num_draft=4, draft_length="auto"
    ),
    "token_recycling": case("token_recycling", "plain", widths=(2, 2, 1), num_top=2),
    "token_recycling_auto": case(
        "token_recycling", "plain", widths=(2, 2, 1), num_top=2, draft_length="auto"
    ),
    "sam_decoding": case(
        "sam_decoding", "plain", num_draft=3, len_threshold=2, widths=(2, 2), num_top=2
    ),
    "rest": case(
        "rest", "plain", num_draft=5, draft_len=3, min_match=1, num_matches=4, **STORED
    ),
    "fastcoder": case(
        "fastcoder",
        "plain",
        num_draft=5,
        draft_len=3,
        min_match=1,
        num_matches=4,
        session_match=3,
        skipped=(1,),
        **TWO_STORES,
    ),
    "stand": case(
        "stand", "plain", widths=(2, 2, 1), num_top=2, contexts=(2, 1), num_slots=64
    ),
    "alignment_sampling": case(
        "alignment_sampling", "plain", num_draft=2, num_beside=2
    ),
    "aded": case("aded", "plain", num_nodes=5, max_depth=3, window=6, **TABLED),
    "aggressive_decoding": case("aggressive_decoding", "plain", num_draft=4),
    "cascade": case("cascade", "plain", num_draft=4, num_copied=2, max_ngram=2, **TWO),
    "slem": case("slem", "plain", num_draft=4, per_token=2, **SPELLED),
    "slrs": case("slrs", "law", per_token=2, **SPELLED),
    "specreason": case(
        "specreason",
        "lossy",
        num_draft=4,
        delimiters=(2,),
        knobs={"threshold": -0.7},
        **TWO,
    ),
    "ouroboros": case(
        "ouroboros",
        "plain",
        num_draft=3,
        phrase_len=2,
        num_phrases=2,
        num_kept=3,
        **TWO,
    ),
    "spec_dec": case("spec_dec", "plain", num_draft=3, **BLANKS),
    "spec_dec_relaxed": case(
        "spec_dec", "lossy", num_draft=3, beta=2, knobs={"tau": 0.5}, **BLANKS
    ),
    "speculative": case("speculative_sampling", "law", num_draft=3, **TWO),
    "coupled": case(
        "speculative_sampling", "plain", num_draft=3, acceptance="coupled", **TWO
    ),
    "speculative_auto": case(
        "speculative_sampling",
        "law",
        num_draft=4,
        draft_length="auto",
        knobs={"draft_cost": 0.1},
        **TWO,
    ),
    "coupled_auto": case(
        "speculative_sampling",
        "plain",
        num_draft=4,
        acceptance="coupled",
        draft_length="auto",
        knobs={"draft_cost": 0.1},
        **TWO,
    ),
    "pearl": case("pearl", "law", window=3, **TWO),
    "pearl_coupled": case("pearl", "plain", window=2, acceptance="coupled", **TWO),
    "s2d": case("s2d", "plain", num_draft=3, **NESTED),
    "easy_spec": case("easy_spec", "law", num_draft=3, **TWO),
    "quantspec": case("quantspec", "law", num_draft=3, group=4),
    "quantspec_coupled": case(
        "quantspec", "plain", num_draft=2, group=3, acceptance="coupled"
    ),
    "spec_pv": case(
        "spec_pv",
        "lossy",
        num_draft=2,
        block_length=2,
        num_first=1,
        num_retrieved=1,
        num_last=1,
        buffer_len=2,
        **TWO,
    ),
    "block_verification": case("block_verification", "law", num_draft=3, **TWO),
    "specinfer": case("specinfer", "law", branching=(2, 2), **TWO),
    "specinfer_without": case(
        "specinfer", "law", branching=(3, 1), draws="without_replacement", **TWO
    ),
    "specinfer_greedy": case(
        "specinfer", "law", branching=(3, 2), draws="greedy", **TWO
    ),
    "dynamic_tree": case(
        "dynamic_tree", "plain", num_nodes=7, width=3, max_depth=3, **TWO
    ),
    "hydra_past": case("hydra", "plain", branching=(2, 2, 1), **CHAINED_PAST),
    "mtp": case("mtp", "plain", num_draft=3, **MODULES),
    "eagle": case("eagle", "plain", branching=(2, 2), **WITH_LAYER),
    "eagle_chain": case("eagle", "plain", branching=(1, 1, 1), **WITH_LAYER),
    "eagle_drawn": case(
        "eagle", "law", branching=(2, 2), draws="without_replacement", **WITH_LAYER
    ),
    "flash": case("flash", "plain", num_blocks=2, **SEMI),
    "hydra": case("hydra", "plain", branching=(3, 2, 1), **CHAINED),
    "medusa": case("medusa", "plain", branching=(3, 2, 1), **TWO_HEADS),
    "medusa_own": case("medusa", "plain", branching=(2, 2), **OWN_HEADS),
    "medusa_typical": case(
        "medusa", "lossy", branching=(3, 2), acceptance="typical", **TWO_HEADS
    ),
    "eagle2": case("eagle2", "plain", num_nodes=7, width=3, max_depth=3, **WITH_LAYER),
    "ppd": case("ppd", "plain", num_lanes=9, rates=(40, 20), **PROMPTED),
    "ppd_tree": case("ppd", "plain", branching=(2, 1), **PROMPTED),
    "ppd_chain": case("ppd", "plain", branching=(1, 1, 1), **PROMPTED),
    "jakiro": case("jakiro", "plain", num_nodes=7, width=3, max_depth=4, **TWO_AHEAD),
    "space": case("space", "plain", num_draft=3),
    "falcon": case("falcon", "plain", branching=(2, 2, 1), **IN_PAIRS),
    "falcon_chain": case("falcon", "plain", branching=(1, 1, 1), **IN_PAIRS),
    "hidden_transfer": case(
        "hidden_transfer", "plain", branching=(2, 1), **TRANSFERRED
    ),
    "lud": case("lud", "lossy", num_draft=3, knobs={"threshold": 0.3}),
    "opt_tree": case(
        "opt_tree", "plain", num_nodes=5, max_depth=4, knobs={"delta": 0.4}, **TWO
    ),
    "sequoia": case("sequoia", "law", num_nodes=6, max_depth=3, rates=(60, 30), **TWO),
    "sequoia_auto": case(
        "sequoia",
        "law",
        num_nodes=6,
        max_depth=3,
        rates=(60, 30),
        tree_size="auto",
        **TWO,
    ),
    "spectr": case("spectr", "law", num_drafts=3, num_draft=2, **TWO),
    "traversal_verification": case(
        "traversal_verification", "law", branching=(2, 2), **TWO
    ),
    "typical_acceptance": case(
        "typical_acceptance", "lossy", num_nodes=7, width=3, max_depth=3, **TWO
    ),
    "conditional_verification": case("conditional_verification", "lossy", num_draft=3),
    "bild": case("bild", "lossy", num_draft=3, **TWO),
    "lantern": case("lantern", "lossy", branching=(2, 1), **NEAREST),
    "pcg": case("pcg", "lossy", num_draft=2, **SHARES),
    "judge_decoding": case("judge_decoding", "lossy", num_draft=3, **JUDGE),
    "blockwise": case("blockwise", "plain", num_draft=3, **TWO_HEADS),
}
