"""Whether the hub is asked at all."""

from __future__ import annotations

import os
import time

import pytest

from planner.tasks import hub


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (hub.OFFLINE, hub.ENDPOINT, *hub.PROXIES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(hub.OFFLINE, "")  # so that what is set is taken back
    del os.environ[hub.OFFLINE]


def test_a_hub_without_an_address_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hub.ENDPOINT, "https://hub.invalid")
    hub.go_offline(["arc_easy"])
    assert os.environ[hub.OFFLINE] == "1"


def test_for_files_alone_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *asked: pytest.fail("asked"))
    hub.go_offline(["a.yaml", "b/c.yml"])
    assert hub.OFFLINE not in os.environ


def test_a_name_server_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SECONDS", 0.05)
    monkeypatch.setattr("socket.getaddrinfo", lambda *asked: time.sleep(60))
    started = time.perf_counter()
    hub.go_offline(["arc_easy"])
    assert os.environ[hub.OFFLINE] == "1" and time.perf_counter() - started < 30


@pytest.mark.parametrize(("name", "value"), [(hub.ENDPOINT, "http://localhost:1"), ("HTTPS_PROXY", "http://p.invalid")])
def test_a_mirror_that_has_one_and_a_proxy_are_asked(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    hub.go_offline(["arc_easy"])
    assert hub.OFFLINE not in os.environ
