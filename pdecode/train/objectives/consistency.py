"""Consistency of Jacobi states: from any of them straight to where the iteration ends.

CLLM (Kou et al., 2024, arXiv:2403.00835). A row is a record of `train.trajectories`:
the decoded text, of each block a state of its trajectory, the state after it, and the
labels of the next-token loss, four parts of one length. Every block is asked twice in
one pass, as lanes of the decoded text and as lanes of its state, which see the decoded
text before the block and their own block up to themselves: what a Jacobi call computes.
The loss of a row is the mean cross entropy of the state's laws to the decoded text's,
which get no slope, from the first place where the two differ, plus `ar_weight` times
the mean next-token loss of the labels. `is_local` takes the next state's laws in place
of the end's. `jacobi` decodes the result, which is lossless of the result itself.

Deviations: all blocks of a row in one pass, and no label smoothing.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pdecode.contracts import Params, Visibility
from pdecode.models.config import Config
from pdecode.train import evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.objectives import autoregressive
from pdecode.train.passes import Pass

PARTS = ("decoded", "state", "next", "labels")  # of a record
_NUM_PARTS = len(PARTS)


@dataclasses.dataclass(frozen=True)
class Options:
    prompt_length: int = 32  # tokens, BOS among them; blocks are counted from its end
    block_length: int = 16
    ar_weight: float = 10.0
    is_local: bool = False

    def __post_init__(self):
        most = float("inf")
        check_ranges(
            self,
            {
                "prompt_length": (1, most),
                "block_length": (1, most),
                "ar_weight": (0, most),
            },
        )


NEEDS = Needs(
    attention=("causal",),
    predicts=("next",),
    why="Jacobi iterates what a causal model says next",
    own_rows=True,
)


def start(config, key, given):
    length, rest = divmod(config.row_len, _NUM_PARTS)
    if rest or length <= config.options.prompt_length:
        raise ValueError(
            f"row_len={config.row_len} must be {_NUM_PARTS} parts, each longer than "
            f"prompt_length={config.options.prompt_length}"
        )
    return autoregressive.OBJECTIVE.start(config, key, given)


def prepare(config, tokens, step):
    """The rows as they are; ValueError for rows that are no records."""
    del step
    parts = tokens.reshape(len(tokens), _NUM_PARTS, -1)
    prompt = parts[:, :, : config.options.prompt_length]
    if (prompt != prompt[:, :1]).any():
        raise ValueError(
            f"data_dir={config.data_dir} holds no records of prompt_length="
            f"{config.options.prompt_length}: write them with "
            "python -m pdecode.train.trajectories"
        )
    return tokens


def sees(length: int, prompt_length: int, block_length: int) -> np.ndarray:
    """What each of 2 L lanes [decoded | state] sees of them, bool [2 L, 2 L]."""
    place = np.arange(length)
    block = np.where(place < prompt_length, -1, (place - prompt_length) // block_length)
    past = place[None] <= place[:, None]
    same = block[None] == block[:, None]
    before = block[None] < block[:, None]
    decoded = np.concatenate([past, np.zeros_like(past)], 1)
    state = np.concatenate([before, same & past], 1)
    return np.concatenate([decoded, state])


def counted(decoded: Array, state: Array, own: Options, eos_ids) -> Array:
    """bool [B, L]: lanes whose laws the loss compares.

    From the first place of a block where the state is not the decoded token, up to the
    block's end and to the text's.
    """
    place = jnp.arange(decoded.shape[1])
    number = jnp.where(
        place < own.prompt_length, -1, (place - own.prompt_length) // own.block_length
    )
    differ = decoded != state
    upto = number[None] == number[:, None]
    upto &= place[None] <= place[:, None]
    begun = (differ[:, None] & upto[None]).any(-1) & (number >= 0)[None]
    is_end = jnp.isin(decoded, jnp.asarray(eos_ids, jnp.int32))
    return begun & ~(jnp.cumsum(is_end, axis=1) > 0)


def soft_nats(
    model: Config, params: Params, parts: Array, own: Options, how: Pass | None = None
) -> Array:
    """Nats [B, L] between the laws of decoded text (or next state) and of the state."""
    how = passes.of_decoding(model) if how is None else how
    decoded, state, after = parts[:, 0], parts[:, 1], parts[:, 2]
    laws = _laws(model, params, decoded, state, own, how)
    wanted = laws[0]
    if own.is_local:
        wanted = _laws(model, params, decoded, after, own, how)[1]
    wanted = jax.lax.stop_gradient(jax.nn.softmax(wanted))
    return optax.softmax_cross_entropy(laws[1], wanted)


def _laws(model, params, decoded, state, own: Options, how: Pass) -> Array:
    """Logits [2, B, L, V] of the decoded lanes and of the state's."""
    batch, length = decoded.shape
    both = jnp.concatenate([decoded, state], 1)
    place = jnp.broadcast_to(jnp.arange(2 * length) % length, both.shape)
    nowhere = jnp.zeros_like(place)
    among = jnp.asarray(sees(length, own.prompt_length, own.block_length))
    among = jnp.broadcast_to(among, (batch, *among.shape))
    visible = Visibility(nowhere, nowhere, among=among)
    output = passes.run(how, params, both, positions=place, visible=visible)
    logits = losses.logits_of(model, params, output.hidden)
    return jnp.stack([logits[:, :length], logits[:, length:]])


