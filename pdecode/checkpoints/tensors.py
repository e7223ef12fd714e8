"""safetensors files, one tensor or a part of one at a time.

The format is eight bytes of header length, a JSON header, then raw little-endian data.
Reading by plain file reads instead of a memory map keeps a process's resident memory at
what it asked for: a mapped file counts in full once its pages were touched.
"""

import json
import math
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from pdecode import files

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
        "C64": np.complex64,
    }.items()
}
FLOATS = ("F64", "F32", "F16", "BF16")  # what weights that are not quantised come in
_NAMES = {kind: name for name, kind in DTYPES.items()}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Entry(NamedTuple):
    """Where a tensor lies."""

    file: pathlib.Path
    offset: int  # bytes from the start of the file
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def kind(self) -> str:
        """The file's name of its dtype, as F32."""
        return _NAMES[self.dtype]


def index(folder: str | os.PathLike, stem: str = "model") -> dict[str, Entry]:
    """Every tensor of a checkpoint folder, by name.

    Reads `stem`.safetensors, or the shards that `stem`.safetensors.index.json lists, or
    else all *.safetensors there are. Headers only: no tensor is read.

    Raises:
      ValueError: no folder, no safetensors (pickled formats are refused because loading
        them runs code), a shard that is missing, truncated or still downloading, a
        tensor the index promises and no shard has.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    unfinished = [
        path.name
        for pattern in ("*.incomplete", "*.part", "*.crdownload", "*.tmp")
        for path in folder.glob(pattern)
    ]
    listing = folder / f"{stem}.safetensors.index.json"
    if (folder / f"{stem}.safetensors").is_file():
        return read_header(folder / f"{stem}.safetensors")
    if not listing.is_file():
        shards = sorted(folder.glob("*.safetensors"))
        if not shards:
            raise ValueError(_nothing_to_read(folder, unfinished))
        tensors: dict[str, Entry] = {}
        for shard in shards:
            _merge(tensors, read_header(shard))
        return tensors
    try:
        promised = json.loads(listing.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(promised.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{listing} is damaged: {error!r}") from None
    if outside := [name for name in names if pathlib.Path(name).name != name]:
        raise ValueError(f"{listing} names files elsewhere: {some(outside)}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        hint = f" (unfinished: {', '.join(unfinished)})" if unfinished else ""
        raise ValueError(
            f"{folder} is a partial download: {len(missing)} of {len(names)} shards "
            f"are missing: {some(missing)}{hint}"
        )
    tensors, spare = {}, {}
    # One file may lie over another: the listing says whose tensor counts.
    for name in names:
        header = read_header(folder / name)
        known = [key for key in header if promised.get(key, name) != name]
        late = {key: header.pop(key) for key in known}
        _merge(tensors, header)
        spare |= {key: entry for key, entry in late.items() if key not in spare}
    tensors |= {key: entry for key, entry in spare.items() if key not in tensors}
    absent = sorted(set(promised) - set(tensors))
    if absent:
        raise ValueError(
            f"{listing.name} promises tensors that no shard has: {some(absent)}"
        )
    return tensors


def read_header(path: str | os.PathLike) -> dict[str, Entry]:
    """Every tensor of one file, by name. Raises ValueError if the file is damaged."""
    path = pathlib.Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            raise ValueError(
                f"{path} is truncated or no safetensors file: {size} bytes do not hold "
                "its header"
            )
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            unknown = {str(fields["dtype"]) for fields in header.values()} - set(DTYPES)
            tensors = {
                name: _entry(path, 8 + length, name, fields)
                for name, fields in header.items()
                if not unknown
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} has a damaged header: {error}") from None
    if unknown:
        raise ValueError(
            f"{path} has tensors of dtype {', '.join(sorted(unknown))}: quantised "
            "checkpoints are not supported"
        )
    end = max((entry.offset + _bytes(entry) for entry in tensors.values()), default=0)
    if end > size:
        raise ValueError(
            f"{path} is truncated: its tensors end at byte {end}, the file at {size}"
        )
    return tensors


def read(entry: Entry, rows: slice = slice(None)) -> np.ndarray:
    """A tensor, or `rows` of its first axis, as a fresh array in its own dtype."""
    if not entry.shape:
        rows = slice(None)
        start, count, shape = 0, 1, ()
    else:
        start, stop, _ = rows.indices(entry.shape[0])
        shape = (max(stop - start, 0), *entry.shape[1:])
        count = math.prod(shape)
    row = math.prod(entry.shape[1:]) * entry.dtype.itemsize
    with open(entry.file, "rb") as file:
        file.seek(entry.offset + start * row)
        flat = np.fromfile(file, entry.dtype, count)
    if flat.size != count:
        raise ValueError(f"{entry.file} is truncated: it ended inside a tensor")
    return flat.reshape(shape)


def are_equal(one: Entry, other: Entry, num_bytes: int = 1 << 26) -> bool:
    """Whether two tensors hold the same numbers; reads both, a part at a time."""
    if one.shape != other.shape:
        return False
    row = max(1, math.prod(one.shape[1:]) * max(one.dtype.itemsize, 1))
    step = max(1, num_bytes // row)
    parts = (slice(start, start + step) for start in range(0, one.shape[0], step))

    def numbers(entry: Entry, part: slice) -> np.ndarray:
        return read(entry, part).astype(np.float32)

    return all(
        np.array_equal(numbers(one, part), numbers(other, part)) for part in parts
    )


def write(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """One safetensors file, whole or not at all. Values may be made lazily."""
    header, offset = {}, 0
    if metadata:
        header["__metadata__"] = dict(metadata)
    for name, value in tensors.items():
        if value.dtype not in _NAMES:
            raise ValueError(f"{name} has dtype {value.dtype}, which has no name there")
        end = offset + value.size * value.dtype.itemsize
        header[name] = {
            "dtype": _NAMES[np.dtype(value.dtype)],
            "shape": list(value.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    blob = json.dumps(header).encode()
    blob += b" " * (-len(blob) % 8)
    with files.replacing(path) as file:
        file.write(struct.pack("<Q", len(blob)) + blob)
        for value in tensors.values():
            np.ascontiguousarray(np.asarray(value)).tofile(file)


def _entry(path: pathlib.Path, base: int, name: str, fields: dict) -> Entry:
    first, last = fields["data_offsets"]
    shape = tuple(fields["shape"])
    entry = Entry(path, base + first, shape, DTYPES[fields["dtype"]])
    if last - first != _bytes(entry):
        raise ValueError(f"{name} has {last - first} bytes for shape {shape}")
    return entry


def _bytes(entry: Entry) -> int:
    return math.prod(entry.shape) * entry.dtype.itemsize


def _merge(tensors: dict[str, Entry], more: dict[str, Entry]) -> None:
    twice = sorted(set(tensors) & set(more))
    if twice:
        raise ValueError(f"tensors in more than one file: {some(twice)}")
    tensors.update(more)


def _nothing_to_read(folder: pathlib.Path, unfinished: list[str]) -> str:
    pickled = [path.name for path in sorted(folder.iterdir()) if _is_pickle(path)]
    if pickled:
        return (
            f"{folder} has no safetensors, only {some(pickled)}: pickled checkpoints "
            "are refused because loading one runs code from it; convert it to "
            "safetensors where you trust it"
        )
    if unfinished:
        return f"{folder} is a partial download: {', '.join(unfinished)}"
    return f"{folder} has no *.safetensors file"


def _is_pickle(path: pathlib.Path) -> bool:
    return path.suffix in _PICKLES and path.name != "training_args.bin"


def some(names: list[str], limit: int = 8) -> str:
    """The first few of `names`, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
