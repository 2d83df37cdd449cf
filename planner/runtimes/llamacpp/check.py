"""Whether the pinned build of llama.cpp is here and multiplies; another is refused by whatever would run it."""

from __future__ import annotations

import importlib.metadata
import tempfile
from pathlib import Path

from planner.checks import FAIL, PASS, WARN, Check
from planner.runtimes.llamacpp import fresh
from planner.runtimes.llamacpp.formats import TYPES
from planner.runtimes.llamacpp.installed import library
from planner.runtimes.llamacpp.serving import LIBRARY, VERSION
from records.errors import InputError, NotInstalledError, SystemFailure

NAME, FIX = "llama.cpp", "pip install 'bitfleet[llamacpp]'"
SECONDS = 120.0


def check() -> Check:
    try:
        path = library()
    except NotInstalledError as error:
        return _without(error)
    case = {"kind": TYPES["Q4_0"].number, "inputs": 256, "outputs": 64, "copies": 1, "rows": [1], "evicted": 0}
    timing = {"threads": 1, "tries": 1, "each_s": 0.0, "steady": 1.0, "slow_ms": 1e9}
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        folder = Path(scratch)
        try:
            ((_, _, times),) = fresh.WORKER.ask(
                "products", folder, folder, SECONDS, library=path, cases=[case], **timing
            )  # fmt: skip
        except (InputError, SystemFailure) as error:
            return Check(NAME, FAIL, f"{LIBRARY} {VERSION}: {error}", FIX)
    return Check(NAME, PASS, f"{LIBRARY} {VERSION}, 4-bit products run ({1e3 * times[0]:.0f} us)")


def _without(error: NotInstalledError) -> Check:
    try:
        found = importlib.metadata.version(LIBRARY)
    except importlib.metadata.PackageNotFoundError:
        said = "not installed; packages for llama.cpp are planned and written, not run or verified"
        return Check(NAME, PASS, f"{said} ({FIX})")
    detail = f"{LIBRARY} {found} is installed, {VERSION} is needed" if found != VERSION else f"{error}"
    return Check(NAME, WARN, detail, FIX)
