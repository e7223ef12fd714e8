"""Every record and signature that models, drafters, rules and decoders share.

Letters in shapes: B rows, P prompt, L buffer, W window, Q queries of one call, S cache
slots, N draft nodes, D draft depth, E width, V vocabulary. Everything is a NamedTuple
of arrays or of pure functions; there is nothing to inherit from.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jax import Array

from pdecode import shown

__all__ = [
    "GUARANTEES",
    "NOT_ASKED",
    "STOPPED_BY",
    "Apply",
    "Background",
    "BlockLayer",
    "BlockRule",
    "Blocks",
    "Cache",
    "CanvasShape",
    "ChainedHeads",
    "Codes",
    "CommitFn",
    "Decoder",
    "Draft",
    "DraftCost",
    "DraftHeads",
    "DraftLayer",
    "DraftModules",
    "Drafter",
    "DrafterInit",
    "Embedding",
    "Filter",
    "Generation",
    "Guard",
    "Head",
    "Init",
    "InitCache",
    "Judge",
    "Lanes",
    "Lens",
    "Memory",
    "Model",
    "Move",
    "NodeRule",
    "Observe",
    "Output",
    "Params",
    "Prediction",
    "Prefix",
    "Prompt",
    "PromptTokens",
    "Propose",
    "Query",
    "Read",
    "Refresh",
    "Round",
    "Row",
    "Rule",
    "Sampling",
    "SlotRun",
    "Step",
    "StepInfo",
    "Transfer",
    "View",
    "Visibility",
    "Window",
]

Params = (
    Any  # of one model; a decoder gets them by role: {"model": ..., "drafter": ...}
)
Cache = Any
Memory = Any

# Stands where a leaf of `Prediction` was not asked for; a rule never meets it.
NOT_ASKED: Any = None

# Why a row ended (`Generation.stopped_by`).
STOPPED_BY = ("length", "eos", "max_steps", "not_finite", "truncated", "vetoed")

# What a decoder promises (`Decoder.guarantee`), composed of what its parts are:
# "lossless": the law of the target's own sampling, its tokens at temperature 0;
# "exact": the model's own law, one position at a time in an order blind to the draws;
# "lossy": neither.
GUARANTEES = ("lossless", "exact", "lossy")


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
    # stored" and no two lanes of a row share a slot. None: no lane is stored.
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


class Embedding(NamedTuple):
    """The input embeddings of a model, as its first layer gets them."""

    table: Callable[[Params], Array]  # -> [V, E]
    width: int  # E
    dtype: str


class InitCache(Protocol):
    def __call__(self, prompt: "Prompt", num_slots: int, /) -> Cache:
        """An empty cache; batch and context come from the prompt."""
        ...


class Apply(Protocol):
    def __call__(
        self, params: Params, query: Query, cache: Cache, /
    ) -> tuple[Output, Cache]:
        """One call: writes what the query stores, then answers every lane."""
        ...


class Move(Protocol):
    def __call__(
        self, cache: Cache, source: Array, target: Array | SlotRun, /
    ) -> Cache:
        """Copies slots `source` (int32 [B, K]) to `target`, as in `Query.slots`.

        All sources are read before any target is written.
        """
        ...


class Model(NamedTuple):
    """A model as pure functions and static facts; hashable, made once.

    A model that predicts "next" answers a query with the law of the next position; any
    other model with that of the query's own position.
    """

    init_cache: InitCache
    apply: Apply
    encode: Apply  # `apply`, for what is committed to the cache
    head: Callable[[Params], Head]
    move: Move
    vocab_size: int
    mask_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    predicts: str = "next"  # next | masked | uniform (noise) | noised
    attention: str = "causal"  # causal | bidirectional | block_causal
    block_len: int | None = None  # of block_causal attention, or of a canvas
    max_positions: int | None = None
    is_shifted: bool = False  # its answer is read off the position to the left
    taps: tuple[str, ...] = ()  # names in `Output.taps`
    num_calls: int = 1  # target calls that one apply counts for (guidance: 2)
    name: str = "model"
    embedding: Embedding | None = None  # what `Query.extra` is added to, if anything
    slides: bool = False  # some layers see a window: slots must stand at positions
    # (taps) -> this model with those; None: it has what it has.
    tapped: "Callable[[tuple[str, ...]], Model] | None" = None
    # What the last calls told of each slot by their attention: cache -> float32
    # [B, S, C]. None: nothing is told.
    observed: Callable[[Cache], Array] | None = None
    # Sub-models of its first layers on one cache of their own, the last of them all of
    # it. Each goes on where the one before it stopped, in the lanes that this stored.
    exits: tuple["Model", ...] = ()


class Prompt(NamedTuple):
    """A ragged batch. Rows start at index 0; what lies beyond `lengths` is ignored."""

    tokens: Array  # int32 [B, P]
    lengths: Array  # int32 [B]
    row_ids: Array  # int32 [B]  names the row's noise
    max_new_tokens: Array  # int32 [B]
    masked: Array | None = None  # bool [B, P]  holes to fill
    context: Any = None  # whatever the model's init_cache reads, leaves [B, ...]


class Generation(NamedTuple):
    """The result. Row b's generation is tokens[b, start[b] : start[b] + lengths[b]]."""

    tokens: Array  # int32 [B, L]  prompt and generation
    start: Array  # int32 [B]
    lengths: Array  # int32 [B]  tokens before the first EOS and the first one missing
    log_probs: Array  # float32 [B, L]  raw log-probability of each token when committed
    stopped_by: Array  # int32 [B]  index into STOPPED_BY
    committed: Array  # bool [B, L]  generated and decided, holes of the prompt included

    def __repr__(self) -> str:
        return shown.short(self)


