"""Where tables of measured kernels lie, of which GPUs, and where each comes from.

They come with NVIDIA's `aiconfigurator-core` (Apache-2.0), as one parquet file for each GPU, kind of kernel, framework
and version of it: `systems/data/GPU/KIND/FRAMEWORK/VERSION/FILE`. Nothing of the package is imported. Times are
milliseconds of one call among many that were captured as a graph.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiles.device import DeviceProfile
from records.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PACKAGE, MODULE = "aiconfigurator-core", "aiconfigurator_core"
INSTALL = "pip install 'bitfleet[gpu-tables]'"

# What a profile's model says where it is this GPU: a catalogue's words, or the driver's. Variants of another bandwidth
# or power (PCIe, NVL, 40 GB) are none of these.
SYSTEMS: Mapping[str, re.Pattern[str]] = {
    name: re.compile(rf"(NVIDIA )?{pattern}", re.IGNORECASE)
    for name, pattern in {
        "a100_sxm": r"A100[- ]SXM4?[- ]80 ?GB",
        "h100_sxm": r"H100( SXM5?)? 80 ?GB( HBM3)?",
        "h200_sxm": r"H200( SXM)?( 141 ?GB)?",
        "b200_sxm": r"(HGX )?B200( SXM6?)?( 1[89]\d ?GB)?",
        "b300_sxm": r"(HGX )?B300( SXM6?( AC)?)?( 2[6-8]\d ?GB)?",
        "gb200": r"GB200( NVL72, one GPU)?( 1[89]\d ?GB)?",
        "gb300": r"GB300( NVL72, one GPU)?( 2[6-8]\d ?GB)?",
        "l40s": r"L40S( 48 ?GB)?",
        "rtx_pro_6000_server": r"RTX PRO 6000 Blackwell Server Edition( 96 ?GB)?",
    }.items()
}


SAID = {"gemm": "products", "comm": "sums", "moe": "experts"}


@dataclass(frozen=True)
class Source:
    """One file of the package: what was measured, by which framework of which version, on which GPU."""

    kind: str
    framework: str
    version: str
    gpu: str

    @property
    def said(self) -> str:
        return SAID.get(self.kind, self.kind)


Columns = dict[str, "NDArray[Any]"]


def system_of(device: DeviceProfile) -> str | None:
    """The package's name of a GPU, or None where it has no tables of it."""
    if device.kind != "cuda":
        return None
    return next((name for name, said in SYSTEMS.items() if said.fullmatch(device.model.strip())), None)


def root() -> Path | None:
    """The folder of tables; None where they or what reads them is not installed."""
    found = importlib.util.find_spec(MODULE)
    if found is None or not found.submodule_search_locations or importlib.util.find_spec("pyarrow") is None:
        return None
    folder = Path(found.submodule_search_locations[0]) / "systems" / "data"
    return folder if folder.is_dir() else None


def timed() -> str:
    """What is known of the kernels of a GPU that is in the tables, with what to install where they are not."""
    return "timed by others" if root() else f"timed by others, with {INSTALL}"


def said() -> str:
    """The package with its version, as provenance."""
    try:
        return f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:  # found on the path without its metadata
        return PACKAGE


def newest(folder: Path, system: str, kind: str, framework: str, name: str) -> Path | None:
    """The file of that name of the framework's newest version, or None where there is none."""
    found = (folder / system / kind / framework).glob(f"*/{name}")
    return max(found, key=lambda path: _order(path.parent.name), default=None)


def read(path: Path, columns: Sequence[str], where: Mapping[str, str]) -> tuple[Columns, Source]:
    """The rows of a file whose text columns say what `where` says, as arrays, and where they come from. InputError
    where there is none.

    Of `columns` that a file lacks there is none in what is returned.
    """
    found, source = rows_of(path, columns, where)
    if not len(next(iter(found.values()))):
        raise InputError(f"{path} has no rows of {', '.join(where.values())}; install {PACKAGE} 0.12 or newer")
    return found, source


def rows_of(path: Path, columns: Sequence[str], where: Mapping[str, str]) -> tuple[Columns, Source]:
    """The same, of no rows too."""
    import numpy as np
    import pyarrow.parquet as parquet

    file = parquet.ParquetFile(path)
    there = set(file.schema_arrow.names)
    read_too = (*(name for name in where if name in there), "device", "version")
    rows = file.read(columns=[*dict.fromkeys((*(name for name in columns if name in there), *read_too))])
    # By lists: pyarrow's own ways to filter and to convert import pandas, which takes a second.
    arrays = {name: np.array(rows[name].to_pylist()) for name in rows.column_names}
    mine = np.ones(rows.num_rows, bool)
    for name, value in where.items():
        if name in there:
            mine &= arrays[name] == value
    gpu, measured_with = (str(arrays[name][0]) for name in ("device", "version"))
    source = Source(path.parents[2].name, path.parents[1].name, measured_with, gpu)
    return {name: arrays[name][mine] for name in columns if name in there}, source


def stacked(columns: Columns, names: Sequence[str]) -> NDArray[np.float64]:
    """Points `(rows, names)` of these columns."""
    import numpy as np

    return np.stack([columns[name].astype(float) for name in names], axis=1)


@cache
def _order(text: str) -> tuple[int, ...]:
    """Versions in order; what is no number ends one (1.3.0rc20 after 1.3.0rc5)."""
    return tuple(int(number) for number in re.findall(r"\d+", text))
