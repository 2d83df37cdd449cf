"""Where the platform keeps what can be made again."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """This machine's profile, the default supernet, and what cannot be kept beside a supernet that may only be read.

    BITFLEET_CACHE overrides it.
    """
    chosen = os.environ.get("BITFLEET_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "bitfleet"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitfleet"