class StepInfo(NamedTuple):
    """What one step did to each row; zero for a row that is done."""

    num_calls: Array  # int32 [B]  target calls (NFE)
    num_committed: Array  # int32 [B]
    num_proposed: Array  # int32 [B]  draft nodes, or open positions predicted
    num_revoked: Array  # int32 [B]  remasked positions
    num_query_tokens: Array  # int32 [B]  lanes asked for
    num_query_tokens_computed: Array  # int32 [B]  lanes evaluated, padding included
    num_draft_calls: Array  # int32 [B]  calls of a drafter's own model
    num_draft_tokens: Array  # int32 [B]  its lanes asked for
    num_draft_tokens_computed: Array  # int32 [B]
    num_dispatches: Array  # int32 []  target programs run for the whole batch


class Init(Protocol):
    def __call__(
        self, params: dict[str, Params], keys: Array, prompt: Prompt, /
    ) -> tuple[Any, StepInfo]:
        """The state before the first step, and what the prefill did; keys [B]."""
        ...


class Step(Protocol):
    def __call__(
        self, params: dict[str, Params], keys: Array, state: Any, /
    ) -> tuple[Any, StepInfo]:
        """The state after one turn of the loop; keys [B] are the same every turn."""
        ...


class Decoder(NamedTuple):
    """A decoding algorithm.

    `max_steps` bounds its steps; each hole of a prompt may add one.
    """

    init: Init
    step: Step
    done: Callable[[Any], Array]  # state -> bool [B]
    output: Callable[[Any], Generation]
    max_steps: int
    guarantee: str = "lossy"  # one of GUARANTEES


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
    """What a rule of the masked family sees: one row, and the lanes of one call."""

    tokens: Array  # int32 [L]
    masked: Array  # bool [L]  still open
    generated: Array  # bool [L]  open when decoding began
    prompt_end: Array  # int32 []
    start: Array  # int32 []  first position open when decoding began
    end: Array  # int32 []  one past the last position to fill
    block: Array  # int32 []  index of the block that the leftmost open position is in
    num_initial: Array  # int32 []  open positions of that block when it began
    step: Array  # int32 []  steps taken in that block
    turn: Array  # int32 []  steps taken in all
    positions: Array  # int32 [W]  of the lanes
    block_of: Array  # int32 [W]  index of each lane's block
    open: Array  # bool [W]  masked, in an active block, valid; never a probe
    probe: Array = NOT_ASKED  # bool [W]
    log_probs: Array = NOT_ASKED  # float32 [L]  raw, of each token when committed
    fresh: Array = NOT_ASKED  # bool [L]  filled or changed by the step before
    memory: Any = NOT_ASKED  # of the commit rule, for a window that looks where it says
    observed: Array = NOT_ASKED  # float32 [L, C]  see `Model.observed`; rules: of now


class CommitFn(Protocol):
    def __call__(
        self,
        params: Params,
        key: Array,
        row: Row,
        prediction: Prediction,
        memory: Memory,
        /,
    ) -> tuple[Array, Memory]:
        """Which lanes (bool [W]), and the rule's memory of this row."""
        ...


