"""Prompts with an answer: completing an identifier that was written before.

Each prompt is held-out Python code that ends three letters into an identifier; the
same identifier stands whole earlier in the prompt, and no other identifier there starts
with these letters. The text that really follows is kept as the reference.
"""

import keyword
import re
from typing import NamedTuple

from pdecode.data import snippets

TASK = "copied identifier"
NUM_SHOWN = 3  # letters of the identifier that the prompt ends with
_IDENTIFIER = re.compile(r"\b[A-Za-z_][A-Za-z0-9_]{5,}")
_MIN_PROMPT = 48


class Completion(NamedTuple):
    """A prompt, the rest of its identifier, and the source's own continuation."""

    name: str  # file, document, and offset of the cut in it: "csv.py:4@310"
    prompt: str
    answer: str
    reference: str  # begins with the answer


def completions(num: int, *, max_prompt: int, min_reference: int) -> list[Completion]:
    """The first `num` in a fixed order that alternates between files and documents.

    Prompts have at most `max_prompt` characters and begin at a line; references have
    at least `min_reference`. Raises ValueError if there are not so many.
    """
    queues = []
    for name, documents in snippets.documents().items():
        for index, text in enumerate(documents):
            found = _cuts(f"{name}:{index}", text, max_prompt, min_reference)
            if found:
                queues.append(found)
    # First one of each document, the files in turn, then the next of each.
    by_file: dict[str, int] = {}
    order = []
    for queue in queues:
        file = queue[0].name.split(":")[0]
        by_file[file] = by_file.get(file, -1) + 1
        order.append((by_file[file], queue))
    queues = [queue for _, queue in sorted(order, key=lambda pair: pair[0])]
    longest = max(map(len, queues), default=0)
    ordered = [queue[i] for i in range(longest) for queue in queues if i < len(queue)]
    if not 1 <= num <= len(ordered):
        raise ValueError(f"num_prompts={num} must lie in [1, {len(ordered)}]")
    return ordered[:num]


def is_completed(answer: str, generated: str) -> bool:
    """Whether `generated` begins with `answer` and the identifier ends there."""
    after = generated[len(answer) : len(answer) + 1]
    return generated.startswith(answer) and not (after.isalnum() or after == "_")


def _cuts(name: str, text: str, max_prompt: int, min_reference: int):
    """Completions of one document that do not overlap in their prompts."""
    found, free_from = [], 0
    if not text.isascii():
        return found
    for match in _IDENTIFIER.finditer(text):
        word, cut = match.group(), match.start() + NUM_SHOWN
        if cut - free_from < _MIN_PROMPT or len(text) - cut < min_reference:
            continue
        begin = max(cut - max_prompt, 0)
        if begin:
            begin = text.find("\n", begin, cut) + 1 or cut
        before = text[begin : match.start()]
        alike = {
            other
            for other in re.findall(r"\b[A-Za-z_][A-Za-z0-9_]*", before)
            if other.startswith(word[:NUM_SHOWN])
        }
        if alike != {word} or keyword.iskeyword(word) or cut - begin < _MIN_PROMPT:
            continue
        found.append(
            Completion(
                name=f"{name}@{cut}",
                prompt=text[begin:cut],
                answer=word[NUM_SHOWN:],
                reference=text[cut:],
            )
        )
        free_from = cut
    return found
