"""Where processes meet before JAX connects them, so that a missing one is named.

JAX waits in silence and aborts the process when its time is up. Process 0 opens the
coordinator's port first, the others knock and say who they are, and all are let go to
JAX, which opens the same port, when everyone is there.
"""

import json
import select
import socket
import time
from collections.abc import Callable

__all__ = ["join", "receive"]

TOLD_EVERY_S = 10.0
ASK_S = 5.0  # for one connection, or one line of one


def receive(
    coordinator: str,
    port: int,
    num_processes: int,
    patience_s: float,
    tell: Callable[[str], None],
) -> None:
    """Process 0: returns when every other process has joined.

    `tell` is given a line each `TOLD_EVERY_S` seconds with who is missing. Raises
    ValueError for a port that cannot be opened, and when `patience_s` are over.
    """
    until = _Clock(patience_s, tell)
    here: dict[int, socket.socket] = {}
    try:
        with _listening(coordinator, port) as door:
            while True:
                _forget_gone(here)
                if len(here) == num_processes - 1:
                    break
                missing = [i for i in range(1, num_processes) if i not in here]
                who = ", ".join(map(str, missing[:8])) + ", ..." * (len(missing) > 8)
                what = f"process {who} of {num_processes} at {coordinator}"
                if not until.goes_on(f"waiting for {what}"):
                    raise ValueError(
                        f"{what} did not come in {patience_s:.0f} s: start it with "
                        f"--coordinator {coordinator} --num-processes {num_processes} "
                        f"--process-id {missing[0]}, and let the port be reached"
                    )
                _greet(door, here, num_processes)
        for each in here.values():
            _say(each, {"go": True})
    finally:
        for each in here.values():
            each.close()


def join(
    coordinator: str,
    host: str,
    port: int,
    num_processes: int,
    process_id: int,
    patience_s: float,
    tell: Callable[[str], None],
) -> None:
    """Another process: returns when process 0 says that all are there.

    Raises ValueError if process 0 refuses this one, or is not there in `patience_s`.
    """
    until = _Clock(patience_s, tell)
    mine = {"process_id": process_id, "num_processes": num_processes}
    why: object = "no answer"
    while until.goes_on(f"waiting for process 0 of {num_processes} at {coordinator}"):
        try:
            with socket.create_connection((host, port), timeout=ASK_S) as knocked:
                _say(knocked, mine)
                knocked.settimeout(max(until.left(), ASK_S))
                answer = _heard(knocked)
        except (OSError, ValueError) as error:
            why = error
            time.sleep(min(0.2, max(until.left(), 0.0)))
            continue
        if answer.get("go"):
            return
        raise ValueError(f"process 0 at {coordinator} says: {answer.get('refused')}")
    raise ValueError(
        f"coordinator={coordinator!r} did not answer in {patience_s:.0f} s "
        f"({why}): start process 0 there, and let its port be reached"
    )


class _Clock:
    """Says when time is up, and a line now and then until it is."""

    def __init__(self, patience_s: float, tell: Callable[[str], None]):
        self.until = time.monotonic() + patience_s
        self.next_line = time.monotonic() + 1.0  # quick starts need no line
        self.tell = tell

    def left(self) -> float:
        return self.until - time.monotonic()

    def goes_on(self, line: str) -> bool:
        if time.monotonic() >= self.next_line:
            self.tell(f"{line} ({max(self.left(), 0):.0f} s more)")
            self.next_line = time.monotonic() + TOLD_EVERY_S
        return self.left() > 0


def _listening(coordinator: str, port: int) -> socket.socket:
    door = socket.socket()
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("", port))
        door.listen(64)
    except OSError as error:
        door.close()
        raise ValueError(
            f"coordinator={coordinator!r}: process 0 cannot open port {port} "
            f"({error}): choose a free one"
        ) from None
    door.settimeout(0.2)
    return door


def _greet(door: socket.socket, here: dict[int, socket.socket], count: int) -> None:
    """Takes in one process, if one knocks; what is no process of ours is sent away."""
    try:
        knocked, _ = door.accept()
    except TimeoutError:
        return
    knocked.settimeout(ASK_S)
    try:
        said = _heard(knocked)
    except (OSError, ValueError):
        knocked.close()
        return
    name, its_count = said.get("process_id"), said.get("num_processes")
    refused = f"process_id={name!r} is none of {count} processes"
    if its_count != count:
        refused = f"there are {count} processes here, but {its_count} in process {name}"
    elif name in (0, *here):
        refused = f"process {name} of {count} is here already: choose another id"
    elif isinstance(name, int) and 0 < name < count:
        here[name] = knocked
        return
    _say(knocked, {"refused": refused})
    knocked.close()


def _forget_gone(here: dict[int, socket.socket]) -> None:
    """Who waits says nothing: one that can be read has hung up, and may come again."""
    gone = select.select(list(here.values()), [], [], 0)[0]
    for name in [name for name, each in here.items() if each in gone]:
        here.pop(name).close()


def _say(to: socket.socket, what: dict) -> None:
    to.sendall(json.dumps(what).encode() + b"\n")


def _heard(of: socket.socket) -> dict:
    """One line, as JSON; ValueError for anything else."""
    line = b""
    while not line.endswith(b"\n"):
        part = of.recv(512)
        if not part or len(line) > 4096:
            raise ValueError("no line came")
        line += part
    said = json.loads(line)
    if not isinstance(said, dict):
        raise ValueError("not an answer of process 0")
    return said
