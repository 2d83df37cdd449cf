"""Whether ONNX Runtime is here. Nothing of it is loaded."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec

from records.errors import NotInstalledError

PACKAGES = ("onnxruntime", "onnxruntime-genai", "onnx")


def check_installed() -> None:
    """NotInstalledError, with what to install, where one of the packages is missing."""
    missing = [name for name in sorted(PACKAGES) if find_spec(name.replace("-", "_")) is None]
    if missing:
        raise NotInstalledError(
            f"the onnxruntime runtime needs {', '.join(missing)}; run: pip install {' '.join(missing)}"
        )


def versions() -> dict[str, str]:
    """Of the packages, by name; NotInstalledError as above."""
    check_installed()
    return {name: metadata.version(name) for name in PACKAGES}
