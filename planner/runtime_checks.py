"""Whether the runtimes beside ONNX Runtime are here and multiply: rows of `bitfleet doctor`.

None of them is needed to plan or to write a package. What is installed is tried in a fresh process, because a build
that does not fit the machine ends the process that loads it.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from records.child import run_child

SECONDS = 120.0
INSTALLED, MISSING, OTHER, BROKEN = "installed", "missing", "other", "broken"

# 32 ones times 32 weights of 1, each written as its runtime stores one: the sum is 32.
_MLX = """
import mlx.core as mx
codes = mx.full((1, 4), 0x99999999, dtype=mx.uint32)
parts = mx.ones((1, 1)), mx.full((1, 1), -8.0)
print(mx.quantized_matmul(mx.ones((1, 32)), codes, *parts, group_size=32, bits=4).item())
"""


@dataclass(frozen=True)
class Optional:
    """A runtime, or what reads its packages here: the `package` that has to be there, at `least` a version, and the
    `script` that prints what a product is, None for what multiplies by torch. `without` says what goes on without it.
    """

    name: str
    package: str
    extra: str
    least: tuple[int, ...]
    script: str | None
    without: str

    @property
    def fix(self) -> str:
        return f"pip install 'bitfleet[{self.extra}]'"


OPTIONAL = (
    Optional(
        "compressed-tensors", "compressed-tensors", "vllm", (0, 20), None,
        "packages for vLLM are planned and written all the same; transformers reads them with it",
    ),
    Optional(
        "mlx", "mlx", "mlx", (0, 32), _MLX, "packages for MLX are planned and written all the same; mlx-lm runs them",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """`state` is INSTALLED, MISSING, OTHER (another version than needed) or BROKEN."""

    name: str
    state: str
    detail: str
    fix: str | None


def optional(one: Optional) -> Found:
    try:
        version = importlib.metadata.version(one.package)
    except importlib.metadata.PackageNotFoundError:
        return Found(one.name, MISSING, f"not installed; {one.without}", one.fix)
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < one.least:
        needed = ".".join(map(str, one.least))
        return Found(one.name, OTHER, f"{version} is installed, {needed} or newer is needed", one.fix)
    if one.script is None:
        return Found(one.name, INSTALLED, version, None)
    try:
        done = run_child([sys.executable, "-c", one.script], timeout=SECONDS, text=True, errors="replace")
    except subprocess.TimeoutExpired:
        return Found(one.name, BROKEN, f"{version}: a 4-bit product took more than {SECONDS:.0f} s", one.fix)
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no message"]
    if done.returncode != 0:
        return Found(one.name, BROKEN, f"{version}: {said[-1]:.160}", one.fix)
    if said[-1] != "32.0":
        return Found(one.name, BROKEN, f"{version}: a 4-bit product gave {said[-1]:.40}, not 32", one.fix)
    return Found(one.name, INSTALLED, f"{version}, 4-bit products run", None)


def llamacpp() -> Found:
    """The pinned build: another is refused by whatever would run it."""
    from planner.runtimes.llamacpp import fresh
    from planner.runtimes.llamacpp.formats import TYPES
    from planner.runtimes.llamacpp.installed import library
    from planner.runtimes.llamacpp.serving import LIBRARY, VERSION
    from records.errors import InputError, NotInstalledError, SystemFailure

    name, fix = "llama.cpp", "pip install 'bitfleet[llamacpp]'"
    try:
        path = library()
    except NotInstalledError as error:
        try:
            found = importlib.metadata.version(LIBRARY)
        except importlib.metadata.PackageNotFoundError:
            said = "not installed; packages for llama.cpp are planned and written, not run or verified"
            return Found(name, MISSING, said, fix)
        detail = f"{LIBRARY} {found} is installed, {VERSION} is needed" if found != VERSION else f"{error}"
        return Found(name, OTHER, detail, fix)
    case = {"kind": TYPES["Q4_0"].number, "inputs": 256, "outputs": 64, "copies": 1, "rows": [1]}
    timing = {"threads": 1, "tries": 1, "each_s": 0.0, "steady": 1.0, "slow_ms": 1e9}
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        folder = Path(scratch)
        try:
            ((_, _, times),) = fresh.WORKER.ask(
                "products", folder, folder, SECONDS, library=path, cases=[case], **timing
            )  # fmt: skip
        except (InputError, SystemFailure) as error:
            return Found(name, BROKEN, f"{LIBRARY} {VERSION}: {error}", fix)
    return Found(name, INSTALLED, f"{LIBRARY} {VERSION}, 4-bit products run ({1e3 * times[0]:.0f} us)", None)


def check_all() -> Iterator[Found]:
    yield llamacpp()
    yield from map(optional, OPTIONAL)
