"""The table of all methods on the toy, and the one program each compiles.

A method traced again for the table's shapes fails its test.
"""

import functools
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
from cases import (  # noqa: F401
    CAUSAL,
    EOS,
    MASKED,
    MAX_NEW,
    NEAR,
    TARGET,
    VOCAB,
    WIDTH,
    Case,
)

from pdecode import methods, prompts
from pdecode.decode import run

_FILES = [importlib.import_module(f"cases.{group}") for group in methods.GROUPS]
CASES: dict[str, Case] = {}
for _file in _FILES:
    assert not CASES.keys() & _file.CASES.keys(), "two cases of one name"
    CASES |= _file.CASES
# Methods that no toy serves; their file says why and where they are tried.
WITHOUT = set().union(*(getattr(each, "WITHOUT", set()) for each in _FILES))

ROWS = [[0, 1], [2, 0, 1, 1], [1], [0, 2, 0, 2, 1], [1, 1, 2]]
ROWS += [[0, 1, 1], [2, 2], [2, 1, 0, 0]]
NEW = [8, 10, 1, 10, 5, 9, 10, 3]


def prompt(rows=ROWS, new=NEW, ids=None, junk=0, width=WIDTH):
    """The table's prompt; `junk` fills what lies beyond each row's text."""
    made = prompts.from_rows(rows, max_new_tokens=new, row_ids=ids, pad_to=width)
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
