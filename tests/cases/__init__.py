"""The toys that cases use, and what a case is; a file a folder of methods has them.

Every case a test wants (alone, permuted, in company, other padding contents, finished
neighbours, temperature 0 or 1, split over devices) is data to the same program: B=8
rows, P=6, 10 tokens.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdecode.contracts import DraftHeads
from pdecode.data import datastore
from pdecode.models import draft_layers, toy
from pdecode.models.config import Config

VOCAB, LENGTH, EOS = 4, 16, 3
WIDTH, MAX_NEW = 6, 10

# This seed ends some greedy rows early, one at the last slot, and lets others run on.
TARGET = toy.chain(2587, VOCAB, LENGTH)
NEAR = toy.mixed(TARGET, toy.chain(1, VOCAB, LENGTH), 0.3)
CAUSAL = toy.make_model(VOCAB, LENGTH, eos_ids=(EOS,))
MASKED = toy.make_model(VOCAB, LENGTH, predicts="masked", eos_ids=(EOS,))
IN_BLOCKS = toy.make_model(
    VOCAB, LENGTH + 3, predicts="masked", attention="block_causal", block_len=4,
    eos_ids=(EOS,),
)  # fmt: skip


def _heads_apply(params, hidden):
    return jnp.einsum("be,kef->bkf", jax.nn.softmax(hidden), params)


HEADS = DraftHeads(4, _heads_apply)
HEAD_PARAMS = jnp.pad(
    TARGET.moves[jnp.arange(2, 6), jnp.arange(2, 6)], ((0, 0), (0, 1), (0, 1))
)  # a guess from the next transition: often right, often wrong


# A layer of random weights on the toy's log-probabilities, which are its features.
LAYER_SIZES = Config(
    vocab_size=VOCAB + 1, width=VOCAB + 1, num_layers=1, num_heads=1, head_dim=4,
    mlp_width=8,
)  # fmt: skip
_ON_FEATURES = draft_layers.make_layer(LAYER_SIZES)


def _layer_apply(params, target, query, cache):
    del target
    extra = jax.nn.softmax(query.extra)  # impossible tokens have -1e9
    query = query._replace(extra=extra)
    return _ON_FEATURES.apply(params["layer"], params, query, cache)


LAYER = _ON_FEATURES._replace(
    apply=_layer_apply,
    law=lambda params, target, features: (4 * features, CAUSAL.head(target)),
)
LAYER_PARAMS = {
    "layer": draft_layers.init(LAYER_SIZES, jax.random.key(2)),
    "embed": jax.random.normal(jax.random.key(3), (VOCAB + 1, VOCAB + 1)),
}


class Case(NamedTuple):
    """One method with its toy models; `kind` says which guarantee is tested."""

    method: str
    model: Any
    params: Any
    sizes: dict
    kind: str  # plain: = plain sampling | law: lossless in law | lossy
    knobs: dict = {}
    max_calls: int = MAX_NEW


def case(method, kind, *, model=CAUSAL, params=TARGET, max_calls=MAX_NEW, knobs=None,
          **sizes):  # fmt: skip
    return Case(method, model, params, sizes, kind, knobs or {}, max_calls)


TWO = {"model": (CAUSAL, CAUSAL), "params": {"model": TARGET, "drafter": NEAR}}
TWO_HEADS = {
    "model": (CAUSAL, HEADS),
    "params": {"model": TARGET, "heads": HEAD_PARAMS},
}
WITH_LAYER = {
    "model": (CAUSAL, LAYER),
    "params": {"model": TARGET, "layer": LAYER_PARAMS},
}
# Texts of the target's own law: what follows a copy is often what it says.
_DRAWN = np.random.default_rng(0).integers(0, VOCAB - 1, (6, 9)).tolist()
STORE, TEXTS = datastore.build([*_DRAWN, [0, 1, 1, 0, 2, 1, 0, 2, 2, 0, 1]])
STORED = {
    "model": (CAUSAL, STORE),
    "params": {"model": TARGET, "corpus": jax.tree.map(jnp.asarray, TEXTS)},
}
ON_MASKS = {"model": MASKED}
ON_BLOCKS = {"model": IN_BLOCKS, "params": toy.chain(2587, VOCAB, LENGTH + 3)}
