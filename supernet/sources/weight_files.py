"""Which files of a Hugging Face folder hold the weights that are read: exactly one set, whole, of plain floats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records.errors import InputError, MissingError
from records.reading import read_json
from supernet.account import LEFT, READ, names

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FLOATS = ("F64", "F32", "F16", "BF16")
MASKS = ("BOOL", "I64", "I32", "U8")  # what old files keep their masks and positions in
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
PACKED = re.compile(
    r"\.(qweight|qzeros|g_idx|scales|weight_packed|weight_shape|weight_scale|weight_scale_inv|weight_scale_2|input_scale"
    r"|weight_zero_point|absmax|quant_map|nested_absmax|nested_quant_map|quant_state\S*|SCB|weight_format)$"
)


@dataclass(frozen=True)
class WeightFiles:
    """What is read and what is left aside, with why; `tensors` is name -> (file, dtype, shape)."""

    read: tuple[str, ...]
    left: Mapping[str, str]
    tensors: Mapping[str, tuple[str, str, tuple[int, ...]]]

    def accounts(self) -> dict[str, str]:
        return dict.fromkeys(self.read, READ) | {name: LEFT + why for name, why in self.left.items()}


def weight_files(folder: Path) -> WeightFiles:
    """InputError or MissingError where the folder's weights are pickles, several sets, incomplete or quantized."""
    here = {path.name for path in folder.iterdir() if path.is_file()}
    if ".metadata" in here:
        raise InputError(f"{folder} is a distributed checkpoint; save the model with save_pretrained")
    found = {name for name in here if name.endswith(".safetensors")}
    read, left = _chosen(folder, here, found)
    for name in sorted(found - set(read)):
        if re.match(r"model-\d", name):
            raise InputError(f"{folder} holds {name}, which belongs to no complete set of weights; move it elsewhere")
        left[name] = "another set of weights"
    left |= {name: "pickled weights are never loaded" for name in sorted(here) if name.endswith(PICKLES)}
    return WeightFiles(read, left, _tensors(folder, read))


def refuse_adapter(folder: Path) -> None:
    """InputError where a folder holds a LoRA, alone or beside a model."""
    adapter = [name for name in ADAPTER if (folder / name).exists()]
    if adapter:
        raise InputError(
            f"{folder} holds an adapter ({adapter[0]}): a LoRA is no model, and beside one it would be left out; "
            "merge it into its base model, or move it elsewhere"
        )


def _chosen(folder: Path, here: set[str], found: set[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    shards = _shards(folder) if INDEX in here else ()
    if SINGLE in here:
        beside = [name for name in shards if name in here and name != SINGLE]
        if beside:
            raise InputError(
                f"{folder} holds two sets of weights, {SINGLE} and {beside[0]} of {INDEX}; move one of them elsewhere"
            )
        stale = INDEX in here and set(shards) != {SINGLE}
        return (SINGLE,), ({INDEX: "the files it names are not there"} if stale else {})
    if INDEX in here:
        missing = [name for name in shards if name not in here]
        if missing:
            raise MissingError(
                f"{folder} lacks {len(missing)} of its {len(shards)} weight files: {names(missing)}; copy it again"
            )
        return shards, {}
    pickles = sorted(name for name in here if name.endswith(PICKLES))
    if pickles and not found:
        raise InputError(
            f"{folder} holds pickled weights alone ({pickles[0]}), which can run code and are never loaded; "
            "convert them to safetensors with save_pretrained"
        )
    others = f", only {names(found)}, which transformers does not read" if found else ""
    raise MissingError(f"{folder} has no weights: neither {SINGLE} nor {INDEX}{others}; copy it again")


def _shards(folder: Path) -> tuple[str, ...]:
    table = read_json(folder / INDEX, "index of weight files", "copy the model again").get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise InputError(f"{folder / INDEX} needs `weight_map`, tensor: file; copy the model again")
    outside = [name for name in table.values() if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        raise InputError(f"{folder / INDEX} names {outside[0]!r}, which is no safetensors file of this folder")
    return tuple(sorted(set(table.values())))


def _tensors(folder: Path, files: tuple[str, ...]) -> dict[str, tuple[str, str, tuple[int, ...]]]:
    found: dict[str, tuple[str, str, tuple[int, ...]]] = {}
    for file in files:
        for name, (dtype, shape) in _header(folder / file).items():
            if name in found:
                raise InputError(f"{folder}: {name} is in {found[name][0]} and in {file}; remove what is stale")
            found[name] = (file, dtype, shape)
    packed = [name for name in found if PACKED.search(name)]
    odd = [name for name, (_, dtype, _) in found.items() if dtype not in (*FLOATS, *MASKS)]
    odd += [name for name, (_, dtype, shape) in found.items() if dtype in MASKS and name.endswith("weight")]
    if packed or odd:
        first = (packed or odd)[0]
        raise InputError(
            f"{folder} holds {len(packed) + len(odd)} tensors of a pre-quantized model, scales or codes such as "
            f"{first} in {found[first][1]}; bitfleet starts from the float model, give that one"
        )
    return found


def _header(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged and cannot be loaded ({error}); copy it again") from None
