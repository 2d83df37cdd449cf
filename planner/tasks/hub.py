"""Whether the data of lm-eval's own tasks can be fetched here; where not, nothing is waited for."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from threading import Thread
from urllib.parse import urlparse

FILES = (".yaml", ".yml")  # of tasks
OFFLINE, ENDPOINT = "HF_HUB_OFFLINE", "HF_ENDPOINT"
HUB = "https://huggingface.co"
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
SECONDS = 2.0


def go_offline(tasks: Sequence[str]) -> None:
    """Tell Hugging Face's libraries, which read it when they are imported, that there is no network where the hub has
    no address: they would ask six times. What was fetched before is found all the same. Files of one's own are not
    asked for."""
    if all(name.endswith(FILES) for name in tasks) or any(os.environ.get(name) for name in PROXIES):
        return
    if not _resolves(os.environ.get(ENDPOINT, HUB)):
        os.environ.setdefault(OFFLINE, "1")


def _resolves(address: str) -> bool:
    found: list[bool] = []

    def ask() -> None:
        try:
            socket.getaddrinfo(urlparse(address).hostname, 443)
        except OSError:
            return
        found.append(True)

    thread = Thread(target=ask, daemon=True)  # a name server may take longer to give up
    thread.start()
    thread.join(SECONDS)
    return bool(found)
