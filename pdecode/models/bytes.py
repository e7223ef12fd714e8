"""Bytes as tokens: the ids 0..255 are bytes, four special ids come after them.

Every string has an encoding and every id sequence a decoding: special ids decode to
nothing and bytes that are no UTF-8 to the replacement character.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

PAD_ID = 256
BOS_ID = 257
EOS_ID = 258
MASK_ID = 259
VOCAB_SIZE = 260  # 256 bytes, then pad, bos, eos and mask


class ByteTokenizer(NamedTuple):
    """The byte tokenizer as a record; the fields are the ids models are built with."""

    vocab_size: int = VOCAB_SIZE
    pad_id: int = PAD_ID
    bos_id: int = BOS_ID
    eos_id: int = EOS_ID
    mask_id: int = MASK_ID

    def encode(self, text: str, *, bos: bool = True, eos: bool = False) -> list[int]:
        """Ids of a string's UTF-8 bytes, after `bos` and before `eos` if asked for.

        Total: lone surrogates, which UTF-8 cannot hold, become "?".
        """
        ids = list(text.encode("utf-8", errors="replace"))
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def decode(self, ids: Iterable[int]) -> str:
        """The string of the byte ids, in order; ids above 255 are dropped.

        Total: bytes that are no UTF-8 become the replacement character. Raises
        ValueError only for a negative id, which is no token.
        """
        ids = [int(i) for i in np.asarray(list(ids), dtype=np.int64).ravel()]
        if ids and min(ids) < 0:
            raise ValueError(f"token ids must be >= 0, but got {min(ids)}")
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


tokenizer = ByteTokenizer()