def label_nats(
    model: Config, params: Params, labels: Array, own: Options,
    given_ids: tuple[int, ...], how: Pass | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Nats [B, L - 1] of the labels, and which are scored: from the prompt's end to the
    text's.
    """
    nats, scored = losses.next_token_loss(model, params, labels, how, given_ids)
    scored &= jnp.arange(1, labels.shape[1])[None] >= own.prompt_length
    is_end = jnp.isin(labels[:, 1:], jnp.asarray(model.eos_ids, jnp.int32))
    return nats, scored & (jnp.cumsum(is_end, axis=1) <= is_end)


def loss(config):
    how, own, model = passes.of_run(config), config.options, config.model

    def apply(params, frozen, batch, key, step):
        del frozen, key, step
        rows = batch["tokens"]
        parts = rows.reshape(rows.shape[0], _NUM_PARTS, -1)
        length = parts.shape[2]
        chosen = counted(parts[:, 0], parts[:, 1], own, model.eos_ids)
        apart = losses.row_mean(soft_nats(model, params, parts, own, how), chosen)
        nats, scored = label_nats(
            model, params, parts[:, 3], own, config.given_ids, how
        )
        value = (apart + own.ar_weight * losses.row_mean(nats, scored)).mean()
        count = jnp.float32(rows.shape[0])
        places = (_NUM_PARTS - 1) * length + jnp.arange(1, length)
        return value, {
            "weight": count, "nats": nats, "scored": scored, "places": places
        }  # fmt: skip

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sums(model, own, given_ids, params, rows):
    parts = rows.reshape(rows.shape[0], _NUM_PARTS, -1)
    decoded, state = parts[:, 0], parts[:, 1]
    laws = _laws(model, params, decoded, state, own, passes.of_decoding(model))
    chosen = counted(decoded, state, own, model.eos_ids)
    said = jnp.argmax(laws[1], axis=-1)[:, :-1] == decoded[:, 1:]
    nats, scored = label_nats(model, params, parts[:, 3], own, given_ids)
    right = (said & chosen[:, :-1]).sum(), chosen[:, :-1].sum()
    return jnp.stack([*right, jnp.where(scored, nats, 0.0).sum(), scored.sum()])


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """Of states that are not yet the end: the share of tokens that one call gets right
    of what stands behind the first that is wrong. And the bits a token of the labels.
    """
    del frozen
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    total = np.zeros(4)
    for tokens, scored in evaluate.parts(rows):
        is_row = scored.any(1)
        if is_row.any():
            static = config.model, config.options, text.given_ids
            total += np.asarray(_sums(*static, params, put(tokens[is_row])), float)
    said, chosen, nats, scored = np.maximum(total, [0, 1, 0, 1]).tolist()
    return {
        "right_after_one_call": said / chosen,
        "label_bits_per_token": float(evaluate.bits(nats) / scored),
    }


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, autoregressive.holds, prepare
)
