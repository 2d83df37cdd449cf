"""Whether the pinned build of llama.cpp is here. Nothing of it is loaded."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from planner.runtimes.llamacpp.serving import LIBRARY, VERSION
from records.errors import NotInstalledError

SUFFIXES = (".so", ".pyd", ".dylib")


def check_installed() -> None:
    """NotInstalledError, with what to install, where the build is missing or another one."""
    remedy = "run: pip install 'bitfleet[llamacpp]'"
    if find_spec(LIBRARY) is None:
        raise NotInstalledError(f"the llamacpp runtime needs {LIBRARY}; {remedy}")
    if (found := metadata.version(LIBRARY)) != VERSION:
        raise NotInstalledError(f"the llamacpp runtime needs {LIBRARY} {VERSION}, {found} is installed; {remedy}")


def library() -> str:
    """Path of the shared object of the installed build."""
    check_installed()
    spec = find_spec(LIBRARY)
    folders = spec.submodule_search_locations if spec else None
    for path in sorted(Path(next(iter(folders or ["."]))).iterdir()):
        if path.name.startswith(f"{LIBRARY}.") and path.suffix in SUFFIXES:
            return str(path)
    raise NotInstalledError(f"{LIBRARY} {VERSION} has no shared object here; install it again")
