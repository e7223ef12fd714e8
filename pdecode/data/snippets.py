"""Held-out Python text for evaluation, the same on every machine.

Twelve files of CPython 3.11.7's standard library, embedded with their licence; the
training corpus leaves them out by name in every Python version.
"""

import importlib.resources
from typing import NamedTuple

from pdecode.data import corpus


class Snippet(NamedTuple):
    """A prompt and the text that follows it in its source."""

    name: str  # file and index of the document, "textwrap.py:4"
    prompt: str  # ends with a newline
    reference: str  # the rest of the document, not empty


def documents() -> dict[str, list[str]]:
    """Held-out documents by file name, as `corpus.documents` cuts them."""
    folder = importlib.resources.files("pdecode.data") / "heldout"
    texts = {}
    for name in corpus.HELDOUT_PATHS:
        source = folder / name.replace(".py", ".txt")
        texts[name] = corpus.documents(source.read_text(encoding="utf-8"))
    return texts


def text() -> list[bytes]:
    """All held-out documents in UTF-8, for bits per byte; about 117 kilobytes."""
    found = documents().values()
    return [document.encode() for chunks in found for document in chunks]


def prompts(
    num: int, *, min_prompt: int = 96, max_prompt: int = 256, min_reference: int = 96
) -> list[Snippet]:
    """The first `num` prompts in a fixed order that alternates between the files.

    A prompt is the start of a document up to the last line boundary within
    `max_prompt` bytes. Documents without a boundary that leaves at least `min_prompt`
    bytes before it and `min_reference` after it give none. The same arguments give the
    same prompts, and more prompts begin with the fewer ones.

    Raises:
      ValueError: more prompts than the held-out text has.
    """
    queues = []
    for name, chunks in documents().items():
        found = []
        for index, chunk in enumerate(chunks):
            raw = chunk.encode()
            limit = min(max_prompt, len(raw) - min_reference)
            cut = raw.rfind(b"\n", 0, max(limit, 0)) + 1
            if cut >= min_prompt:
                prompt, reference = raw[:cut].decode(), raw[cut:].decode()
                found.append(Snippet(f"{name}:{index}", prompt, reference))
        queues.append(found)
    longest = max(map(len, queues))
    ordered = [found[i] for i in range(longest) for found in queues if i < len(found)]
    if not 0 <= num <= len(ordered):
        raise ValueError(f"num={num} prompts asked for; there are {len(ordered)}")
    return ordered[:num]
