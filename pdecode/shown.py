"""Records of arrays on one line: small values as they are, others by type and shape."""

from typing import Any

import numpy as np

MOST = 8  # values that are spelled out


def short(record: Any) -> str:
    """The record's name and fields, as Prompt(lengths=[2, 5], tokens=int32[2,6])."""
    fields = (f"{name}={_value(value)}" for name, value in record._asdict().items())
    return f"{type(record).__name__}({', '.join(fields)})"


def _value(value: Any) -> str:
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return repr(value)
    try:
        is_small = value.size <= MOST
        return str(np.asarray(value).tolist()) if is_small else _shape(value)
    except Exception:  # traced, on other machines, given away: there are no values
        return _shape(value)


def _shape(value: Any) -> str:
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"
