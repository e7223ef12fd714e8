"""What an error says about a name it does not know."""

import difflib
from collections.abc import Iterable


def listed(name: object, known: Iterable[str]) -> str:
    """The known names, after the one that is spelled most like `name`, if any is."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}known: {', '.join(known)}"
