"""What `supernet.json` holds, and what opening a supernet needs of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, cast

from records.errors import InputError
from records.reading import as_record
from supernet.space import SearchSpace
from supernet.spec import EMBEDDING, HEAD, ModelSpec

FORMAT = 4
READ = (3, FORMAT)  # 3: units of several linears, where runtimes of then joined them


class AdapterInfo(TypedDict):
    """How the adapters were made, and how they reach a runtime."""

    name: str
    deploys: str
    options: NotRequired[dict[str, Any]]


class TextInfo(TypedDict):
    """A text that subnets are measured on: what it is in words, how much of it, and what its windows are known by."""

    text: str
    windows: int
    tokens: int
    first: int
    digest: str


class Info(TypedDict):
    """Of how a supernet was made, what opening it needs; stages add more."""

    recipe: dict[str, Any]
    adapter: AdapterInfo
    source: str
    texts: NotRequired[dict[str, TextInfo]]
    finished: NotRequired[bool]
    activations: NotRequired[dict[str, float]]  # what rounding them adds to KL per token, by how it is done


@dataclass(frozen=True)
class Index:
    """What `supernet.json` holds."""

    format: int
    info: Mapping[str, Any]
    hashes: Mapping[str, str]
    space: SearchSpace
    model: ModelSpec

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Index:
        if data.get("format") not in READ:
            have = " and ".join(map(str, READ))
            raise InputError(f"it has format {data.get('format')!r:.80}, this version reads {have}; train it again")
        return cast(Index, as_record(cls, data, "a supernet's index"))

    def __post_init__(self) -> None:
        as_record(Info, self.info, "info")
        units = [unit.name for unit in self.model.units]
        if units != [unit for unit, _ in self.space]:
            raise InputError("the space must have the model's units, in their order, it has not")
        tables = [unit.role for unit in self.model.units if unit.is_table]
        if tables != ([EMBEDDING] if self.model.tied else [EMBEDDING, HEAD]):
            raise InputError(f"a model has an embedding, and a head unless that is tied to it, got {tables!r:.80}")
