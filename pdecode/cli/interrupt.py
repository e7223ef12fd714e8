"""Ctrl-C while the compiler or a compiled program runs."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

INTERRUPTED = 130


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Inside, Ctrl-C ends the process then and there, with one line.

    Python would hear of it only when the compiler or the program returns, and would
    then take down threads that still compile. For commands that have nothing to save.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hear, tell = socket.socketpair()
    tell.setblocking(False)
    # The signal is written there at once, whatever the main thread is doing.
    former = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    handler = signal.signal(signal.SIGINT, lambda *_: None)
    listener = threading.Thread(target=_listen, args=(hear,), daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.set_wakeup_fd(former)
        tell.close()
        listener.join()
        hear.close()


def leave() -> None:
    """Ends the process without waiting for any thread; what was printed is kept."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(INTERRUPTED)


def _listen(hear: socket.socket) -> None:
    while heard := hear.recv(1):
        if heard[0] == signal.SIGINT:
            if sys.stderr.isatty():
                sys.stderr.write("\x1b[?25h\n")  # a live display had hidden the cursor
            sys.stderr.write("pdecode: interrupted\n")
            leave()
