"""Token statistics of hidden states under an output head: the one way to a prediction.

Every family asks `statistics` for the leaves of `Prediction` that its rules read.
Leaves that need the whole law at once (`logits`, `probs`, or any law with a top-k,
top-p or min-p filter) take the dense path, and so do few logits; else the vocabulary is
worked through in tiles (`kernels.head.tiles`) and the logits never exist together.
"""

import functools
from collections.abc import Callable

import jax
from jax import Array

from pdecode.contracts import Head, Lens, Params, Prediction, Sampling, View
from pdecode.kernels.head import dense, tiles
from pdecode.sampling import ban
from pdecode.sharding import context

# Up to so many logits (B * Q * V), 4 MiB of float32, the dense path is taken: there,
# measured on CPU, cutting the weights into tiles costs more than it saves.
DENSE_LOGITS = 1 << 20

_LEAVES = frozenset(Prediction._fields)


def check_wants(wants: tuple[str, ...]) -> None:
    """Raise ValueError for a name that is no leaf of Prediction."""
    for want in wants:
        name, _, size = want.partition(":")
        if name == "top" and size.isdigit() and int(size) > 0:
            continue
        if size or name not in _LEAVES - {"top_ids", "top_log_probs"}:
            raise ValueError(
                f"wants={want!r} is no leaf of Prediction; known: "
                f"{sorted(_LEAVES - {'top_ids', 'top_log_probs'})} and 'top:K'"
            )


def statistics(
    head: Head,
    hidden: Array,
    wants: tuple[str, ...],
    sampling: Sampling,
    keys: Array | Callable[[], Array] | None = None,
    *,
    of: Array | None = None,
) -> Prediction:
    """Prediction with the leaves named in `wants` for hidden [B, Q, E].

    `keys` [B, Q] name the noise of `token` (None: no noise, the argmax); a function
    that returns them spares a greedy call the work, which on CPU is more than its
    argmax. "top:K" fills `top_ids` and `top_log_probs`; `of_log_prob` needs `of` (int32
    [B, Q]). Decisions are float32 (float64 for float64 hidden states).

    Above DENSE_LOGITS the peak memory is a few tiles of the logits. On several devices
    put the mesh in context (`jax.set_mesh`): each then reads its own part of the
    vocabulary for its own rows, and a few numbers a row are exchanged. Both hold unless
    `logits`, `probs` or a filter needs the whole law.

    Raises:
      ValueError: an unknown name, more top ids than ids, or `of_log_prob` without `of`.
    """
    check_wants(wants)
    vocab_size = head.weight.shape[0]
    names = {want.partition(":")[0] for want in wants}
    num_top = max((int(want[4:]) for want in wants if want[:4] == "top:"), default=0)
    if num_top > vocab_size:
        raise ValueError(f"wants 'top:{num_top}' of a vocabulary of {vocab_size}")
    if "of_log_prob" in names and of is None:
        raise ValueError("wants 'of_log_prob' but of=None: pass the tokens")
    is_filtered = not (sampling.top_k is sampling.top_p is sampling.min_p is None)
    num_logits = hidden.shape[0] * hidden.shape[1] * vocab_size
    is_large = num_logits > DENSE_LOGITS or context.in_context() is not None
    if is_large and not is_filtered and not names & {"logits", "probs"}:
        known = keys() if callable(keys) else keys
        return tiles.statistics(head, hidden, wants, sampling, known, of)

    raw = ban(dense.logits(head, hidden), sampling.banned)
    return dense.statistics(raw, wants, sampling, keys, of=of)


def through(
    lenses: tuple[Lens, ...],
    params: dict[str, Params],
    views: View,
    head: Head,
    hidden: Array,
    sampling: Sampling,
    memory: tuple,
) -> tuple[Array, tuple]:
    """Logits [B, Q, V] of hidden [B, Q, E] after `lenses`, and their memory.

    `views` and `memory` (one entry a lens) have leaves [B, Q, ...]. What
    `sampling.banned` names is impossible before and after. `dense.statistics` goes on
    from here.
    """
    raw = ban(dense.logits(head, hidden), sampling.banned)
    after = []
    for lens, kept in zip(lenses, memory, strict=True):
        own = None if lens.role is None else params[lens.role]
        look = jax.vmap(jax.vmap(functools.partial(lens.apply, own)))
        raw, kept = look(views, raw, kept)
        after.append(kept)
    return ban(raw, sampling.banned), tuple(after)


def seen_through(
    lenses, params, views, head, hidden, wants, sampling, keys=None
) -> Prediction:
    """`statistics` of the law after lenses without memory; see `through`."""
    raw, _ = through(
        lenses, params, views, head, hidden, sampling, tuple(() for _ in lenses)
    )
    return dense.statistics(raw, wants, sampling, keys)
