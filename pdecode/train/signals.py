"""SIGTERM and Ctrl-C while a run goes on: the first one asks, the second one ends."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Interrupted(KeyboardInterrupt):
    """A run that stopped because it was asked to, with its state saved."""


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """A list that names the first signal once it has come.

    A second signal ends the process at once. Only the main thread can watch; in any
    other, signals do what they did before.
    """
    came: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def handle(number, frame):
        del frame
        if came:
            # Whatever the main thread waits in, it would not come back soon.
            os._exit(128 + number)
        came.append(_NAMES[number])

    before = {number: signal.signal(number, handle) for number in _NAMES}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
