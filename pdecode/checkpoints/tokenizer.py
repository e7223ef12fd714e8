"""Text to ids and back, from the files of a checkpoint folder.

`tokenizer.json` is read by the `tokenizers` library, or one is built from vocab.json
and merges.txt. A folder without them still decodes: ids in, ids out. What the special
tokens are stands in up to four files, which are read as transformers reads them.
"""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pdecode import files
from pdecode.checkpoints import chat

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
          "mask_token")  # fmt: skip
_MORE = ("additional_special_tokens", "extra_special_tokens")
# What a class of tokenizers calls its tokens where the files do not say.
_OF_CLASS = {
    "GPT2Tokenizer": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "Qwen2Tokenizer": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
}
# The class where only the model's type is named.
_OF_MODEL = {
    "gpt2": "GPT2Tokenizer",
    **dict.fromkeys(("qwen2", "qwen3", "qwen3_moe", "dream"), "Qwen2Tokenizer"),
}
# How Qwen2Tokenizer, and Dream's, cut a text before they merge bytes.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer(NamedTuple):
    """A loaded tokenizer. Ids are None where the checkpoint names no such token."""

    backend: Any  # tokenizers.Tokenizer
    vocab_size: int
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    mask_id: int | None = None
    templates: Mapping[str, str] = {}  # jinja2 sources by name, see `chat`
    tokens: Mapping[str, str] = {}  # bos_token, eos_token ... as templates name them

    def encode(self, text: str, *, bos: bool = True, eos: bool = False) -> list[int]:
        """Ids of `text`; `bos` adds what the tokenizer itself puts around a text.

        A text that begins with the BOS token, as one that a template rendered, gets no
        second one.
        """
        ids = list(self.backend.encode(text, add_special_tokens=bos).ids)
        if self.bos_id is not None and ids[:2] == [self.bos_id] * 2:
            ids = ids[1:]
        return ids + [self.eos_id] * (eos and self.eos_id is not None)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without special tokens."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], **variables: Any
    ) -> list[int]:
        """Ids of a conversation, ready for the model's reply.

        `messages` are {"role": ..., "content": ...}; `variables` reach the template.
        Raises ValueError if there is no chat template or it refuses the messages.
        """
        return self.encode(self.render(messages, **variables), bos=False)

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The text that `chat` encodes."""
        return chat.render(self.templates, messages, self.tokens, variables)


class IdsOnly(NamedTuple):
    """Stands in for the tokenizer of a folder that has none."""

    folder: str
    vocab_size: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    mask_id: int | None = None

    def encode(self, text: str, *, bos: bool = True, eos: bool = False) -> list[int]:
        del text, bos, eos
        raise ValueError(
            f"{self.folder} has no tokenizer.json: give the prompt as token ids (or "
            "add it, or vocab.json and merges.txt)"
        )

    def chat(self, messages, **variables) -> list[int]:
        del variables
        return self.encode(str(messages))

    def decode(self, ids: Iterable[int]) -> str:
        """The ids themselves, separated by spaces."""
        return " ".join(str(int(i)) for i in ids)


def load(folder: str | os.PathLike) -> Tokenizer | IdsOnly:
    """The tokenizer of a checkpoint folder, or `IdsOnly`.

    Raises ValueError if one of its files is damaged.
    """
    folder = pathlib.Path(folder)
    whole = folder / "tokenizer.json"
    if not whole.is_file() and not _has_merges(folder):
        return IdsOnly(str(folder))
    import tokenizers

    settings = _settings(folder)
    try:
        if whole.is_file():
            backend = tokenizers.Tokenizer.from_file(str(whole))
        else:
            backend = _built(folder, settings)
    except Exception as error:  # the library raises bare Exception
        file = whole if whole.is_file() else folder / "vocab.json"
        raise ValueError(f"{file} is damaged: {error}") from None
    # Settings of a training run, which would cut a prompt or lengthen it.
    backend.no_truncation()
    backend.no_padding()
    tokens = _tokens(settings)
    _add(backend, folder, settings, tokens)
    if not whole.is_file() and settings.get("add_bos_token") and "bos_token" in tokens:
        bos = tokens["bos_token"]
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )

    def place(name: str) -> int | None:
        return backend.token_to_id(tokens[name]) if name in tokens else None

    return Tokenizer(
        backend=backend,
        vocab_size=backend.get_vocab_size(),
        bos_id=place("bos_token"),
        eos_id=place("eos_token"),
        pad_id=place("pad_token"),
        mask_id=place("mask_token"),
        templates=chat.templates(folder, settings),
        tokens=tokens,
    )


def mask_id(folder: str | os.PathLike) -> int | None:
    """The mask token's id as the tokenizer files give it, loading few of them."""
    folder = pathlib.Path(folder)
    settings = _settings(folder)
    mask = settings.get("mask_token")
    if mask is None:
        return None
    for place, token in settings.get("added_tokens_decoder", {}).items():
        if _content(token) == _content(mask):
            return int(place)
    return load(folder).mask_id


