"""A package of a supernet, evaluated as its runtime loads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from commands.names import runtime_named
from commands.terminal import note
from commands.waiting import progress
from records.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from planner.package import Package
    from planner.runtimes.engine import Speaker
    from supernet.checkpoint import SupernetFiles
    from supernet.quality import Quality
    from supernet.reference import Reference


@dataclass(frozen=True)
class Packaged:
    """A whole package that may be loaded, and what tells what it says."""

    package: Package
    speaker: Speaker

    @property
    def name(self) -> str:
        return f"{self.package.path.name} in {self.package.plan.runtime}"

    @property
    def context(self) -> int:
        return self.package.plan.workload.context

    def quality(self, text: str, reference: Reference) -> Quality:
        """What it loses on a text."""
        import torch

        from supernet.evaluate import evaluate_said

        def says(windows: Tensor) -> Tensor:
            return torch.from_numpy(self.speaker.logits(windows.numpy()).copy())

        length = reference.windows.shape[1]
        if length > self.context:
            raise InputError(
                f"windows must fit the package's context of {self.context} tokens, those of {text} have {length}; "
                f"give --text FILE --window-tokens {self.context}"
            )
        note(f"asking {self.name} what it says of {text}")
        with progress() as report:
            return evaluate_said(says, reference, report)


def packaged(path: Path, files: SupernetFiles) -> Packaged:
    """The package at `path` where it was made from these files; InputError where it was not, or where nothing here runs
    it."""
    from planner.package import open_package

    package = open_package(path)
    runtime = runtime_named(package.plan.runtime)
    if package.plan.opened(files).fingerprint != package.plan.fingerprint:
        raise InputError(f"a package must be of the supernet that it is compared in, {path} was made from another one")
    package.check(runtime)
    engine = runtime.engine()
    if engine is None:
        raise InputError(f"bitfleet runs no {runtime.name} package; evaluate the plan with --subnet PLAN instead")
    return Packaged(package, engine.speaker(package.path))