class Rule(NamedTuple):
    """A commit, remask or edit rule: which lanes to fill, reopen or overwrite."""

    init: Callable[[int], Memory]  # canvas length L -> memory of one row
    apply: CommitFn
    wants: tuple[str, ...] = ()  # leaves of Prediction that `apply` reads
    role: str | None = None  # whose params `apply` gets; None: it gets None
    is_exact: bool = False  # one position a step, in an order blind to the draws
    num_calls: int = 0  # of its role's model, that `apply` makes: told as a drafter's
    # Of a remask rule: what it reopens never uses up what was committed, so that a row
    # gains a position a step and needs no last turn.
    is_bounded: bool = False


class Read(NamedTuple):
    """A one-row function of what a call predicted: when to stop, where to end.

    It sees the lanes of this call only. A `stop` and a `fill` see the row before the
    commit, a `truncate` the row after it: what `row.open` says was open before.
    """

    apply: Callable[[Row, Prediction], Array]
    wants: tuple[str, ...] = ()


class Blocks(NamedTuple):
    """Which positions of a row may be filled now.

    The active block is the one that the leftmost open position is in. `active` may open
    more of them; it must hold that one.
    """

    index: Callable[[Array, Row], Array]  # positions int32 [K] -> block int32 [K]
    active: Callable[[Row], Array]  # -> bool [L]
    first: Callable[[Row], Array]  # -> int32 []  where a call of the block begins
    length: int | None  # positions of the longest block; None: the canvas is one
    is_absolute: bool = False  # counted from position 0, the last block whole
    # Of is_absolute: the canvas is filled to a multiple of it; None: of `length`.
    whole: int | None = None


class CanvasShape(NamedTuple):
    """Static facts of a canvas."""

    length: int  # L
    max_open: int  # positions from the start of any row's first block to its end
    has_holes: bool  # the prompt has holes: what is open may begin anywhere


class Lanes(NamedTuple):
    """What one call evaluates of a row."""

    positions: Array  # int32 [W]
    valid: Array  # bool [W]
    # A probe holds the mask at its position: it is read, never stored or filled. A
    # remask or edit rule that chooses it changes its position.
    probe: Array | None = None  # bool [W]
    among: Array | None = None  # bool [W, W]  lane q sees lane k; None: all but probes


class Window(NamedTuple):
    """The lanes that one call evaluates, chosen row by row; `width` is static."""

    width: int
    apply: Callable[[Row], Lanes]
    # The positions rise by one; a run as wide as the canvas begins at 0.
    is_run: bool = False


class Refresh(NamedTuple):
    """When a call evaluates more than its window, and what it evaluates then.

    Where any row asks, the batch makes the wide call: rows that ask store the lanes of
    `window`, the others those of their own window, which the wide one must hold.
    """

    when: Callable[[Row], Array]  # -> bool []
    # (blocks, shape) -> Window, a run; None: the canvas.
    window: Callable[[Blocks, CanvasShape], Window] | None = None
    has_prefill: bool = False  # the prompt is stored first: its blocks are final
    is_first: bool = False  # of has_prefill: the first call after it may be wide too


class View(NamedTuple):
    """What a lens sees: one position that is predicted, and what it may depend on."""

    tokens: Array  # int32 [L]
    known: Array  # bool [L]  tokens of the context; others are not to be read
    position: Array  # int32 []  the position predicted
    prompt_end: Array  # int32 []


class Lens(NamedTuple):
    """A change of the law before anything is drawn from it or measured on it.

    `apply(params, view, logits [V], memory) -> (logits [V], memory)` works on one
    position, with the memory that it left there (`init()` at first); banned ids have
    logits of -1e30. Memory is kept where the position was open in the call, so that of
    a block begins with the block. It is one entry a position: nothing of size V belongs
    in it. Families that keep no memory a position refuse a lens that has one.
    """

    apply: Callable[[Params, View, Array, Memory], tuple[Array, Memory]]
    init: Callable[[], Memory] = tuple
    role: str | None = None


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
    cost: "DraftCost | None" = None  # None: no model was called for it
    extra: Array | None = None  # [B, N, E]  added to the node's embedding in the call


class DraftCost(NamedTuple):
    """What a draft cost in calls of the drafter's own model."""

    num_calls: Array  # int32 [B]
    num_tokens: Array  # int32 [B]  lanes asked for
    num_tokens_computed: Array  # int32 [B]  padding included


class Round(NamedTuple):
    """What a drafter may learn from one verification."""

    draft: Draft
    output: Output
    prediction: Prediction
    path: Array  # int32 [B, D]  accepted lanes in order, repeating the last
    num_accepted: Array  # int32 [B]
    next_token: Array  # int32 [B]
    prefix: Prefix  # before the round


