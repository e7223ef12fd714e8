"""Statistics of the vocabulary head in tiles: the logits exist one tile at a time.

What is known of a set of ids is a `Partial`, and two disjoint sets are joined by
`merge`: running over tiles and joining the shards of a split vocabulary are the same
operation. Exponentials are kept relative to the largest logit seen, as in the online
softmax of Milakov and Gimelshein, 2018, arXiv:1805.02867.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from pdecode import rng
from pdecode.contracts import Head, Prediction, Sampling
from pdecode.kernels.head.dense import logits
from pdecode.sampling import BANNED, among, largest, second_largest
from pdecode.sharding import context

# A tile holds about this many logits over all rows, and between TILE_LENS ids a row:
# large enough to keep a matmul busy, small enough to be a few percent of the logits.
_TILE_LOGITS = 1 << 21
TILE_LENS = (256, 4096)
# On a GPU a tile's weights are copied before they are multiplied, a small product fills
# no half of it, and the host decides in every turn if noise is drawn: there as many
# logits a tile as a quarter of a gigabyte holds, which for a call's rows is all ids.
_GPU_TILE_LOGITS = 1 << 26


class Law(NamedTuple):
    """Sums over ids of w = exp(d), d = (z - top) / temperature."""

    mass: Array  # [N]  sum of w
    energy: Array | None  # [N]  sum of w * d


class Drawn(NamedTuple):
    """The id that wins at logit + temperature * noise."""

    score: Array  # [N]
    token: Array  # int32 [N]
    logit: Array  # [N]  without the noise


class Leaders(NamedTuple):
    """The ids of the largest logits, descending, ties by id."""

    logits: Array  # [N, K]
    ids: Array  # int32 [N, K]


class Partial(NamedTuple):
    """What a set of ids says about each of N rows; None: not asked for."""

    top: Array  # [N]  largest logit
    second: Array | None  # [N]  second largest, ties counted
    raw: Law | None  # at temperature 1
    cool: Law | None  # at the temperature of the sampling
    drawn: Drawn | None
    leaders: Leaders | None
    of_logit: Array | None  # [N]  of the token asked about; 0 if it is elsewhere


class Rows(NamedTuple):
    """What the rows bring: N = B * Q of them."""

    hidden: Array  # [N, E]
    keys: Array | None  # [N]  places of the noise
    of: Array | None  # int32 [N]
    temperature: Array  # []  of the sampling, in the dtype of the logits


class Wanted(NamedTuple):
    """Static facts of a call."""

    names: frozenset[str]
    num_top: int
    banned: tuple[int, ...]
    undrawn: tuple[int, ...]
    is_aligned: bool  # tiles of the vocabulary begin where tiles of noise do
    width_axis: Any  # mesh axes that split the width of the weights, mapped over
    soft_cap: float | None


def statistics(
    head: Head,
    hidden: Array,  # [B, Q, E]
    wants: tuple[str, ...],
    sampling: Sampling,
    keys: Array | None,  # [B, Q]
    of: Array | None,  # int32 [B, Q]
) -> Prediction:
    """`vocab_head.statistics` for laws without filters, logits and probs left out."""
    batch, num_queries, width = hidden.shape
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    names = {want.partition(":")[0] for want in wants}
    wanted = Wanted(
        names=frozenset(names),
        num_top=max((int(w[4:]) for w in wants if w.startswith("top:")), default=0),
        banned=sampling.banned,
        undrawn=sampling.undrawn,
        is_aligned=True,
        width_axis=None,
        soft_cap=head.soft_cap,
    )
    rows = Rows(
        hidden.reshape(-1, width),
        None if keys is None else keys.reshape(-1),
        of.reshape(-1) if of is not None and "of_log_prob" in names else None,
        jnp.asarray(sampling.temperature, dtype),
    )
    head = head._replace(scale=jnp.asarray(head.scale, dtype), soft_cap=None)
    found = _over_shards(wanted, rows, head, batch)
    asked = names | {"top_ids", "top_log_probs"}
    return Prediction(
        **{
            name: leaf.reshape(batch, num_queries, *leaf.shape[1:])
            for name, leaf in _leaves(found, rows.temperature).items()
            if name in asked
        }
    )


def merge(a: Partial, b: Partial, temperature: Array) -> Partial:
    """What the ids of `a` and the later ids of `b` say together; ties go to `a`."""
    top = jnp.maximum(a.top, b.top)
    second, drawn, leaders, of_logit = a.second, a.drawn, a.leaders, a.of_logit
    if second is not None and b.second is not None:
        second = jnp.maximum(jnp.minimum(a.top, b.top), jnp.maximum(second, b.second))
    if drawn is not None and b.drawn is not None:
        is_later = b.drawn.score > drawn.score
        drawn = Drawn(
            *(jnp.where(is_later, late, early) for early, late in zip(drawn, b.drawn))
        )
    if leaders is not None and b.leaders is not None:
        # The earlier ids stand first, and the stable order keeps ties that way.
        logits = jnp.concatenate([leaders.logits, b.leaders.logits], 1)
        ids = jnp.concatenate([leaders.ids, b.leaders.ids], 1)
        logits, where = jax.lax.top_k(logits, leaders.logits.shape[1])
        leaders = Leaders(logits, jnp.take_along_axis(ids, where, 1))
    if of_logit is not None and b.of_logit is not None:
        of_logit = of_logit + b.of_logit

    def join(one: Law | None, other: Law | None, temperature: Array) -> Law | None:
        if one is None or other is None:
            return None
        one = _lowered(one, (a.top - top) / temperature)
        other = _lowered(other, (b.top - top) / temperature)
        return jax.tree.map(jnp.add, one, other)

    raw = join(a.raw, b.raw, jnp.ones_like(temperature))
    cool = join(a.cool, b.cool, _safe(temperature))
    return Partial(top, second, raw, cool, drawn, leaders, of_logit)


def _over_shards(wanted: Wanted, rows: Rows, head: Head, batch: int) -> Partial:
    """The whole vocabulary, over the mesh in context if there is one.

    Every device works through its own rows and ids, then a `Partial` of each part of
    the ids is gathered: what travels is a few numbers a row, never logits, and of the
    weights only tiles whose width is split ("fsdp").
    """
    if context.in_context() is None:
        return _over_tiles(wanted, rows, head, 0)
    (by_row,) = context.spec(("rows",), (batch,))
    by_id, by_width = context.spec(("vocab", "embed"), head.weight.shape)

    def run(of_rows, temperature, weight, bias, scale) -> Partial:
        hidden, keys, of = of_rows
        rows, head = Rows(hidden, keys, of, temperature), Head(weight, bias, scale)
        local = weight.shape[0]
        facts = wanted._replace(
            is_aligned=by_id is None or local % rng.VOCAB_TILE == 0, width_axis=by_width
        )
        if by_id is None:
            return _over_tiles(facts, rows, head, 0)
        first = jax.lax.axis_index(by_id) * local
        found = jax.lax.all_gather(_over_tiles(facts, rows, head, first), by_id)
        lowest = jax.tree.map(lambda leaf: leaf[0], found)
        others = jax.tree.map(lambda leaf: leaf[1:], found)
        return jax.lax.scan(
            lambda a, b: (merge(a, b, temperature), None), lowest, others
        )[0]

    split, whole = PartitionSpec(by_row), PartitionSpec()
    of_ids = (PartitionSpec(by_id, by_width), PartitionSpec(by_id))
    return jax.shard_map(
        run,
        in_specs=(split, whole, *of_ids, whole),
        out_specs=split,
        check_vma=False,
    )(
        (rows.hidden, rows.keys, rows.of),
        rows.temperature,
        head.weight,
        head.bias,
        head.scale,
    )


def _over_tiles(wanted: Wanted, rows: Rows, head: Head, first: Array | int) -> Partial:
    """The ids first .. first + len(head.weight), one tile after another."""
    num_rows, num_ids = rows.hidden.shape[0], head.weight.shape[0]
    size = _tile_len(num_rows, num_ids)
    gpu_size = _gpu_tile_len(num_rows, num_ids)
    walk = functools.partial(_walk, wanted)
    if size == gpu_size or context.in_context() is not None:
        return walk(rows, head, first, size=size)
    return jax.lax.platform_dependent(
        rows, head, first,
        cuda=functools.partial(walk, size=gpu_size),
        default=functools.partial(walk, size=size),
    )  # fmt: skip


def _walk(wanted: Wanted, rows: Rows, head: Head, first: Array | int, *, size: int):
    num_ids = head.weight.shape[0]

    def tile(start: Array | int, size: int) -> Partial:
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=size)
        weight = cut(head.weight, start)
        if wanted.width_axis is not None:
            weight = jax.lax.all_gather(weight, wanted.width_axis, axis=1, tiled=True)
        part = Head(
            weight,
            None if head.bias is None else cut(head.bias, start),
            head.scale,
        )
        return _tile(wanted, rows, part, first + start)

    def absorb(index: Array, found: Partial) -> Partial:
        return merge(found, tile(index * size, size), rows.temperature)

    if size == num_ids:
        return tile(0, size)
    # From nothing rather than from the first tile: one copy of its program less.
    found = _nothing(jax.eval_shape(lambda: tile(0, size)))
    found = jax.lax.fori_loop(0, num_ids // size, absorb, found)
    if num_ids % size:
        start = num_ids - num_ids % size
        found = merge(found, tile(start, num_ids % size), rows.temperature)
    return found


def _nothing(like: Partial) -> Partial:
    """What no ids at all say, in the shapes of `like`."""
    lowest = {"top", "second", "score", "logits"}

    def none(path, leaf):
        value = -jnp.inf if path[-1].name in lowest else 0
        return jnp.full(leaf.shape, value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(none, like)


def _tile_len(num_rows: int, num_ids: int) -> int:
    """Ids of a tile: a power of two, or all of them if they are few."""
    low, high = TILE_LENS
    size = low
    while size < high and 2 * size * num_rows <= _TILE_LOGITS:
        size *= 2
    return min(size, num_ids)


def _gpu_tile_len(num_rows: int, num_ids: int) -> int:
    """Ids of a tile on a GPU: whole tiles of noise, or all ids if they fit."""
    size = max(_GPU_TILE_LOGITS // num_rows, rng.VOCAB_TILE)
    return num_ids if size >= num_ids else size - size % rng.VOCAB_TILE


def _tile(wanted: Wanted, rows: Rows, head: Head, first: Array | int) -> Partial:
    """What the ids first .. first + len(head.weight) say, by plain reductions."""
    names = wanted.names
    size = head.weight.shape[0]
    ids = first + jnp.arange(size, dtype=jnp.int32)[None]
    values = logits(head._replace(soft_cap=wanted.soft_cap), rows.hidden)
    values = jnp.where(among(ids, wanted.banned), BANNED, values)
    top = values.max(1)

    def law(wanted_for: set[str], energy_for: set[str], temperature: Array):
        if not names & wanted_for:
            return None
        gap = (values - top[:, None]) / temperature
        weight = jnp.exp(gap)
        energy = jnp.where(weight > 0, weight * gap, 0).sum(1)
        return Law(weight.sum(1), energy if names & energy_for else None)

    second = drawn = leaders = of_logit = None
    if names & {"margin", "sampled_margin"}:
        second = second_largest(values)
    if names & {"token", "log_prob", "sampled_log_prob"}:
        drawable = jnp.where(among(ids, wanted.undrawn), BANNED, values)
        score, where = _winner(wanted, rows, drawable, first)
        token = first + where
        logit = jnp.where(ids == token[:, None], values, 0).sum(1)
        drawn = Drawn(score, token, logit)
    if wanted.num_top:
        num = min(wanted.num_top, size)
        best, where = jax.lax.top_k(values, num)
        pad = ((0, 0), (0, wanted.num_top - num))
        best = jnp.pad(best, pad, constant_values=-jnp.inf)
        leaders = Leaders(best, jnp.pad(first + where.astype(jnp.int32), pad))
    if rows.of is not None:
        of_logit = jnp.where(ids == rows.of[:, None], values, 0).sum(1)
    raw = law(
        {"log_prob", "max_log_prob", "entropy", "margin", "top", "of_log_prob"},
        {"entropy"},
        jnp.ones_like(rows.temperature),
    )
    cool = law(
        {"sampled_log_prob", "sampled_entropy", "sampled_margin"},
        {"sampled_entropy"},
        _safe(rows.temperature),
    )
    return Partial(top, second, raw, cool, drawn, leaders, of_logit)


def _winner(
    wanted: Wanted, rows: Rows, logits: Array, first: Array | int
) -> tuple[Array, Array]:
    """Largest logit + temperature * noise of a tile [N], and its place int32 [N]."""
    if rows.keys is None:
        return largest(logits)

    keys, is_aligned = rows.keys, wanted.is_aligned

    def drawn() -> tuple[Array, Array]:
        noise = _gumbel(keys, first, logits.shape[1], is_aligned).astype(logits.dtype)
        return largest(logits + rows.temperature * noise)

    return jax.lax.cond(rows.temperature > 0, drawn, lambda: largest(logits))


def _gumbel(keys: Array, first: Array | int, size: int, is_aligned: bool) -> Array:
    """Columns first .. first + size of `rng.gumbel`, float32 [N, size]."""
    num_tiles = -(-size // rng.VOCAB_TILE) + (not is_aligned)
    tiles = first // rng.VOCAB_TILE + jnp.arange(num_tiles, dtype=jnp.int32)
    drawn = jax.vmap(lambda key: jax.vmap(rng.gumbel_tile)(rng.at(key, tiles)))(keys)
    drawn = drawn.reshape(keys.shape[0], -1)
    start = 0 if is_aligned else first % rng.VOCAB_TILE
    return jax.lax.dynamic_slice_in_dim(drawn, start, size, axis=1)


def _leaves(found: Partial, temperature: Array) -> dict[str, Array]:
    """Leaves of `Prediction` [N, ...] as the sums allow them."""
    leaves: dict[str, Array] = {}
    if found.drawn is not None:
        leaves["token"] = found.drawn.token
    laws = (
        ("", found.raw, jnp.ones_like(temperature)),
        ("sampled_", found.cool, _safe(temperature)),
    )
    for prefix, law, temperature in laws:
        if law is None:
            continue
        log_mass = jnp.log(law.mass)

        def log_prob(logit, top, log_mass=log_mass, temperature=temperature):
            return (logit - top) / temperature - log_mass

        if found.drawn is not None:
            leaves[prefix + "log_prob"] = log_prob(found.drawn.logit, found.top)
        if law.energy is not None:
            leaves[prefix + "entropy"] = log_mass - law.energy / law.mass
        if found.second is not None:
            rival = jnp.exp((found.second - found.top) / temperature)
            leaves[prefix + "margin"] = (1 - rival) / law.mass
        if prefix:
            continue
        leaves["max_log_prob"] = -log_mass
        if found.of_logit is not None:
            leaves["of_log_prob"] = log_prob(found.of_logit, found.top)
        if found.leaders is not None:
            top, many = found.top[:, None], log_mass[:, None]
            leaves["top_ids"] = found.leaders.ids
            leaves["top_log_probs"] = log_prob(found.leaders.logits, top, many)
    return leaves


def _lowered(law: Law, shift: Array) -> Law:
    """`law` relative to a larger top: every d is lowered by -shift."""
    weight = jnp.exp(shift)
    energy = law.energy
    if energy is not None:
        energy = jnp.where(weight > 0, weight * (energy + shift * law.mass), 0)
    return Law(weight * law.mass, energy)


def _safe(temperature: Array) -> Array:
    return jnp.where(temperature > 0, temperature, jnp.ones_like(temperature))
