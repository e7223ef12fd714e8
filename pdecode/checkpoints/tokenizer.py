"""Text to ids and back, from the files of a checkpoint folder.

`tokenizer.json` is read by the `tokenizers` library, chat templates are rendered in a
jinja2 sandbox. A folder without them still decodes: ids in, ids out.
"""

import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

# What looks like a special token: <|name|>, as nearly all models spell them.
_SPECIAL = re.compile(r"<\|[^|<>\s]+\|>")


class Tokenizer(NamedTuple):
    """A loaded tokenizer. Ids are None where the checkpoint names no such token."""

    backend: Any  # tokenizers.Tokenizer
    vocab_size: int
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    mask_id: int | None = None
    template: str | None = None  # jinja2 source
    tokens: Mapping[str, str] = {}  # bos_token, eos_token ... as templates name them

    def encode(self, text: str, *, bos: bool = True, eos: bool = False) -> list[int]:
        """Ids of `text`; `bos` adds what the tokenizer itself puts around a text.

        Raises ValueError for a special token, <|like this|>, that it does not know.
        """
        unknown = sorted(
            token
            for token in set(_SPECIAL.findall(text))
            if self.backend.token_to_id(token) is None
        )
        if unknown:
            known = sorted(
                token.content
                for token in self.backend.get_added_tokens_decoder().values()
            )
            raise ValueError(
                f"unknown special token {', '.join(unknown)}; known: "
                f"{', '.join(known) or 'none'}"
            )
        ids = list(self.backend.encode(text, add_special_tokens=bos).ids)
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
        if self.template is None:
            raise ValueError("this checkpoint has no chat template: pass plain text")
        return _render(self.template, messages, {**self.tokens, **variables})


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
            f"{self.folder} has no tokenizer.json: give the prompt as token ids"
        )

    def chat(self, messages, **variables) -> list[int]:
        del variables
        return self.encode(str(messages))

    def decode(self, ids: Iterable[int]) -> str:
        """The ids themselves, separated by spaces."""
        return " ".join(str(int(i)) for i in ids)


def load(folder: str | os.PathLike) -> Tokenizer | IdsOnly:
    """The tokenizer of a checkpoint folder, or `IdsOnly`.

    Raises ValueError if tokenizer.json is damaged.
    """
    folder = pathlib.Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        return IdsOnly(str(folder))
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is damaged: {error}") from None
    settings = _settings(folder)
    tokens = {
        name: _content(settings[name])
        for name in ("bos_token", "eos_token", "pad_token", "mask_token", "unk_token")
        if settings.get(name) is not None
    }

    def place(name: str) -> int | None:
        return backend.token_to_id(tokens[name]) if name in tokens else None

    return Tokenizer(
        backend=backend,
        vocab_size=backend.get_vocab_size(),
        bos_id=place("bos_token"),
        eos_id=place("eos_token"),
        pad_id=place("pad_token"),
        mask_id=place("mask_token"),
        template=_template(folder, settings),
        tokens=tokens,
    )


def mask_id(folder: str | os.PathLike) -> int | None:
    """The mask token's id as the tokenizer files give it, without loading them all."""
    settings = _settings(pathlib.Path(folder))
    mask = settings.get("mask_token")
    if mask is None:
        return None
    for place, token in settings.get("added_tokens_decoder", {}).items():
        if token.get("content") == _content(mask):
            return int(place)
    return None


def _settings(folder: pathlib.Path) -> dict:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    return settings


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token.get("content", "")


def _template(folder: pathlib.Path, settings: dict) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        by_name = {entry["name"]: entry["template"] for entry in template}
        return by_name.get("default")
    return template


def _render(template: str, messages, variables: Mapping[str, Any]) -> str:
    """A chat template comes with the checkpoint, so it runs in a sandbox."""
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    def refuse(message: str):
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    try:
        made = environment.from_string(template, globals={"raise_exception": refuse})
        return made.render(
            messages=list(messages), add_generation_prompt=True, **variables
        )
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template refused: {error}") from None