class DrafterInit(Protocol):
    def __call__(
        self,
        params: dict[str, Params],
        keys: Array,
        prompt: Prompt,
        prefix: Prefix,
        output: Output | None,
        /,
    ) -> Any:
        """The drafter's state; `output` is the target's of the prefill, if any."""
        ...


class Propose(Protocol):
    def __call__(
        self, params: dict[str, Params], keys: Array, state: Any, prefix: Prefix, /
    ) -> tuple[Draft, Any]: ...


class Observe(Protocol):
    def __call__(
        self, params: dict[str, Params], keys: Array, state: Any, round: Round, /
    ) -> Any: ...


class Drafter(NamedTuple):
    """Proposes drafts. Functions get the params of all roles, and choose theirs."""

    num_nodes: int
    max_depth: int
    init: DrafterInit
    propose: Propose
    observe: Observe
    num_probes: int = 0  # last nodes, parent -1, never stored, never accepted
    wants: tuple[str, ...] = ()  # leaves of Prediction that `observe` reads
    num_prefill_calls: int = 0  # of its own model by `init`, over the prompt's text
    num_prefill_left_out: int = 0  # tokens of it that such a call does not evaluate
    # q is told from the target's own states, so under no lens of the target's.
    is_of_target: bool = False
    # Siblings are independent draws from one law. Else q[n] is the law of node n given
    # its elder siblings, and without q the tokens count as given.
    is_iid: bool = False


class DraftLayer(NamedTuple):
    """A small network that continues a target's hidden states, one token a step.

    A lane is a token (`Query.tokens`) and the feature of the position before it
    (`Query.extra`), a target's or one of its own; its answer is the feature of the
    token's position. What it shares with the target it reads from the target's params.
    """

    init_cache: InitCache
    # (params, target's params, query, cache) -> (features [B, Q, E], cache)
    apply: Callable[[Params, Params, Query, Cache], tuple[Array, Cache]]
    # (params, the target's output of a call) -> features [B, Q, E]
    read: Callable[[Params, Output], Array]
    # (params, target's params, features) -> hidden states and the head they are for
    law: Callable[[Params, Params, Array], tuple[Array, Head]]
    width: int  # E
    taps: tuple[str, ...] = ()  # of the target, that `read` needs
    # What it keeps of a prompt in place of a pair a token: (params, target's params,
    # tokens [B, P], features [B, P - 1, E], cache) -> cache; None: the pairs.
    begin: Callable[[Params, Params, Array, Array, Cache], Cache] | None = None
    num_condensed: int = 0  # lanes fewer that `begin` evaluates
    num_ahead: int = 1  # features of an answer, side by side: what comes behind it too
    name: str = "layer"
    # As `law`, of the token after the one that `law` is of; None: it says nothing.
    ahead: Callable[[Params, Params, Array], tuple[Array, Head]] | None = None


class BlockLayer(NamedTuple):
    """A small network that continues a target's hidden states, a block a step.

    Its recurrent part reads a token and the target's feature of the position before it
    (or one of its own) into a stream; the streams of `block_len` = K positions in a row
    are lanes that see each other and what stands before them, and each answers with the
    feature K - 1 positions behind its own. The target's head reads features.
    """

    init_cache: InitCache
    # (params, target's params, tokens int32 [B, Q], features [B, Q, E], memory
    # [B, R, 2, E]) -> (streams [B, Q, E], the memory behind each [B, Q, R, 2, E])
    advance: Callable[[Params, Params, Array, Array, Array], tuple[Array, Array]]
    # (params, query with streams as `extra`, cache) -> (features [B, Q, E], cache)
    apply: Callable[[Params, Query, Cache], tuple[Array, Cache]]
    block_len: int
    num_memories: int  # R
    width: int  # E
    name: str = "block layer"


class PromptTokens(NamedTuple):
    """Trained tokens that stand behind a text and make its target guess ahead.

    Their params are {"change": [K, E]}, what the embeddings of `num_tokens` = K of them
    are more than that of the id `token`, which they are fed as.
    """

    num_tokens: int
    token: int = 0
    name: str = "prompt tokens"


class DraftHeads(NamedTuple):
    """Extra heads on a target's hidden state, none of which sees a drafted token.

    apply(params, hidden [B, E]) -> [B, K, E]: where `hidden` predicts position t + 1,
    row k of the result predicts position t + 2 + k.
    """

    num_heads: int
    apply: Callable[[Params, Array], Array]
    name: str = "heads"
    # (params, the target's head) -> each head's own; None: they share the target's.
    own_heads: Callable[[Params, Head], tuple[Head, ...]] | None = None
    # A layer over the target's states and the tokens behind them, of params "past":
    # its answer at the root is `hidden`, of any width. None: the target's state is.
    past: DraftLayer | None = None


