"""Every record and signature that models, drafters, rules and decoders share.

Letters in shapes: B rows, P prompt, L buffer, W window, Q queries of one call, S cache
slots, N draft nodes, D draft depth, E width, V vocabulary. Everything is a NamedTuple
of arrays or of pure functions; there is nothing to inherit from.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

Params = Any
Cache = Any
Memory = Any

# Stands where a leaf of `Prediction` was not asked for; a rule never meets it.
NOT_ASKED: Any = None

# Why a row ended (`Generation.stopped_by`).
STOPPED_BY = ("length", "eos", "max_steps")


class Visibility(NamedTuple):
    """Which keys each query sees; writes of a call happen before its reads.

    A cache slot is visible to a query if start <= slot < stop and it is written.
    With `among` the keys of this call are seen through `among` only, stored or not, and
    the interval must hold no slot that this call writes. With `among=None` a stored key
    of this call is seen through the interval, and an unstored lane does not see itself.
    A query that sees nothing has attention output zero.
    """

    start: Array  # int32 [B, Q]
    stop: Array  # int32 [B, Q]
    written: Array | None = None  # bool [B, S]  None: every slot is written
    among: Array | None = None  # bool [B, Q, Q]  query q sees lane k of this call


class SlotRun(NamedTuple):
    """Slots one after another: lane q of a row stands at start + q.

    Cheaper to write than slots named one by one on TPU. Without `stored`, start + Q may
    not exceed S; with it, lanes beyond the cache are not stored.
    """

    start: Array  # int32 [B], 0 <= start <= S
    stored: Array | None = None  # bool [B, Q]  None: every lane


class Query(NamedTuple):
    """One call of a model: Q lanes a row."""

    tokens: Array  # int32 [B, Q]
    positions: Array  # int32 [B, Q]  place in the sequence (rotary)
    # Place of the lanes in the cache: a SlotRun, or int32 [B, Q], where >= S means "not
    # stored". None: no lane is stored.
    slots: Array | SlotRun | None
    visible: Visibility
    extra: Array | None = None  # [B, Q, E]  second input stream, model's business
    has_extra: Array | None = None  # bool [B, Q]


class Output(NamedTuple):
    """What a call returns: hidden states after the final norm, and declared taps."""

    hidden: Array  # [B, Q, E]
    taps: dict[str, Array] = {}


class Head(NamedTuple):
    """logits = soft_cap(scale * hidden @ weight.T + bias), made only when asked for."""

    weight: Array  # [V, E]
    bias: Array | None = None  # [V]
    scale: Any = 1.0
    soft_cap: float | None = None  # logits -> cap * tanh(logits / cap)


class Model(NamedTuple):
    """A model as pure functions and static facts; hashable, made once.

    A causal model's output at a query predicts the next position; any other model's
    output predicts the query's own position.
    """

    init_cache: Callable[..., Cache]  # (prompt, num_slots) -> cache
    apply: Callable[..., tuple[Output, Cache]]  # (params, query, cache, *, layers=None)
    encode: Callable[..., tuple[Output, Cache]]  # apply, for what is committed
    head: Callable[[Params], Head]
    move: Callable[
        ..., Cache
    ]  # (cache, source [B,K], target [B,K] >= S drops | SlotRun)
    vocab_size: int
    mask_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    predicts: str = "next"  # next | masked | uniform (noise)
    attention: str = "causal"  # causal | bidirectional | block_causal
    block_len: int | None = None  # of block_causal attention
    max_positions: int | None = None
    taps: tuple[str, ...] = ()
    num_calls: int = 1  # target calls that one apply counts for (guidance: 2)
    name: str = "model"


class Prompt(NamedTuple):
    """A ragged batch. Rows start at index 0; what lies beyond `lengths` is ignored."""

    tokens: Array  # int32 [B, P]
    lengths: Array  # int32 [B]
    row_ids: Array  # int32 [B]  names the row's noise
    max_new: Array  # int32 [B]
    masked: Array | None = None  # bool [B, P]  holes to fill
    context: Any = None  # whatever the model's init_cache reads, leaves [B, ...]


class Generation(NamedTuple):
    """The result. Row b's generation is tokens[b, start[b] : start[b] + lengths[b]]."""

    tokens: Array  # int32 [B, L]  prompt and generation
    start: Array  # int32 [B]
    lengths: Array  # int32 [B]  generated tokens before the first EOS
    log_probs: Array  # float32 [B, L]  raw log-probability of each token when committed
    stopped_by: Array  # int32 [B]  index into STOPPED_BY


