"""A device of the catalogue from what benchmarks/gpu.sh measured on it: products.json -> profiles/catalog/NAME.json.

    python benchmarks/gpu_catalog.py gpu-results/products.json h200-sxm-141gb [--write]

Memory and peaks stay the datasheet's where the catalogue has the device. Kernels, bandwidth, attention and launches are
those that were measured, with date and versions; without --write the entry is printed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from profiles import catalog
from profiles.device import DeviceProfile, dump
from records.errors import InputError
from records.reading import read_value

SOURCE = "benchmarks/gpu.sh"
FOLDER = Path(catalog.__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="products.json of a run on a GPU")
    parser.add_argument("name", help="what the catalogue calls the device")
    parser.add_argument("--write", action="store_true", help="into the catalogue")
    arguments = parser.parse_args()
    try:
        found = read_value(arguments.result, "result of benchmarks/gpu.sh", "measure it with `benchmarks/gpu.sh`")
        made = entry(found, arguments.name)
    except InputError as error:
        sys.exit(f"error: {error}")
    if arguments.write:
        made.save(FOLDER / f"{arguments.name}.json")
    else:
        print(dump(made.to_json()))


def entry(result: dict[str, Any], name: str) -> DeviceProfile:
    """What the catalogue says of the device from now on. InputError where nothing was measured on a GPU, or on another
    than the catalogue's."""
    if not result.get("on_gpu") or not result.get("profile", {}).get("kernels", {}).get("entries"):
        raise InputError("a catalogue entry is made of kernels that were timed on a GPU, this result has none")
    measured = DeviceProfile.from_json(result["profile"])
    if measured.kind != "cuda":
        raise InputError(f"a catalogue entry is made of a GPU's profile, got one of kind {measured.kind}")
    known = catalog.load(name) if name in catalog.names() else replace(measured, name=name, notes="")
    if known.architecture != measured.architecture:
        raise InputError(
            f"{name} is {known.architecture}, and {measured.model} that was measured {measured.architecture}"
        )
    said = f"Kernels and bandwidth were measured on {measured.model} by {SOURCE}, {measured.date}."
    return replace(
        known,
        date=measured.date,
        measured=True,
        source=known.source if known.source.startswith("https://") else SOURCE,
        available_bytes=None,
        host=None,
        bandwidth_bytes_per_s=measured.bandwidth_bytes_per_s,
        bandwidth_basis=measured.bandwidth_basis,
        bandwidth_spread=measured.bandwidth_spread,
        bf16_ops_per_s=known.bf16_ops_per_s or measured.bf16_ops_per_s,
        kernels=replace(measured.kernels, date=measured.date),
        calibrations=measured.calibrations,
        versions={**measured.versions, **measured.kernels.versions},
        notes=f"{known.notes} {said}".strip(),
    )


if __name__ == "__main__":
    main()
