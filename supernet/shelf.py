"""What waits while a supernet is prepared, by name: in memory, or where that is short on disk.

A shelf on disk outlives its process: what is there when a run starts again need not be made again, and every file of it
is whole. Its codes are read from the file whenever they are computed with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from records.atomic import write_json
from records.reading import read_value
from supernet.files import open_tensors, read_tensors, write_tensors
from supernet.grids import GRIDS, QuantizedWeight
from supernet.mapped import MappedTensors
from supernet.space import Choice, SearchSpace
from supernet.spec import ModelSpec

AGAIN = "again"  # how the labels of codes begin that took the place of others
Solved = dict[Choice, QuantizedWeight]


class Shelf(ABC):
    streams = False
    """Whether what is here is elsewhere than in memory."""

    @abstractmethod
    def has(self, name: str) -> bool: ...

    @abstractmethod
    def put(self, name: str, tensors: Sequence[Tensor]) -> None: ...

    @abstractmethod
    def get(self, name: str) -> list[Tensor]: ...

    @abstractmethod
    def take(self, name: str) -> list[Tensor]:
        """`get` for the last time of this run."""

    @abstractmethod
    def drop(self, name: str) -> None:
        """Nobody will ask for it again, and no run that goes on; it need not be there."""

    @abstractmethod
    def keep(self, label: str, solved: Mapping[str, Solved]) -> dict[str, Solved]:
        """Codes by linear, as they wait here."""

    @abstractmethod
    def known(self, spec: ModelSpec, space: SearchSpace) -> dict[str, Solved]:
        """The codes that a run before left, by linear; those apart that took the place of others."""

    @abstractmethod
    def note(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, a JSON value, or gave a run before."""


class InMemory(Shelf):
    def __init__(self) -> None:
        self.held: dict[str, Sequence[Tensor]] = {}

    def has(self, name: str) -> bool:
        return name in self.held

    def put(self, name: str, tensors: Sequence[Tensor]) -> None:
        self.held[name] = tensors

    def get(self, name: str) -> list[Tensor]:
        return list(self.held[name])

    def take(self, name: str) -> list[Tensor]:
        return list(self.held.pop(name))

    def drop(self, name: str) -> None:
        self.held.pop(name, None)

    def keep(self, label: str, solved: Mapping[str, Solved]) -> dict[str, Solved]:
        return dict(solved)

    def known(self, spec: ModelSpec, space: SearchSpace) -> dict[str, Solved]:
        return {}

    def note(self, name: str, make: Callable[[], Any]) -> Any:
        return make()


class OnDisk(Shelf):
    """A folder: `NAME.safetensors`, `codes-LABEL.safetensors`, `NAME.json`, and files of what stays."""

    streams = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def has(self, name: str) -> bool:
        return self._file(name).exists()

    def put(self, name: str, tensors: Sequence[Tensor]) -> None:
        write_tensors(self._file(name), {f"{number:06}": tensor for number, tensor in enumerate(tensors)})

    def get(self, name: str) -> list[Tensor]:
        tensors, _ = read_tensors(self._file(name))
        return [tensors[number] for number in sorted(tensors)]

    def take(self, name: str) -> list[Tensor]:
        return self.get(name)

    def drop(self, name: str) -> None:
        self._file(name).unlink(missing_ok=True)

    def keep(self, label: str, solved: Mapping[str, Solved]) -> dict[str, Solved]:
        path = self._file(f"codes-{label}")
        write_tensors(path, code_tensors(solved))
        file = MappedTensors(path)
        return {
            name: {choice: _read(file, name, choice, weight.in_features) for choice, weight in choices.items()}
            for name, choices in solved.items()
        }

    def known(self, spec: ModelSpec, space: SearchSpace) -> dict[str, Solved]:
        widths = {lin.name: (unit.name, lin.in_features) for unit in spec.units for lin in unit.linears}
        found: dict[str, Solved] = {}
        for path in sorted(self.folder.glob("codes-*.safetensors")):
            if path.name.startswith(f"codes-{AGAIN}-"):
                continue
            open_tensors(path)  # says in one line what is damaged
            file = MappedTensors(path)
            for name in dict.fromkeys(key.split("|")[0] for key in file.header):
                unit, in_features = widths[name]
                found[name] = {choice: _read(file, name, choice, in_features) for choice in space.whole[unit]}
        return found

    def note(self, name: str, make: Callable[[], Any]) -> Any:
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_json(path, make())
        return read_value(path, "note of a start", "start again with a new --out")

    def file(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of the file `name`: those that `make` gives, or gave a run before."""
        if not (self.folder / name).exists():
            write_tensors(self.folder / name, make())
        return read_tensors(self.folder / name)[0]

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def code_tensors(weights: Mapping[str, Mapping[Choice, QuantizedWeight]]) -> dict[str, Tensor]:
    """What a file of codes holds, by `linear|choice|part`."""
    return {
        f"{linear}|{choice}|{name}": part
        for linear, choices in weights.items()
        for choice, weight in choices.items()
        for name, part in weight.parts.items()
    }


def _read(file: MappedTensors, linear: str, choice: Choice, in_features: int) -> QuantizedWeight:
    grid = GRIDS[choice.grid]
    parts = {part: file.get_tensor(f"{linear}|{choice}|{part}") for part in grid.format.parts(choice.bits)}
    return grid.of(parts, choice, in_features)