class StepInfo(NamedTuple):
    """What one step did to each row; zero for a row that is done."""

    num_calls: Array  # int32 [B]  target calls (NFE)
    num_committed: Array  # int32 [B]
    num_proposed: Array  # int32 [B]  draft nodes, or open positions predicted
    num_revoked: Array  # int32 [B]  remasked positions
    num_query_tokens: Array  # int32 [B]  lanes asked for
    num_query_tokens_computed: Array  # int32 [B]  lanes evaluated, padding included
    num_dispatches: Array  # int32 []  target programs run for the whole batch


class Decoder(NamedTuple):
    """A decoding algorithm. `max_steps` bounds its steps on any input."""

    init: Callable[..., tuple[Any, StepInfo]]  # (params, keys [B], prompt)
    step: Callable[..., tuple[Any, StepInfo]]  # (params, keys [B], state)
    done: Callable[[Any], Array]  # state -> bool [B]
    output: Callable[[Any], Generation]
    max_steps: int


class Sampling(NamedTuple):
    """The law a token is drawn from; None switches a filter off at trace time.

    Order: bans, temperature, top-k, top-p (the crossing token is kept), min-p.
    """

    temperature: Any = 0.0  # 0: argmax
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None
    banned: tuple[int, ...] = ()  # not in the law at all
    undrawn: tuple[int, ...] = ()  # in the law that statistics describe, never drawn
    is_top_p_first: bool = False  # top-p of the law as it is before top-k


class Prediction(NamedTuple):
    """Statistics of the head at each query; only the leaves asked for are there.

    "Raw" is the law at temperature 1 after bans; "sampled" is the law of `Sampling`
    (at temperature 0 its log-probabilities are the raw ones, and `probs` is one-hot).
    """

    token: Array = NOT_ASKED  # int32 [B, Q]  argmax(logits + T * gumbel)
    log_prob: Array = NOT_ASKED  # [B, Q]  raw, of `token`
    sampled_log_prob: Array = NOT_ASKED  # [B, Q]  sampled, of `token`
    max_log_prob: Array = NOT_ASKED  # [B, Q]  raw
    entropy: Array = NOT_ASKED  # [B, Q]  raw, nats
    margin: Array = NOT_ASKED  # [B, Q]  raw, probability of best less second
    sampled_entropy: Array = NOT_ASKED  # [B, Q]
    sampled_margin: Array = NOT_ASKED  # [B, Q]
    top_ids: Array = NOT_ASKED  # int32 [B, Q, K]  ask "top:K"
    top_log_probs: Array = NOT_ASKED  # [B, Q, K]  raw
    of_log_prob: Array = NOT_ASKED  # [B, Q]  raw, of the tokens passed as `of`
    logits: Array = NOT_ASKED  # [B, Q, V]  banned ids at -inf; dense path
    probs: Array = NOT_ASKED  # [B, Q, V]  sampled law; dense path


class Row(NamedTuple):
    """What a rule of the masked family sees: one row, one window."""

    tokens: Array  # int32 [L]
    masked: Array  # bool [L]  still open
    generated: Array  # bool [L]  open when decoding began
    start: Array  # int32 []  first position open when decoding began
    end: Array  # int32 []  one past the last position to generate
    num_initial: Array  # int32 []  open positions of the block when it began
    step: Array  # int32 []  steps taken in this block
    block: Array  # int32 []  index of the active block, counted from `start`
    turn: Array  # int32 []  steps taken in all
    positions: Array  # int32 [W]  of the window's lanes
    open: Array  # bool [W]  masked, inside the active block, valid


