"""Processes that notice at once when one of them is gone.

Left to themselves they would wait in a collective for as long as JAX's heartbeats
allow, and then end in a stack of C++. Here each keeps a connection to process 0, which
the system closes when a process ends, however it ends.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax

from pdecode.sharding import processes

GONE = 3  # exit code of the processes that are left
_BYE, _LOST = b"b", b"l"
# What a process may end with that all of them end with.
_AGREED = (SystemExit, KeyboardInterrupt, ArithmeticError, ValueError)


@contextlib.contextmanager
def watched(advice: str) -> Iterator[None]:
    """While the block runs, the end of one process ends all, with a line that says so.

    `advice` completes "process I is gone: ". Nothing happens with one process.
    """
    if jax.process_count() == 1:
        yield
        return
    lines, leaving = _connect(), threading.Event()
    for index, line in lines.items():
        arguments = (index, line, lines, leaving, advice)
        threading.Thread(target=_listen, args=arguments, daemon=True).start()
    try:
        yield
    except _AGREED:
        _say_bye(lines, leaving)
        raise
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            # A collective fails as soon as its partner is gone: let that be told.
            time.sleep(2.0)
        raise
    else:
        _say_bye(lines, leaving)


def _connect() -> dict[int, socket.socket]:
    """Connections by the process at the other end: process 0 has all, others one."""
    index = jax.process_index()
    if index == 0:
        server = socket.create_server(("", 0))
        processes.shared(server.getsockname()[1])
        found = {}
        for _ in range(jax.process_count() - 1):
            line, _ = server.accept()
            found[int.from_bytes(line.recv(4), "big")] = line
        server.close()
        return found
    port = processes.shared(None)[0]
    line = socket.create_connection((processes.coordinator_host(), port), timeout=60)
    line.settimeout(None)
    line.sendall(index.to_bytes(4, "big"))
    return {0: line}


def _say_bye(lines: dict[int, socket.socket], leaving: threading.Event) -> None:
    leaving.set()
    for line in lines.values():
        with contextlib.suppress(OSError):
            line.sendall(_BYE)


def _listen(index, line, lines, leaving, advice) -> None:
    try:
        word = line.recv(1)
    except OSError:
        word = b""
    if word == _BYE or leaving.is_set():
        return
    if word != _LOST:
        print(f"pdecode: error: process {index} is gone: {advice}", file=sys.stderr)
        sys.stderr.flush()
        for other in lines.values():
            with contextlib.suppress(OSError):
                other.sendall(_LOST)
        if jax.process_index() == 0:
            # Those that lose the service of process 0 first would end in a stack.
            time.sleep(1.0)
    os._exit(GONE)
