"""The toys that parts are tried on, and prompts of ragged rows for them."""

import functools

import jax
import jax.numpy as jnp

from pdecode import prompts
from pdecode.contracts import Model, Prompt
from pdecode.models import toy

VOCAB, LENGTH, NEW, EOS = 4, 14, 8, 3
LAW = toy.chain(2587, VOCAB, LENGTH)
NEAR = toy.mixed(LAW, toy.chain(1, VOCAB, LENGTH), 0.3)
CAUSAL = toy.make_model(VOCAB, LENGTH, eos_ids=(EOS,))
MASKED = toy.make_model(VOCAB, LENGTH, predicts="masked", eos_ids=(EOS,))
# By what a method says its model must predict.
OF_KIND = {"next": CAUSAL, "masked": MASKED}
ROWS = [[0, 1], [2, 0, 1, 1], [1], [0, 2, 0, 2, 1], [1, 1, 2], [2, 2]]
MOST = [8, 8, 1, 8, 5, 7]
ORDER = [3, 0, 5, 4, 2, 1]

# A toy's program is compiled once and run briefly: compiling is what takes time.
quick = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def ragged(rows=None, most=None, ids=None, model: Model | None = None) -> Prompt:
    """Rows of different lengths; junk stands behind each row's text."""
    rows = ROWS if rows is None else rows
    made = prompts.from_rows(
        rows,
        max_new_tokens=MOST if most is None else most,
        row_ids=ids,
        pad_to=max(map(len, ROWS)),
        model=model,
    )
    beyond = jnp.arange(made.tokens.shape[1])[None] >= made.lengths[:, None]
    return made._replace(tokens=jnp.where(beyond, 2, made.tokens))
