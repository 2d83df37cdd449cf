"""A fleet: 100 devices planned at once, an export that is killed, made anew elsewhere and by another user, and deltas.

    python benchmarks/fleet.py [--supernet DIR] [--seed 0]

Everything is done by the commands, each in a process of its own, imports included, by predicted losses. The hundred
are the catalogue's CPU devices with budgets as people write them; then each of them twice, which must not take twice as
long. The export is for six devices; twice it gets a SIGKILL at a random moment, and is started again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from claims import Claim, finish, table

from commands import names
from profiles.catalog import load
from profiles.catalog import names as catalogue

ROOT = Path(__file__).resolve().parent.parent
CPUS = [name for name in catalogue() if load(name).kind == "cpu"]
MEMORIES = {512: ("230MB", "240MB", "256MB", "300MB", "400MB", "512MB", "1GB"), 2048: ("320MB", "512MB")}
DEVICES = 100
LATENCIES = {"raspberry-pi-5-8gb": "10ms"}  # of every third device; 5ms of the others, which binds the slower ones
DEFAULTS = '[defaults]\nruntime = "onnxruntime"\n'
SIX = f"""\
{DEFAULTS}context = 512
[[device]]
name = "kiosk"
device = "raspberry-pi-5-8gb"
mem = "230MB"
[[device]]
name = "classroom"
device = "laptop-i5-1240p-8gb"
mem = "240MB"
[[device]]
name = "handheld"
device = "steam-deck-16gb"
mem = "268MB"
[[device]]
name = "tablet"
device = "macbook-air-m2-8gb"
mem = "268MB"
[[device]]
name = "desk"
device = "desktop-ryzen-5600-16gb"
mem = "290MB"
[[device]]
name = "server"
device = "graviton3-128gb"
mem = "400MB"
"""
KILLS, NOBODY = 2, 65534
EPOCH = "1700000000"  # the one date in a package


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--supernet", help="a folder that `bitfleet train` made; the default is the embedded model's")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    arguments = parser.parse_args()
    files = names.trained_supernet(arguments.supernet) if arguments.supernet else names.default_supernet()
    with tempfile.TemporaryDirectory(prefix="bitfleet-fleet-") as folder:
        work = Path(folder)
        work.chmod(0o755)
        planned = hundred(work, files.path)
        killed = kills(work, files.path, random.Random(arguments.seed))
        again = elsewhere(work, files.path)
        changed = deltas(work)
    rows = [
        (f"{DEVICES} devices, {planned['problems']} problems", f"{planned['seconds']:.1f} s"),
        ("each of them twice", f"{planned['twice_seconds']:.1f} s"),
        (f"packages of {planned['served']} devices", planned["packages"]),
        ("export for six devices", f"{killed['seconds']:.0f} s"),
        *((f"  killed after {after:.1f} s, packages there", there) for after, there in killed["kills"]),
        ("delta to the next budget, tensors", f"{changed['tensors']} of {changed['of']}"),
        ("  of units that differ", f"{changed['units']} of {changed['of_units']}"),
        ("  bytes, of the package", f"{changed['bytes'] / changed['package_bytes']:.0%}"),
    ]
    table(("", ""), rows)
    print(f"as another user: {again['user']}\n")
    claims = [
        Claim(f"seconds to plan {DEVICES} devices on cached numbers", planned["seconds"], 60),
        Claim("times as long for each of them twice", planned["twice_seconds"] / planned["seconds"], 1.3),
        Claim("packages for them", planned["packages"], 12),
        Claim("loss over a device's own best, worst", planned["worst"], 0.05),
        Claim("share by which fewer packages might do", planned["gap"], 0),
        Claim(f"files that differ after {KILLS} kills", killed["different"], 0),
        Claim("files that differ when made elsewhere", again["different"], 0),
        Claim("tensors in a delta of units that do not differ", changed["stray"], 0),
        Claim("files that differ after a delta was applied", changed["different"], 0),
    ]
    finish(__file__, claims, planned=planned, killed=killed, elsewhere=again, delta=changed, seed=arguments.seed)


# --- many devices -------------------------------------------------------------------------------------------------


def hundred(work: Path, supernet: Path) -> dict[str, Any]:
    """How long a hundred devices take, and each of them twice."""
    asked = [(n, context, memory) for context, memories in MEMORIES.items() for memory in memories for n in CPUS]
    devices = random.Random(0).sample(asked, DEVICES)
    tables = []
    for number, (name, context, memory) in enumerate(devices):
        latency = LATENCIES.get(name, "5ms") if number % 3 == 0 else None
        tables.append(_device(f"d{number}", name, memory, context, latency))
    fleet = work / "hundred.toml"
    fleet.write_text("\n".join([DEFAULTS, *tables]))
    seconds, made = _planned(fleet, supernet)
    twice = work / "twice.toml"
    twice.write_text("\n".join([DEFAULTS, *tables, *(text.replace('name = "d', 'name = "again-') for text in tables)]))
    twice_seconds, made_twice = _planned(twice, supernet)
    assert made_twice["problems"] == made["problems"]
    served = [device for device in made["devices"] if device["refused"] == ""]
    return {
        "devices": len(devices),
        "served": len(served),
        "problems": made["problems"],
        "packages": len(made["packages"]),
        "gap": made["gap"],
        "worst": max(device["kl"] / device["best_kl"] - 1 for device in served),
        "seconds": seconds,
        "twice_seconds": twice_seconds,
    }


def _device(name: str, device: str, memory: str, context: int, latency: str | None) -> str:
    limit = "" if latency is None else f'latency = "{latency}"\n'
    return f'[[device]]\nname = "{name}"\ndevice = "{device}"\nmem = "{memory}"\ncontext = {context}\n{limit}'


def _planned(fleet: Path, supernet: Path) -> tuple[float, Any]:
    started = time.perf_counter()
    done = subprocess.run(
        [*COMMAND, "fleet", str(fleet), "--supernet", str(supernet), "--predict", "--json"],
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 3):
        sys.exit(done.stderr)
    return seconds, json.loads(done.stdout)


# --- exports ------------------------------------------------------------------------------------------------------

COMMAND = (sys.executable, str(ROOT / "cli.py"))


class Export:
    """One export for the six devices into `dist`, begun."""

    def __init__(self, supernet: Path, folder: Path, dist: Path, environment: dict[str, str], *prefix: str) -> None:
        fleet, self.log = folder / "six.toml", folder / "log"
        fleet.write_text(SIX)
        line = [*prefix, *COMMAND, "fleet", str(fleet), "--supernet", str(supernet), "--predict", "--export", str(dist)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                line, stdout=log, stderr=log, cwd=folder, env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH, **environment}
            )

    def wait_for(self, what: str) -> None:
        while what not in self.log.read_text() and self.process.poll() is None:
            time.sleep(0.01)

    def end(self) -> None:
        if self.process.wait() != 0:
            sys.exit(self.log.read_text())


def kills(work: Path, supernet: Path, moments: random.Random) -> dict[str, Any]:
    """What differs between an export that went through and one that was killed on its way."""
    export = Export(supernet, work, work / "whole", {})
    export.wait_for("exporting, ")
    began = time.perf_counter()
    export.end()
    seconds = time.perf_counter() - began
    found = []
    for _ in range(KILLS):
        export = Export(supernet, work, work / "killed", {})
        export.wait_for("exporting, ")
        after = moments.uniform(0, 0.6 * seconds)
        time.sleep(after)
        export.process.send_signal(signal.SIGKILL)
        export.process.wait()
        found.append((after, len(list((work / "killed").glob("*/manifest.json")))))
    Export(supernet, work, work / "killed", {}).end()
    return {"seconds": seconds, "kills": found, "different": len(different(work / "whole", work / "killed"))}


def elsewhere(work: Path, supernet: Path) -> dict[str, Any]:
    """What differs when another user makes the same from a copy in another folder, with nothing in any cache."""
    place = work / "elsewhere"
    shutil.copytree(supernet, place / "net", ignore=shutil.ignore_patterns("cache"))
    fresh = {}
    for name in ("HOME", "TMPDIR", "BITFLEET_CACHE"):
        (place / name).mkdir()
        fresh[name] = str(place / name)
    prefix, user = _another_user(place)
    Export(place / "net", place, place / "dist", fresh, *prefix).end()
    return {"different": len(different(work / "whole", place / "dist")), "user": user}


def _another_user(place: Path) -> tuple[tuple[str, ...], str]:
    """What to begin a line with for another user, who gets `place`, and which; or why it is this one."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return (), "no, that needs root and setpriv"
    prefix = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    starts = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)"
    child = [*prefix, sys.executable, "-c", starts, str(ROOT / "cli.py"), "--version"]  # a search starts processes, too
    try:
        done = subprocess.run(child, capture_output=True, text=True, cwd="/")
    except OSError:
        done = None
    if done is None or done.returncode != 0:
        return (), "no, another user may not read this interpreter or checkout"
    for path in (place, *place.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    return prefix, "yes"


def different(one: Path, other: Path) -> list[str]:
    """Files that only one of two folders has, or that have other bytes: packages, index, checksums and page."""
    first, second = ({str(p.relative_to(f)): p for p in f.rglob("*") if p.is_file()} for f in (one, other))
    both = first.keys() & second.keys()
    return sorted((first.keys() ^ second.keys()) | {n for n in both if first[n].read_bytes() != second[n].read_bytes()})


# --- deltas -------------------------------------------------------------------------------------------------------


def deltas(work: Path) -> dict[str, Any]:
    """From each package to the next larger one: what is carried, and whether it makes the package."""
    index = json.loads((work / "whole" / "index.json").read_text())
    packages = sorted(index["packages"], key=lambda package: package["disk_bytes"])
    total = dict.fromkeys(("tensors", "of", "units", "of_units", "stray", "bytes", "package_bytes", "different"), 0)
    for number, (old, new) in enumerate(zip(packages, packages[1:], strict=False)):
        first, second = (work / "whole" / package["name"] for package in (old, new))
        delta, made = work / f"delta{number}", work / f"made{number}"
        said = json.loads(_run("delta", str(first), str(second), "--out", str(delta), "--json"))
        _run("apply", str(first), str(delta), "--out", str(made))
        before, after = _units(first), _units(second)
        differ = {_place(unit) for unit in after if before[unit] != after[unit]}
        total["tensors"] += len(said["changed"])
        total["of"] += said["tensors"]
        total["units"] += sum(before[unit] != after[unit] for unit in after)
        total["of_units"] += len(after)
        total["stray"] += sum(_place(tensor) not in differ for tensor in said["changed"])
        total["bytes"] += said["delta_bytes"]
        total["package_bytes"] += said["package_bytes"]
        total["different"] += len(different(second, made))
    return total


def _units(package: Path) -> dict[str, str]:
    manifest = json.loads((package / "manifest.json").read_text())
    return dict(manifest["plan"]["compared"][0]["subnet"])


def _place(name: str) -> tuple[int, str]:
    """The layer and the role of a unit or a tensor, by its name; -1 for tables, which are one where they are tied."""
    layer = re.search(r"layers\.(\d+)\.", name)
    if layer is None:
        return -1, "table"
    role = next(role for part, role in ROLES.items() if part in name)
    return int(layer[1]), role


ROLES = {
    "qkv": "qkv", "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "o_proj": "o", "gate": "gate_up",
    "up_proj": "gate_up", "down_proj": "down",
}  # fmt: skip


def _run(*arguments: str) -> str:
    return subprocess.run([*COMMAND, *arguments], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
