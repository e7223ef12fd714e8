"""Which of the tensors that a folder stores stand for which parameters.

What a config.json promises and what the files hold differ in known ways: prefixes come
and go, a head is stored or left out, weights are packed.
"""

import dataclasses
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any

from pdecode.checkpoints import architectures, tensors
from pdecode.checkpoints.names import Source

# Names of the tensors that packed weights come with.
_PACKED = re.compile(
    r"\.(qweight|qzeros|scales|biases|g_idx|SCB|weight_(packed|scale\w*|zero_point)"
    r"|\w+\.(absmax|nested_absmax|quant_map|quant_state.*))$"
)


def refuse_quantised(folder: pathlib.Path, index: Mapping[str, tensors.Entry]) -> None:
    packed = [
        f"{name} {entry.kind}"
        for name, entry in sorted(index.items())
        if _PACKED.search(name)
        or (name.endswith(".weight") and entry.kind not in tensors.FLOATS)
    ]
    if packed:
        raise ValueError(
            f"{folder} is quantised, which is not supported "
            f"({tensors.some(packed, 3)}): use the folder it was made from"
        )


def sources(
    folder: pathlib.Path,
    family: architectures.Family,
    config: Any,
    index: Mapping[str, tensors.Entry],
) -> tuple[Any, dict[str, Source]]:
    """The configuration and sources, where config.json and files disagree on the head.

    A configuration may call the head tied and store it all the same: an equal one is
    dropped, another one is kept, and one in place of the embedding serves as both.
    """
    usual = _resolved(family.names(config), index, family.alias)
    if not (family.is_head_kept and config.tied):
        return config, usual
    untied = dataclasses.replace(config, tied=False)
    others = _resolved(family.names(untied), index, family.alias)
    head = index.get(others["head"].names[0])
    embed = index.get(usual["embed"].names[0])
    if head is None:
        return config, usual
    if embed is None:
        return config, usual | {"embed": others["head"]}
    if tensors.are_equal(head, embed):
        return config, usual
    warnings.warn(
        f"{folder}: config.json calls the head the embedding, but the files have "
        f"another {others['head'].names[0]}, which is used",
        stacklevel=2,
    )
    return untied, others


def _resolved(
    sources: dict[str, Source],
    index: Mapping[str, Any],
    alias: tuple[str, str] | None,
) -> dict[str, Source]:
    """Sources by the names the files use: prefixes come and go between versions."""

    def resolve(name: str) -> str:
        spellings = [name, name.partition(".")[2]]
        if alias is not None:
            spellings.append(name.replace(*alias))
            spellings.append(name.replace(*alias[::-1]))
        return next((each for each in spellings if each in index), name)

    return {
        path: source._replace(names=tuple(map(resolve, source.names)))
        for path, source in sources.items()
    }
