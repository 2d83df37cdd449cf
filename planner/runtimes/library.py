"""Whether a library that runs or reads a runtime's packages is here and multiplies.

None is needed to plan or to write a package. What is installed is tried in a fresh process, because a build that does
not fit the machine ends the process that loads it.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from dataclasses import dataclass

from planner.checks import FAIL, PASS, WARN, Check
from records.child import run_child

SECONDS = 120.0


@dataclass(frozen=True)
class Library:
    """The `package` that has to be there, at `least` a version, and the `script` that prints what 32 ones times 32
    weights of 1 are, None for what multiplies by torch. `without` says what goes on without it.
    """

    package: str
    extra: str
    least: tuple[int, ...]
    script: str | None
    without: str

    @property
    def fix(self) -> str:
        return f"pip install 'bitfleet[{self.extra}]'"

    def check(self) -> Check:
        """One that is missing is a matter of taste; one that is there must work."""
        try:
            version = importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return Check(self.package, PASS, f"not installed; {self.without} ({self.fix})")
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if numbers < self.least:
            needed = ".".join(map(str, self.least))
            return Check(self.package, WARN, f"{version} is installed, {needed} or newer is needed", self.fix)
        if self.script is None:
            return Check(self.package, PASS, version)
        wrong = self._wrong(self.script)
        if wrong is not None:
            return Check(self.package, FAIL, f"{version}: {wrong}", self.fix)
        return Check(self.package, PASS, f"{version}, 4-bit products run")

    def _wrong(self, script: str) -> str | None:
        try:
            done = run_child([sys.executable, "-c", script], timeout=SECONDS, text=True, errors="replace")
        except subprocess.TimeoutExpired:
            return f"a 4-bit product took more than {SECONDS:.0f} s"
        said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no message"]
        if done.returncode != 0:
            return f"{said[-1]:.160}"
        return None if said[-1] == "32.0" else f"a 4-bit product gave {said[-1]:.40}, not 32"
