"""What an objective is: one record, and the check of what it needs of a model."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Needs(NamedTuple):
    """What the model must be, and why nothing else will do."""

    attention: tuple[str, ...]
    predicts: tuple[str, ...]
    why: str  # completes "objective=NAME needs FIELD=...: "
    shift: bool = False  # a model that reads its answers one slot to the left may come
    mask: bool = False  # the model must have a mask id
    exits: bool = False  # the model must name the layers after which it may be left
    frozen: tuple[str, ...] = ()  # roles of models that stay as they are
    # Those of them that need not be `config.model`; they share its vocabulary.
    of_any_size: tuple[str, ...] = ()
    can_start: bool = True  # `start_from` says where the parameters begin
    own_rows: bool = False  # the data must be rows that stand by themselves
    streams: int = 1  # that a row holds side by side: the model reads one at a time


class Objective(NamedTuple):
    """A training objective.

    The first dimension of every leaf of `batch` is rows. `loss` is the mean over what
    it scores, and `aux` says what that is: "weight", float32 [], how much, so that
    parts of a batch add up to the whole; "nats" and "scored" [B, ...], each token's own
    loss and whether it counts; "places" [...], where in the row its answer stands. A
    test changes the answers by them, to see that no prediction does.

    Noise is drawn for the whole batch in `noise`, so that neither the parts nor the
    devices change it; `key` of `loss` differs between parts.
    """

    options: type  # a frozen dataclass that checks its own ranges
    needs: Needs
    # (config, key, given) -> parameters to train; `given` comes from `start_from`.
    start: Callable[..., Any]
    # (config) -> loss(params, frozen, batch, key, step) -> (loss, aux)
    loss: Callable[..., Callable]
    # (config, params, frozen, text, *, row_len, max_rows, put) -> {name: number}
    figures: Callable[..., dict]
    # (config) -> what `models.embedded` has to know to load the result.
    holds: Callable[..., dict]
    # (config, tokens int32 [B, L], step) -> tokens, on the host; None: as they are.
    prepare: Callable | None = None
    # (config) -> noise(batch, key) -> batch with more leaves; None: there is none.
    noise: Callable | None = None
    # (options as in a record) -> the method that takes the result as its drafter, and
    # settings; None: it is a model by itself.
    decoded_by: Callable[[dict], tuple[str, dict]] | None = None
    # (options as in a record) -> the method that the result, a model by itself, is
    # trained for, and settings; None: what every such model is decoded with.
    decoded_as: Callable[[dict], tuple[str, dict]] | None = None
    # (config, changes, step) -> changes: what learns at another rate than the run's.
    rates: Callable | None = None
    # params -> those of the model that was trained along, which the result serves: it
    # becomes a folder "model" in the run's. None: that model is frozen, or there is no
    # other than the result.
    model: Callable | None = None


def check(name: str, needs: Needs, config: Any) -> None:
    """ValueError, naming the field, for a config that `needs` does not allow."""
    model = config.model
    for field, allowed in (
        ("attention", needs.attention),
        ("predicts", needs.predicts),
        ("shift", (False, True) if needs.shift else (False,)),
    ):
        value = getattr(model, field)
        if value not in allowed:
            wanted = " or ".join(map(repr, allowed))
            raise ValueError(
                f"objective={name} needs model.{field}={wanted}, not {value!r}: "
                f"{needs.why}"
            )
    if needs.mask and model.mask_id is None:
        raise ValueError(f"objective={name} needs model.mask_id, which is None")
    if needs.own_rows and config.data is None:
        raise ValueError(
            f"objective={name} needs data='rows' and data_dir, a folder that a "
            f"preparation wrote: {needs.why}"
        )
    if needs.exits and not model.exits:
        raise ValueError(
            f"objective={name} needs model.exits, such as (1, {model.num_layers}): the "
            "layers after which a token may be answered"
        )
    for role in config.frozen:
        if role not in needs.frozen:
            known = ", ".join(needs.frozen) or "it has none"
            raise ValueError(
                f"objective={name} has no frozen model {role!r}; known: {known}"
            )
    for role in needs.frozen:
        if role not in config.frozen:
            raise ValueError(
                f"objective={name} needs frozen.{role}: an embedded model's name or a "
                "folder that a run wrote"
            )
    if config.start_from is not None and not needs.can_start:
        raise ValueError(
            f"start_from={config.start_from!r}: objective={name} begins by itself; a "
            f"model that it reads is {' or '.join('frozen.' + r for r in needs.frozen)}"
        )