class ChainedHeads(NamedTuple):
    """Extra heads on a target's hidden state that see the tokens drafted before.

    apply(params, target's params, index, hidden [B, Q, E], tokens int32 [B, Q, index +
    1]) -> (hidden [B, Q, E], Head): where `hidden` predicts position t + 1 and `tokens`
    stand at t + 1 .. t + 1 + index, the law of position t + 2 + index.
    """

    num_heads: int
    apply: Callable[[Params, Params, int, Array, Array], tuple[Array, Head]]
    name: str = "chained heads"
    past: DraftLayer | None = None  # as of `DraftHeads`


class DraftModules(NamedTuple):
    """Modules in a row, each of which predicts one token further than the one before.

    Lane t of module `index` (from zero) is the token at t + 1 + index and the state of
    the module before it at t (`Query.extra`), of the target's before the first; its
    answer is its own state at t, of which the law is that of position t + 2 + index.
    """

    num_modules: int
    init_cache: InitCache  # of one module
    # (params, target's params, index, query, cache) -> (states [B, Q, E], cache)
    apply: Callable[[Params, Params, int, Query, Cache], tuple[Array, Cache]]
    # (params, target's params, index, states) -> hidden states and their head
    law: Callable[[Params, Params, int, Array], tuple[Array, Head]]
    width: int  # E
    name: str = "modules"


class Transfer(NamedTuple):
    """Maps that put states of tokens to come into a target's own call.

    apply(params, target's params, query, cache) is the target's call; of a query with
    `among` the lanes that are not stored are pseudo states, of which `num_states` at
    most stand behind a token: what the target says there, if that token were followed
    by what it expects.
    """

    num_states: int
    apply: Callable[[Params, Params, Query, Cache], tuple[Output, Cache]]
    name: str = "transfer"
    # (the target that decodes) -> the same maps in its calls, ValueError for one that
    # they do not fit; None: `apply` is of no model in particular.
    around: "Callable[[Model], Transfer] | None" = None


class Filter(NamedTuple):
    """A small network that says which positions of a block are ready.

    apply(params, confidence [block_length]) -> logits [block_length]; it sees the
    probability of the predicted token at every position, filled ones too.
    """

    block_length: int
    apply: Callable[[Params, Array], Array]
    name: str = "filter"


class Judge(NamedTuple):
    """A small network that says whether what was just written is good.

    apply(params, hidden [N, E]) -> logits [N], of the target's states at drafted
    tokens.
    """

    apply: Callable[[Params, Array], Array]
    name: str = "judge"


class Codes(NamedTuple):
    """Facts of `size` tokens that may stand in for each other, such as a codebook's.

    Params are int32 [V, K], the nearest other tokens of each (`relaxed.nearest`), or
    float [G, V], each token's shares in groups (`relaxed.shares`).
    """

    size: int
    name: str = "codes"


class Background(NamedTuple):
    """How frequent each token is anyway; its params are float32 [V], which sum to 1."""

    vocab_size: int
    name: str = "background"


class Guard(NamedTuple):
    """Watches what a row says so far, one row at a time.

    apply(params, row) -> bool []: end it now. `row` has no lanes.
    """

    apply: Callable[[Params, Row], Array]
    name: str = "guard"


class NodeRule(NamedTuple):
    """Acceptance at one node: children are tried in order.

    apply(p [V], q [C, V], children [C]) -> (accept [C], residual [V]): accept[c] is the
    probability of child c given that the earlier ones were refused, residual the law
    of the next token when all are. Children below zero are absent. With a `role`,
    `apply` gets that role's params as its last argument.
    """

    apply: Callable[..., tuple[Array, Array]]
    max_children: int
    is_lossless: bool = False  # the law of what is emitted is p, whatever q is
    needs: tuple[str, ...] = ()  # of the drafter, see `BlockRule`
    role: str | None = None


class BlockRule(NamedTuple):
    """Acceptance over a whole draft of one row.

    apply(draft, prediction) -> (stop [1 + N], residual [1 + N, V]), both of one row:
    the probability that the accepted path ends at each lane, and the law of the next
    token there. With a `role`, `apply` gets that role's params and the target's hidden
    states [1 + N, E] besides.
    """

    apply: Callable[..., tuple[Array, Array]]
    wants: tuple[str, ...] = ("probs",)
    is_lossless: bool = False
    # What must hold of the drafter: "chain" (one path), "iid" (siblings, if there are
    # any, are independent draws from one law).
    needs: tuple[str, ...] = ()
    role: str | None = None
