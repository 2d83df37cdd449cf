"""Profiles of common servers and consumer PCs, from their makers' datasheets: one JSON file a device.

Nothing in them was measured by bitfleet, so a plan for one says that its latency is an estimate.
"""

from __future__ import annotations

import json
from importlib.resources import files

from profiles.device import DeviceProfile
from records.errors import InputError


def names() -> tuple[str, ...]:
    """Every device in the catalogue, sorted."""
    entries = (entry.name for entry in files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in entries if name.endswith(".json")))


def load(name: str) -> DeviceProfile:
    """The device called `name`; InputError that lists the nearest names where there is none."""
    known = names()
    if name not in known:
        import difflib

        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "`bitfleet profile list` shows the names"
        raise InputError(f"no device is called {name!r} in the catalogue; {hint}")
    text = (files(__name__) / f"{name}.json").read_text(encoding="utf-8")
    return DeviceProfile.from_json(json.loads(text))
