"""A signal stops what runs, once, and never in the middle of what must be whole."""

from __future__ import annotations

import os
import signal

import pytest

from records.errors import Terminated
from records.signals import asked_to_stop, stoppable, unbroken


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated), (signal.SIGHUP, Terminated)],
)
def test_a_signal_is_raised_once_while_its_work_is_saved(
    number: int, kind: type[BaseException], request: pytest.FixtureRequest
) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:  # these tests run under nohup
        request.addfinalizer(lambda: signal.signal(number, signal.SIG_IGN))
        signal.signal(number, signal.SIG_DFL)
    before, saved = signal.getsignal(number), False
    with pytest.raises(kind) as raised, stoppable():
        try:
            send(number)
        finally:
            send(signal.SIGTERM)  # as `timeout` does: to the process and to its group
            send(signal.SIGINT)
            saved = True
    assert type(raised.value) is kind
    assert saved
    assert signal.getsignal(number) is before


def test_what_is_undone_further_out_is_not_broken_either() -> None:
    undone: list[str] = []
    with pytest.raises(Terminated), stoppable():
        try:
            with stoppable():
                send(signal.SIGTERM)
        finally:
            send(signal.SIGTERM)
            assert asked_to_stop() is not None
            undone.append("outer")
    assert undone and asked_to_stop() is None
    with pytest.raises(KeyboardInterrupt), stoppable():
        send(signal.SIGINT)  # another time it is heeded at once


def test_what_must_be_whole_is_finished_first() -> None:
    done: list[str] = []
    with pytest.raises(Terminated), stoppable():
        with unbroken():
            with unbroken():
                send(signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        done.append("never")
    assert done == ["inner", "outer"]


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_a_library_made_of_a_signal_is_still_known() -> None:
    with pytest.raises(ValueError, match="shape"), stoppable():
        assert asked_to_stop() is None
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt:
            assert isinstance(asked_to_stop(), Terminated)
            raise ValueError("could not determine the shape") from None
    assert asked_to_stop() is None
