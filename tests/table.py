"""The table of all methods on the toy, and the one program each compiles.

Every case a test wants (alone, permuted, in company, other padding contents, finished
neighbours, temperature 0 or 1, split over devices) is data to the same program: B=8
rows, P=6, 10 tokens. A method traced again for these shapes fails its test.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pdecode import methods, prompts
from pdecode.contracts import DraftHeads
from pdecode.decode import run
from pdecode.models import toy

VOCAB, LENGTH, EOS = 4, 16, 3
WIDTH, MAX_NEW = 6, 10

# This seed ends some greedy rows early, one at the last slot, and lets others run on.
TARGET = toy.chain(2587, VOCAB, LENGTH)
NEAR = toy.mixed(TARGET, toy.chain(1, VOCAB, LENGTH), 0.3)
CAUSAL = toy.make_model(VOCAB, LENGTH, eos_ids=(EOS,))
MASKED = toy.make_model(VOCAB, LENGTH, predicts="masked", eos_ids=(EOS,))


def _heads_apply(params, hidden):
    return jnp.einsum("be,kef->bkf", jax.nn.softmax(hidden), params)


HEADS = DraftHeads(4, _heads_apply)
HEAD_PARAMS = jnp.pad(
    TARGET.moves[jnp.arange(2, 6), jnp.arange(2, 6)], ((0, 0), (0, 1), (0, 1))
)  # a guess from the next transition: often right, often wrong


class Case(NamedTuple):
    """One method with its toy models; `kind` says which guarantee is tested."""

    method: str
    model: Any
    params: Any
    sizes: dict
    kind: str  # plain: = plain sampling | law: lossless in law | lossy
    knobs: dict = {}
    max_calls: int = MAX_NEW


def _case(method, kind, *, model=CAUSAL, params=TARGET, max_calls=MAX_NEW, knobs=None,
          **sizes):  # fmt: skip
    return Case(method, model, params, sizes, kind, knobs or {}, max_calls)


_two = {"model": (CAUSAL, CAUSAL), "params": {"model": TARGET, "drafter": NEAR}}
_heads = {"model": (CAUSAL, HEADS), "params": {"model": TARGET, "heads": HEAD_PARAMS}}
_masked = {"model": MASKED}

CASES = {
    "autoregressive": _case("autoregressive", "plain"),
    "prompt_lookup": _case("prompt_lookup", "plain", num_draft=4),
    "speculative": _case("speculative_sampling", "law", num_draft=3, **_two),
    "coupled": _case(
        "speculative_sampling", "plain", num_draft=3, acceptance="coupled", **_two
    ),
    "block_verification": _case("block_verification", "law", num_draft=3, **_two),
    "specinfer": _case("specinfer", "law", branching=(2, 2), **_two),
    "specinfer_without": _case(
        "specinfer", "law", branching=(3, 1), draws="without_replacement", **_two
    ),
    "blockwise": _case("blockwise", "plain", num_draft=3, **_heads),
    "jacobi": _case("jacobi", "plain", window=4),
    "jacobi_blocks": _case("jacobi", "plain", window=4, block_length=4),
    "sjd": _case("sjd", "law", window=4, transport="independent"),
    "mc_sjd": _case("sjd", "law", window=4, transport="maximal", start="repeat"),
    "gs_sjd": _case("sjd", "law", window=4, transport="gumbel"),
    "llada": _case("llada", "lossy", steps=6, block_length=5, **_masked),
    "llada_guided": _case(
        "llada", "lossy", knobs={"cfg_scale": 0.5}, max_calls=20, **_masked
    ),
    "dream_entropy": _case("dream", "lossy", alg="entropy", steps=6, **_masked),
    "dream_origin": _case("dream", "lossy", alg="origin", steps=6, **_masked),
    "mdlm": _case("mdlm", "lossy", steps=8, **_masked),
    "maskgit": _case("maskgit", "lossy", steps=4, **_masked),
    "threshold": _case(
        "fast_dllm", "lossy", block_length=4, knobs={"threshold": 0.6}, **_masked
    ),
    "dual_cache": _case(
        "fast_dllm",
        "lossy",
        block_length=4,
        cache="dual",
        knobs={"threshold": 0.6},
        **_masked,
    ),
    "prefix_cache": _case(
        "fast_dllm",
        "lossy",
        block_length=4,
        cache="prefix",
        knobs={"factor": 1.0},
        **_masked,
    ),
    "eb_sampler": _case("eb_sampler", "lossy", knobs={"gamma": 0.5}, **_masked),
    "remdm": _case("remdm", "lossy", steps=12, max_calls=12, **_masked),
    "remdm_conf": _case(
        "remdm", "lossy", steps=12, variant="conf", max_calls=12, **_masked
    ),
    "raster": _case("any_order", "lossy", order="raster", **_masked),
    "random_order": _case("any_order", "lossy", steps=4, **_masked),
}

ROWS = [[0, 1], [2, 0, 1, 1], [1], [0, 2, 0, 2, 1], [1, 1, 2]]
ROWS += [[0, 1, 1], [2, 2], [2, 1, 0, 0]]
NEW = [8, 10, 1, 10, 5, 9, 10, 3]


def prompt(rows=ROWS, new=NEW, ids=None, junk=0, width=WIDTH):
    """The table's prompt; `junk` fills what lies beyond each row's text."""
    made = prompts.from_rows(rows, max_new=new, row_ids=ids, pad_to=width)
    beyond = jnp.arange(width)[None] >= made.lengths[:, None]
    return made._replace(tokens=jnp.where(beyond, junk, made.tokens))


@functools.cache
def traced_once(name):
    """The method of case `name`; tracing it a second time is an error."""
    method = getattr(methods, CASES[name].method)

    @functools.wraps(method)
    def once(*models, **settings):
        return method(*models, **settings)

    once.__name__ = name  # chex counts by name and source
    return chex.assert_max_traces(once, n=1)


def decode(name, prompt, temperature, seed=0, **changed):
    """(Generation, Stats) of case `name` as numpy."""
    return jax.tree.map(np.asarray, launch(name, prompt, temperature, seed, **changed))


def launch(name, prompt, temperature, seed=0, *, method=None, params=None, **changed):
    """`decode` on devices; other shapes or devices need a `method` of their own."""
    case = CASES[name]
    return run(
        method or traced_once(name),
        case.model,
        case.params if params is None else params,
        prompt,
        jax.random.key(seed),
        knobs={**case.knobs, "temperature": temperature, **changed},
        max_new_tokens=MAX_NEW,
        **case.sizes,
    )


@functools.cache
def base(name, temperature, seed=0):
    """The table's prompt decoded as it stands."""
    return decode(name, prompt(), temperature, seed)


def rows_of(generation):
    """The generated tokens of every row, up to its length."""
    return [
        generation.tokens[b, start : start + length].tolist()
        for b, (start, length) in enumerate(zip(generation.start, generation.lengths))
    ]
