"""What an error says about a name it does not know."""

import difflib
from collections.abc import Iterable


def listed(name: object, known: Iterable[str]) -> str:
    """The known names, after the one that is spelled most like `name`, if any is."""
    known = list(known)
    hint = near(name, known).removeprefix("; ")
    return f"{hint}{' ' * bool(hint)}known: {', '.join(known)}"


def near(name: object, known: Iterable[str]) -> str:
    """ "; did you mean that?", or nothing."""
    found = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""
