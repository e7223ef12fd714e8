"""Which tokens are right, told from a target's hidden states at them.

Judge decoding (Bachmann et al., 2025, arXiv:2501.19309): a linear head on the last
hidden state of a frozen target, read at the token that it judges, with the cross
entropy of labels "right" and "wrong", those of wrong tokens weighed more or less. A row
is tokens and, behind them, a label for each: `train.judgements` writes such rows.
`methods.judge_decoding` accepts what the head likes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pdecode.contracts import Params
from pdecode.models import judges
from pdecode.train import evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.passes import Pass

UNTOLD, RIGHT, WRONG = range(3)  # labels


@dataclasses.dataclass(frozen=True)
class Options:
    wrong_weight: float = 1.0  # of a wrong token's label beside a right one's

    def __post_init__(self):
        check_ranges(self, {"wrong_weight": (0, float("inf"))})


NEEDS = Needs(
    attention=("causal",),
    predicts=("next",),
    why="the target has read what stands before a token and the token, and no more",
    frozen=("target",),
    can_start=False,
    own_rows=True,
    streams=2,
)


def start(config, key, given):
    del key, given
    if config.row_len % 2:
        raise ValueError(
            f"row_len={config.row_len} must be even: tokens and a label for each"
        )
    return judges.init(config.model.width)


def prepare(config, tokens, step):
    """The rows as they are; ValueError for rows whose second half is no labels."""
    del step
    labels = tokens[:, config.row_len // 2 :]
    if (labels > WRONG).any():
        raise ValueError(
            f"data_dir={config.data_dir} holds no labels behind its tokens: write rows "
            "with python -m pdecode.train.judgements"
        )
    return tokens


def label_nats(
    params: Params, target: Params, rows: Array, how: Pass
) -> tuple[Array, Array, Array]:
    """Nats of every label, which label says wrong, and which there are, all [B, L].

    Rows int32 [B, 2 L]; no gradient to `target`.
    """
    tokens, labels = jnp.split(rows, 2, axis=1)
    hidden = jax.lax.stop_gradient(passes.hidden(how, target, tokens))
    likes = jax.vmap(functools.partial(judges.LINEAR.apply, params))(hidden)
    is_right = (labels == RIGHT).astype(likes.dtype)
    nats = optax.sigmoid_binary_cross_entropy(likes, is_right)
    return nats, labels == WRONG, (labels == RIGHT) | (labels == WRONG)


def loss(config):
    how, own = passes.of_run(config), config.options

    def apply(params, frozen, batch, key, step):
        del key, step
        nats, wrong, told = label_nats(params, frozen["target"], batch["tokens"], how)
        weighed = jnp.where(wrong, own.wrong_weight, 1.0) * nats
        places = jnp.zeros(nats.shape[1], jnp.int32)
        value, aux = losses.mean(weighed, told, places)
        # No token is predicted here: what is judged is in the input.
        return value, {**aux, "scored": jnp.zeros_like(told)}

    return apply


@functools.partial(jax.jit, static_argnums=0)
def _sums(how, params, target, rows, is_row):
    nats, wrong, told = label_nats(params, target, rows, how)
    told &= is_row[:, None]
    # A label of more than log 2 nats is one that the head does not agree with.
    hits = told & (nats < jnp.log(2.0))
    parts = nats * told, told, told & wrong, hits & ~wrong, hits & wrong
    return jnp.stack([part.sum(dtype=jnp.float32) for part in parts])


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """Bits a label, the right tokens that are accepted and the wrong ones refused."""
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    how, total = passes.of_decoding(config.model), np.zeros(5)
    for tokens, scored in evaluate.parts(rows):
        arrays = put(tokens), put(scored.any(1))
        total += np.asarray(_sums(how, params, frozen["target"], *arrays))
    nats, told, wrong, kept, refused = total.tolist()
    return {
        "bits_per_label": float(evaluate.bits(nats) / max(told, 1)),
        "right_accepted": kept / max(told - wrong, 1),
        "wrong_refused": refused / max(wrong, 1),
    }


def holds(config):
    del config
    return {"kind": "judge"}


def decoded_by(options: dict) -> tuple[str, dict]:
    del options
    return "judge_decoding", {}


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, prepare, decoded_by=decoded_by
)