class Rule(NamedTuple):
    """A commit or remask rule: which lanes of the window to commit (or reopen)."""

    init: Callable[[int], Memory]  # canvas length L -> memory of one row
    apply: Callable[..., tuple[Array, Memory]]  # (key, row, prediction, memory)
    wants: tuple[str, ...] = ()  # leaves of Prediction that `apply` reads


class Window(NamedTuple):
    """The lanes that one call evaluates, chosen row by row; `width` is static."""

    width: int
    apply: Callable[[Row], tuple[Array, Array]]  # row -> (positions [W], valid [W])
    # The positions rise by one; a run as wide as the canvas begins at 0.
    is_run: bool = False


class Prefix(NamedTuple):
    """What is committed. The cache holds all but the last token, the root."""

    tokens: Array  # int32 [B, L]
    length: Array  # int32 [B]
    end: Array  # int32 [B]  length may not pass it
    prompt_end: Array  # int32 [B]


class Draft(NamedTuple):
    """Proposed tokens as a tree; parents come before children, siblings in try order.

    Node n is lane n + 1 of the verifying call and parent -1 is the root, lane 0. A
    node with a negative token is no proposal and is never accepted.
    """

    tokens: Array  # int32 [B, N]
    parents: Array  # int32 [B, N]
    offsets: Array | None = None  # int32 [B, N]  position less root's; None: depth
    among: Array | None = None  # bool [B, N, N]  over nodes; None: ancestors and itself
    q: Array | None = None  # [B, N, V]  the law node n was drawn from


class Round(NamedTuple):
    """What a drafter may learn from one verification."""

    draft: Draft
    output: Output
    prediction: Prediction
    path: Array  # int32 [B, D]  accepted lanes in order, repeating the last
    num_accepted: Array  # int32 [B]
    next_token: Array  # int32 [B]
    prefix: Prefix  # before the round


class Drafter(NamedTuple):
    """Proposes drafts. Functions get the decoder's own `params`.

    With `is_paired` those are (target, drafter) and the family reads the first.
    """

    num_nodes: int
    max_depth: int
    init: Callable[..., Any]  # (params, keys, prompt, prefix, output) -> state
    propose: Callable[..., tuple[Draft, Any]]  # (params, keys, state, prefix)
    observe: Callable[..., Any]  # (params, keys, state, round) -> state
    num_probes: int = 0  # last nodes, parent -1, never stored, never accepted
    wants: tuple[str, ...] = ()  # leaves of Prediction that `observe` reads
    is_paired: bool = False


class DraftHeads(NamedTuple):
    """Extra heads on a target's hidden state, sharing its unembedding.

    apply(params, hidden [B, E]) -> [B, K, E]: where `hidden` predicts position t + 1,
    row k of the result predicts position t + 2 + k.
    """

    num_heads: int
    apply: Callable[[Params, Array], Array]
    name: str = "heads"


class NodeRule(NamedTuple):
    """Acceptance at one node: children are tried in order.

    apply(p [V], q [C, V], children [C]) -> (accept [C], residual [V]): accept[c] is the
    probability of child c given that the earlier ones were refused, residual the law
    of the next token when all are. Children below zero are absent.
    """

    apply: Callable[[Array, Array, Array], tuple[Array, Array]]
    max_children: int


class BlockRule(NamedTuple):
    """Acceptance over a whole draft of one row.

    apply(draft, prediction) -> (stop [1 + N], residual [1 + N, V]), both of one row:
    the probability that the accepted path ends at each lane, and the law of the next
    token there.
    """

    apply: Callable[[Draft, Prediction], tuple[Array, Array]]
    wants: tuple[str, ...] = ("probs",)
