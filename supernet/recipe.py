"""How a supernet is made, as plain values: members of families by name, and numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from records.errors import InputError
from records.reading import as_record
from supernet.adapters import ADAPTERS, Adapter
from supernet.choices import make_space, table_bits
from supernet.formats import FORMATS, grid_at
from supernet.quantizers import QUANTIZERS
from supernet.refiners import REFINERS
from supernet.refiners.learned import LEAST_STEPS
from supernet.samplers import SAMPLERS, Balanced
from supernet.schedules import SCHEDULES
from supernet.sharing import SHARINGS, Decoupled, Shared, Sharing
from supernet.space import Choice, SearchSpace
from supernet.spec import ModelSpec
from supernet.train import TEACHERS, check_system, check_teacher

AUTO = "auto"  # decided by what fits into the minutes (`supernet.auto`)
CODES_SHARE = 0.75  # of the minutes goes at most into the codes where the quantizer learns them
ADAPTED_BITS = 4  # wider codes lose too little for an adapter to win anything back
SETTLED_RATE = 1 / 3  # of an adapter's learning rate where codes and scales were learned: they are nearly right
LEAST_GROUP = 8
FLOAT32_MOST = 3.4e38
ADAPTED = 2  # so many of the smallest bit-widths are trained: each further one takes its share of the steps


@dataclass(frozen=True)
class Recipe:
    """What `supernet.create` is given.

    `minutes` are those of the whole making, all stages included; `steps` and `block_steps` go before them. Without a
    `group_size`, groups are those that are usual on the grid; `group_sizes` gives one for each of `bits`.
    """

    bits: tuple[int, ...] = (2, 3, 4, 8)
    grid: str = "sym"
    group_size: int | None = None
    group_sizes: tuple[int, ...] = ()
    awq: float = 0.25
    quantizer: str = AUTO
    block_steps: int | None = None
    adapter: str = "scales"
    rank: int | None = None
    sharing: str = "decoupled"
    train_bits: tuple[int, ...] | None = None
    sampler: str = AUTO
    schedule: str = "constant"
    teacher: str = "full"
    prune: tuple[float, ...] = ()
    data: str | None = None
    eval_text: str | None = None
    steps: int | None = None
    minutes: float = 15.0
    batch: int = 4
    window_tokens: int = 256
    learning_rate: float | None = None
    checkpointing: bool = False
    seed: int = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        self._check_members()
        self._check_numbers()
        self._check_groups()
        self._check_training()

    def _check_members(self) -> None:
        if not self.bits or list(self.bits) != sorted(set(self.bits)) or not set(self.bits) <= set(range(2, 9)):
            raise InputError(f"bits must be rising numbers from 2 to 8, got {list(self.bits)}; use for example 2,3,4,8")
        families: dict[str, Collection[str]] = {
            "grid": FORMATS,
            "quantizer": (AUTO, *QUANTIZERS, *REFINERS),
            "adapter": ADAPTERS,
            "sharing": SHARINGS,
            "sampler": (AUTO, *SAMPLERS),
            "schedule": SCHEDULES,
            "teacher": TEACHERS,
        }
        for name, family in families.items():
            if getattr(self, name) not in family:
                raise InputError(f"{name} must be one of {', '.join(family)}, got {getattr(self, name)!r}")
        falling = list(self.prune) == sorted(set(self.prune), reverse=True)
        if not falling or not all(0 <= share < 1 for share in self.prune):
            raise InputError(f"prune must be falling shares from below 1 to 0, got {list(self.prune)}; use 0.75,0.5,0")

    def _check_numbers(self) -> None:
        for name, least in (("batch", 1), ("window_tokens", 8)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name, least in (("steps", 1), ("block_steps", LEAST_STEPS)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, got {value}; leave it out for what fits")
        if not 0 <= self.awq <= 1:
            raise InputError(f"awq must be from 0, which is off, to 1, got {self.awq}")
        if self.learning_rate is not None and not 0 < self.learning_rate < FLOAT32_MOST:
            raise InputError(f"learning_rate must be above 0 and a 32-bit float, got {self.learning_rate}")
        if not 0 < self.minutes < math.inf:
            raise InputError(f"minutes must be above 0, got {self.minutes}")

    def _check_groups(self) -> None:
        if FORMATS[self.grid].block > 1 and (self.group_size is not None or self.group_sizes):
            given = list(self.group_sizes) or self.group_size
            raise InputError(f"grid {self.grid} has group sizes of its own, got {given}; leave the group size out")
        for size in (self.group_size, *self.group_sizes):
            if size is not None and size < LEAST_GROUP:
                raise InputError(f"group_size must be at least {LEAST_GROUP}, got {size}")
        if self.group_sizes and (self.group_size is not None or len(self.group_sizes) != len(self.bits)):
            raise InputError(
                f"group sizes are one for all or one for each of bits {list(self.bits)}, got {list(self.group_sizes)}; "
                "use for example 64,64,32,32"
            )

    def _check_training(self) -> None:
        """Adapters, sharing, sampler and schedule, each beside the others and the grid."""
        if not set(self.train_bits or ()) <= set(self.bits):
            raise InputError(f"train_bits must be among bits, got {self.train_bits} and {self.bits}")
        adapter, widths = ADAPTERS[self.adapter], len(self.adapted_bits)
        if self.rank is not None and (self.rank < 1 or not adapter.ranked):
            raise InputError(f"rank must be at least 1 and the adapter low-rank, got {self.rank} and {self.adapter}")
        folds = FORMATS[self.grid].folds
        if adapter.deploys not in (*folds, "side"):
            others = " or ".join(name for name, format in FORMATS.items() if adapter.deploys in format.folds)
            raise InputError(
                f"adapter {self.adapter} folds into {adapter.deploys}, grid {self.grid} takes {' and '.join(folds)}; "
                f"use another adapter, or grid {others}"
            )
        sides = {(self.sizes()[bits], bits in FORMATS[self.grid].moving_zeros) for bits in self.adapted_bits}
        if SHARINGS[self.sharing] is not Decoupled and adapter.deploys in folds and len(sides) > 1:
            raise InputError(
                f"bit-widths share an adapter where their groups are alike, got sharing {self.sharing} and grid "
                f"{self.grid} at {' and '.join(map(str, self.adapted_bits))} bits; use sharing decoupled"
            )
        sampler = SAMPLERS.get(self.sampler, Balanced)  # where it is still to be chosen, one that refuses nothing
        if widths:
            check_sharing(self.adapter, adapter, self.sharing, SHARINGS[self.sharing], widths)
            check_system(sampler, SCHEDULES[self.schedule], self.teacher, widths)
            check_teacher(self.teacher, self.bits, self.adapted_bits)

    @property
    def adapted_bits(self) -> tuple[int, ...]:
        """The bit-widths that have adapters: the smallest, where there is most to win. Without any, codes stay as they
        were found."""
        if self.train_bits is not None:
            return tuple(sorted(self.train_bits))
        return tuple(bits for bits in self.bits if bits <= ADAPTED_BITS)[:ADAPTED]

    @property
    def learns(self) -> bool:
        """Whether codes or adapters are learned, or may be: whether there is work for all minutes that are left."""
        return bool(self.adapted_bits) or self.quantizer in (AUTO, *REFINERS)

    def sizes(self) -> dict[int, int]:
        """The group size by bits, those of tables included."""
        format = FORMATS[self.grid]
        sizes = {
            bits: self.group_size or format.group_size(bits) for bits in {*self.bits, *table_bits(self.bits, self.grid)}
        }
        return sizes | dict(zip(self.bits, self.group_sizes, strict=False))

    def choice(self, bits: int) -> Choice:
        """What a unit may be at so many bits."""
        return Choice(bits, self.sizes()[bits], grid_at(self.grid, bits))

    def space(self, spec: ModelSpec) -> SearchSpace:
        """What every unit may be. InputError where the model's rows are none of these groups'."""
        return make_space(spec, self.bits, self.sizes(), self.prune, grid=self.grid)

    @property
    def text_stays(self) -> bool:
        """Whether the text that trained can be read again: it was given, and not through a pipe."""
        return self.data is not None and self.data != "-"

    @property
    def rate(self) -> float:
        """The adapters' learning rate; by default it goes with how codes are found, once that is decided."""
        settled = self.quantizer in REFINERS
        return self.learning_rate or ADAPTERS[self.adapter].learning_rate * (SETTLED_RATE if settled else 1.0)

    def code_minutes(self, learning_seconds: float | None) -> float | None:
        """What a refiner may take of the time for learning and training; None where steps are given instead."""
        if self.steps is not None:
            return None
        return CODES_SHARE * (self.minutes if learning_seconds is None else learning_seconds / 60)

    def adapter_options(self, units: int) -> dict[str, Any]:
        """What the adapters of a model with so many units are made with."""
        return ADAPTERS[self.adapter].options(units) | ({} if self.rank is None else {"rank": self.rank})

    def to_json(self) -> dict[str, Any]:
        plain = {**asdict(self), "bits": list(self.bits), "train_bits": self.train_bits and list(self.train_bits)}
        given = {name: list(plain.pop(name)) for name in ("prune", "group_sizes")}
        return plain | {name: value for name, value in given.items() if value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """InputError naming the field for anything that `to_json` did not write."""
        return cast(Recipe, as_record(cls, {"awq": 0.0, **data}, "a recipe"))  # no folder from before awq has it


def check_sharing(name: str, adapter: type[Adapter], sharing_name: str, sharing: type[Sharing], widths: int) -> None:
    """InputError where an adapter cannot be shared so; `widths` bit-widths have adapters."""
    if sharing is not Decoupled and not adapter.shareable:
        raise InputError(f"adapter {name} belongs to one bit-width, got sharing {sharing_name}; use sharing decoupled")
    if adapter.routes and sharing is not Shared:
        raise InputError(f"adapter {name} mixes experts for all bit-widths, got {sharing_name}; use sharing shared")
    if sharing.measures and widths < 2:
        raise InputError(f"sharing {sharing_name} compares bit-widths, got {widths} with adapters; use decoupled")
