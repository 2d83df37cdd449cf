"""Being asked to stop: SIGTERM and SIGHUP are treated as Ctrl-C is, so that what was done is kept."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from records.errors import Terminated

# After a signal further ones are ignored for so long: whoever saves is let finish, and `timeout` sends two at once.
CALM_S = 10.0

_whole = 0  # how many `unbroken` are around
_waiting: list[BaseException] = []
_asked: list[KeyboardInterrupt] = []
_depth = 0  # how many `stoppable` are around
_last = float("-inf")  # when one of them heeded a signal


def asked_to_stop() -> KeyboardInterrupt | None:
    """What a signal raised within `stoppable`. A library may have turned it into an error of its own."""
    return _asked[-1] if _asked else None


@contextmanager
def unbroken() -> Iterator[None]:
    """What happens within happens whole: a signal that `stoppable` heeds is raised at its end."""
    global _whole
    _whole += 1
    try:
        yield
    finally:
        _whole -= 1
    if _waiting and not _whole:
        raise _waiting.pop()


@contextmanager
def stoppable() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise `Terminated` and SIGINT KeyboardInterrupt, once, however many are around.

    Signals that were ignored stay ignored: those of a background job, or under nohup. Outside the main thread nothing
    changes, since Python handles signals there alone.
    """
    global _depth, _last
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        global _last
        now = time.monotonic()
        if now - _last < CALM_S:
            return
        _last = now
        stop = KeyboardInterrupt() if number == signal.SIGINT else Terminated()
        _asked.append(stop)
        if not _whole:
            raise stop
        _waiting.append(stop)

    wanted = [number for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None)) if number]
    before = {number: signal.getsignal(number) for number in wanted}
    heeded = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in heeded:
        signal.signal(number, handle)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if not _depth:
            _last = float("-inf")
            _waiting.clear()
            _asked.clear()
        for number, old in heeded.items():
            signal.signal(number, old)
