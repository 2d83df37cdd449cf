"""Child processes that never outlive who started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from records.signals import stoppable, unbroken

TIDY_S = 10.0
"""A child that is asked to end has so long to remove what it had half written."""
STOPPED = 143
"""The exit code of a child that was asked to end, as a shell has it of one that SIGTERM ended."""
ASK_AGAIN_S = 0.5
"""A signal that comes just before a call that waits, or to another thread, does not end the waiting; the next does."""


def run_child(command: Sequence[str], input: Any = None, timeout: float | None = None, **options: Any) -> Any:
    """As `subprocess.run` with its output captured; a signal that comes while the child is being started waits until
    it is known, so that it can be ended. subprocess.TimeoutExpired as there."""
    stdin = subprocess.PIPE if input is not None else None
    process: subprocess.Popen[Any] | None = None
    try:
        with unbroken():
            process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        stdout, stderr = process.communicate(input, timeout)
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def child_lines(command: Sequence[str], **options: Any) -> Generator[str, None, int]:
    """Each line that a child prints, as it prints it; the generator's value is its exit code. The child is ended where
    the reader stops early."""
    process: subprocess.Popen[Any] | None = None
    try:
        with unbroken():
            process = subprocess.Popen(command, stdout=subprocess.PIPE, **options)
        assert process.stdout is not None
        while line := process.stdout.readline():  # `yield from` would close it where the reader stops
            yield line
        return process.wait()
    finally:
        if process is not None:
            if process.poll() is None:
                process.kill()
            process.communicate()


@contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of `count` processes, started anew: those of a fork would share the threads of solvers.

    Where the block is left by an error or a signal, and where this process is killed, they are sent SIGTERM; what they
    do then within `stoppable` is undone as it is here. Ctrl-C reaches this process alone.
    """
    pool = _Pool(count, multiprocessing.get_context("spawn"), initializer=_follow_parent)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        _end(multiprocessing.active_children())
        raise
    finally:
        pool.shutdown()


@contextmanager
def beside(calls: Sequence[Sequence[Any]]) -> Iterator[list[BaseProcess]]:
    """A process for each of `calls`, a function and what it is given, started anew; the block ends when all have.

    They may end before, and nobody minds how. Where the block is left by an error or a signal, and where this process
    is killed, they are sent SIGTERM, which raises in them as it does in this one. Ctrl-C reaches this process alone.
    """
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_heeding, args=tuple(each)) for each in calls]
    try:
        for child in children:
            with _starting():
                child.start()
        yield list(children)
        for child in children:
            child.join()
    except BaseException:
        _end([child for child in children if child.pid is not None])
        raise


def _heeding(call: Callable[..., None], *given: Any) -> None:
    _follow_parent()
    try:
        with stoppable():
            call(*given)
    except KeyboardInterrupt:
        sys.exit(STOPPED)


class _Pool(ProcessPoolExecutor):
    def submit(self, call: Callable[..., Any], /, *given: Any, **options: Any) -> Future[Any]:
        with _starting():  # processes do here
            return super().submit(call, *given, **options)


@contextmanager
def _starting() -> Iterator[None]:
    """A signal that comes while processes start waits until they are known, and SIGINT, which a terminal sends to all
    of a group, they never see."""
    with unbroken():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(children: Sequence[BaseProcess]) -> None:
    running, deadline = {child.sentinel: child for child in children}, time.monotonic() + TIDY_S
    while running and time.monotonic() < deadline:
        for child in running.values():
            child.terminate()
        for ended in wait(list(running), ASK_AGAIN_S):
            del running[ended]  # type: ignore[arg-type]
    for child in running.values():
        child.kill()


def _follow_parent() -> None:
    """End with the parent, also where it was killed: a pool's processes would wait for more forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        deadline = time.monotonic() + TIDY_S
        while time.monotonic() < deadline:  # `stoppable` heeds the first, and once it is left one ends the process
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