def _settings(folder: pathlib.Path) -> dict:
    """tokenizer_config.json; older folders spread it over further files.

    Its own list of added tokens says that it is whole. Without one,
    special_tokens_map.json counts, and added_tokens.json has the ids. The class is
    always in it: config.json may name it, or its model's.
    """
    settings = files.read_object(folder / "tokenizer_config.json")
    config = files.read_object(folder / "config.json")
    kind = settings.get("tokenizer_class") or config.get("tokenizer_class")
    kind = kind or _OF_MODEL.get(str(config.get("model_type")).lower(), "")
    settings["tokenizer_class"] = str(kind).removesuffix("Fast")
    if "added_tokens_decoder" in settings:
        return settings
    more = files.read_object(folder / "special_tokens_map.json")
    return {**settings, **{k: v for k, v in more.items() if v is not None}}


def _tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by the names that templates use; null is none."""
    known = {**_OF_CLASS.get(settings["tokenizer_class"], {}), **settings}
    return {
        name: _content(value)
        for name, value in known.items()
        if name in _NAMES or name.endswith("_token")
        if isinstance(value, str) or (isinstance(value, dict) and "content" in value)
    }


def _add(backend, folder: pathlib.Path, settings, tokens: Mapping[str, str]) -> None:
    """Tokens that stand in other files than the backend's, each once, ids in order."""
    from tokenizers import AddedToken

    listed = settings.get("added_tokens_decoder")
    if listed is None:
        added = files.read_object(folder / "added_tokens.json")
        listed = {place: token for token, place in added.items()}
    special = set(tokens.values()) | {
        _content(token) for name in _MORE for token in (settings.get(name) or ())
    }
    known = {each.content for each in backend.get_added_tokens_decoder().values()}
    for _, token in sorted(listed.items(), key=lambda item: int(item[0])):
        content = _content(token)
        if content in known:
            continue
        facts = dict(token) if isinstance(token, dict) else {}
        facts = {
            name: bool(facts[name])
            for name in ("lstrip", "rstrip", "normalized", "single_word")
            if name in facts
        }
        is_special = content in special or (
            isinstance(token, dict) and bool(token.get("special"))
        )
        facts.setdefault("normalized", not is_special)
        backend.add_tokens([AddedToken(content, special=is_special, **facts)])
        known.add(content)
    for content in sorted(special - known):
        # What only its class names may be in no vocabulary.
        is_named = (
            content not in _OF_CLASS.get(settings["tokenizer_class"], {}).values()
        )
        if is_named or backend.token_to_id(content) is not None:
            backend.add_special_tokens([AddedToken(content, normalized=False)])


def _has_merges(folder: pathlib.Path) -> bool:
    return (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()


def _built(folder: pathlib.Path, settings: Mapping[str, Any]):
    """A byte-level BPE, as GPT-2's, or as Qwen 2's by the class the settings name."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    backend = Tokenizer(BPE.from_file(*files))
    backend.decoder = decoders.ByteLevel()
    is_spaced = bool(settings.get("add_prefix_space", False))
    if settings["tokenizer_class"] == "GPT2Tokenizer":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=is_spaced)
        return backend
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=is_spaced, use_regex=False),
        ]
    )
    return backend


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token.get("content", "")
