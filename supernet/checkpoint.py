"""The supernet on disk: a folder of safetensors and JSON that a person can open. Nothing is pickled.

    supernet.json           what it is: model, space, how it was made, the SHA-256 of each other file
    model/                  what describes the model: config, tokenizer, settings of generation, its code if it has any
    load.json               what became of each tensor and file of the model's source
    codes.safetensors       codes and what they are read with (scales, zeros) of every matrix at every choice
    floats.safetensors      what is never quantized: norms, biases
    adapters.safetensors    trained adapters that do not fold into the codes
    reference.safetensors   the windows that subnets are measured on, and what the full model says of them
    proof.safetensors       long windows, and the likeliest tokens of the full model at each position
    rotary.safetensors      inverse frequencies of the rotary embeddings, as this machine computed them
    sensitivity.json        what each choice of each unit costs
    tuned/                  numbers that plans were given by `plan --tune` (`supernet.tuned`)
    order.safetensors       with pruning: the model's channel that each channel of a feed-forward block was
    scaling.safetensors     with awq: what each channel's weights were multiplied by before they were quantized
    state.json, start.safetensors, windows.safetensors, training.safetensors, agreement.json
                            while training: that it was begun, the codes it started from, its windows, where it is

Opening reads JSON alone and imports no torch; tensors are read when asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from records.errors import InputError, MissingError
from records.reading import read_record
from supernet.formats import CODES as CODES_PART
from supernet.index import FORMAT, Index, TextInfo
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    from supernet.build import Supernet
    from supernet.grids import QuantizedWeight, Stored
    from supernet.reference import Reference
    from supernet.rotary import Rotary

SUPERNET, CODES, FLOATS = "supernet.json", "codes.safetensors", "floats.safetensors"
TUNED = "tuned"
ADAPTERS_FILE, REFERENCE = "adapters.safetensors", "reference.safetensors"
START, WINDOWS, TRAINING = "start.safetensors", "windows.safetensors", "training.safetensors"
AGREEMENT_FILE, ORDER, SCALING = "agreement.json", "order.safetensors", "scaling.safetensors"
CHANGES = (ORDER, SCALING)  # what was done to the full model before its codes were made
STATE = "state.json"
FILLS = 0.25  # of the free memory: codes that are larger leave it again after each block that computed with them
UNFINISHED = (START, WINDOWS, TRAINING, AGREEMENT_FILE, STATE)  # files that a finished supernet has not
MODEL, LOAD = "model", "load.json"


@dataclass(frozen=True)
class FoldedWeight:
    """One matrix as a runtime stores it, adapter folded in.

    codes: uint8 `(out_features, in_features)`, unpacked; scale: float32 and zero: uint8, or float32 where zeros are any
    numbers, both `(out_features, groups)`; sides: what of its format is stored beside the codes, by name.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    sides: Mapping[str, Tensor]


@dataclass(frozen=True)
class TunedFile:
    """Where numbers are that were trained for one subnet alone, and their SHA-256."""

    path: Path
    sha256: str


def fingerprint_of(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(sorted(hashes.items()))).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SupernetFiles:
    """A supernet's folder, open. `info` says how it was made; `fingerprint` changes when any weight does.

    With `tuned`, one subnet has numbers of its own in place of the supernet's (`supernet.tuned`).
    """

    path: Path
    spec: ModelSpec
    space: SearchSpace
    info: Mapping[str, Any]
    hashes: Mapping[str, str]
    trusted: bool = False  # whether the model's own code may run
    tuned: TunedFile | None = None
    _open: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens the files itself."""
        return {**vars(self), "_open": {}}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of({**self.hashes, **({} if self.tuned is None else {TUNED: self.tuned.sha256})})

    @property
    def model_dir(self) -> Path:
        return self.path / MODEL

    @property
    def deploys(self) -> str:
        """How the adapters reach a runtime: folded into `scales`, `codes` or `zeros`, or as a low-rank `side` path."""
        return str(self.info["adapter"]["deploys"])

    @property
    def activations(self) -> Mapping[str, float]:
        """What rounding activations adds to KL per token, by how a runtime does it (`supernet.activations`)."""
        return dict(self.info.get("activations", {}))

    @property
    def finished(self) -> bool:
        return bool(self.info.get("finished"))

    @property
    def runs_code(self) -> bool:
        """Whether the model or its tokenizer is Python code that came with it."""
        return any(name.endswith(".py") for name in self.hashes)

    def check_hashes(self) -> None:
        """InputError naming the first file whose bytes are not those that were written."""
        self.check_model()
        self._check(name for name in self.hashes if not _of_model(name))
        self.check_tuned()

    def check_tuned(self) -> None:
        """The same for the numbers of one subnet alone, where it was opened with them."""
        from records.atomic import sha256

        if self.tuned is not None and sha256(self.tuned.path) != self.tuned.sha256:
            raise InputError(f"{self.tuned.path} is damaged; copy it again, or plan again with --tune")

    def check_model(self) -> None:
        """The same for what describes the model, which is small; also for a file beside it that nobody wrote."""
        self._check(filter(_of_model, self.hashes))
        for name in model_files(self.path):
            if name not in self.hashes:
                raise InputError(f"{self.path / name} is not of this supernet; remove it, or train it again")

    def _check(self, names: Iterable[str]) -> None:
        from records.atomic import sha256

        for name in names:
            path, expected = self.path / name, self.hashes[name]
            if not path.is_file():
                raise MissingError(f"the supernet {self.path} lacks {name}; copy it again or train it again")
            if sha256(path) != expected:
                raise InputError(f"{path} is damaged or was changed after training; copy it or train it again")

    def place(self, name: str, writing: bool = False) -> Path:
        """Where what planning leaves is, or is to be written: in the folder, or in the cache where that may only be
        read. Folders on the way there are made for `writing`."""
        from records.cache import cache_dir

        beside, spare = self.path / name, cache_dir() / "supernets" / self.fingerprint / name
        if beside.exists() or (os.access(self.path, os.W_OK) and not spare.exists()):
            spare = beside
        if writing:
            spare.parent.mkdir(parents=True, exist_ok=True)
        return spare

    @property
    def changes(self) -> tuple[str, ...]:
        """The files of what was done to the full model before its codes were made."""
        return tuple(name for name in CHANGES if name in self.hashes)

    def read(self, name: str) -> dict[str, Tensor]:
        """All tensors of one of the files that `hashes` names."""
        from supernet.files import read_tensors

        return read_tensors(self.path / name)[0]

    def tensors(self, name: str) -> Any:
        """An open safetensors file of the folder, mapped: its pages may be given back."""
        from supernet.files import open_tensors
        from supernet.mapped import MappedTensors

        if name not in self._open:
            open_tensors(self.path / name)  # says in one line what is damaged
            self._open[name] = MappedTensors(self.path / name)
        return self._open[name]

    def stored(self, linear: str, choice: Choice) -> QuantizedWeight:
        """The frozen codes of one matrix at one choice."""
        from supernet.grids import GRIDS

        file = self.tensors(START if START in self.hashes else CODES)
        pairs = ((unit, lin) for unit in self.spec.units for lin in unit.linears)
        unit, found = next((unit, lin) for unit, lin in pairs if lin.name == linear)
        grid, name = GRIDS[choice.grid], f"{linear}|{choice.whole}"
        parts = {part: file.get_tensor(f"{name}|{part}") for part in grid.format.parts(choice.bits)}
        own, _ = self.own
        parts |= {part: own[f"{name}|{part}"] for part in parts if f"{name}|{part}" in own}
        weight = grid.of(parts, choice.whole, found.in_features)
        if choice.kept is None or unit.channels is None:
            return weight
        return weight.keep(choice.kept, unit.channels)

    @cached_property
    def own(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What takes the place of the supernet's numbers, by `linear|choice|part`, and what it is of."""
        from supernet.files import read_tensors

        return ({}, {}) if self.tuned is None else read_tensors(self.tuned.path)

    def folded(self, linear: str, choice: Choice) -> FoldedWeight:
        """What a runtime stores for one matrix at one choice; InputError where an adapter is left beside it."""
        if ADAPTERS_FILE in self.hashes:
            raise InputError(f"the adapters of {self.path} do not fold into its codes; export it with PEFT")
        weight = self.stored(linear, choice)
        sides = {name: part for name, part in weight.parts.items() if name != CODES_PART}
        return FoldedWeight(weight.grid.codes(weight), weight.scale, weight.zero, sides)

    def _adapter(self, weight: QuantizedWeight, state: dict[str, Tensor]) -> Any:
        import torch

        from supernet.adapters import ADAPTERS

        recorded = self.info["adapter"]
        adapter = ADAPTERS[recorded["name"]](weight, torch.Generator().manual_seed(0), **recorded.get("options", {}))
        adapter.load_state_dict(state)
        return adapter

    def float_tensors(self) -> dict[str, Tensor]:
        """What is never quantized, by its Hugging Face name, float32."""
        file = self.tensors(FLOATS)
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    @property
    def texts(self) -> Mapping[str, TextInfo]:
        """The texts that subnets are measured on, by name, as the index has them."""
        texts = self.info.get("texts")
        if not texts:
            raise InputError(f"{self.path / SUPERNET} names no text to measure on; copy it again or train it again")
        return cast(Mapping[str, TextInfo], texts)

    def references(self) -> dict[str, Reference]:
        """What the full model says of each text that subnets are measured on, by its name; the held-out text first."""
        from supernet.reference import read_references

        return read_references(self.path / REFERENCE)

    def reference(self) -> Reference:
        """The windows held out of training, and what the full model says of them."""
        from supernet.reference import HELD_OUT

        return self.references()[HELD_OUT]

    def evidence(self) -> dict[str, Any]:
        """The arrays of `proof.safetensors` (`supernet.evidence`), by name."""
        from supernet.evidence import PROOF, read_evidence

        if PROOF not in self.hashes:
            raise InputError(f"{self.path} has no {PROOF}, which a package is held to; train it again")
        return read_evidence(self.path / PROOF)

    def rotaries(self) -> dict[str, Rotary]:
        """The model's rotary embeddings, by the type of layer, as they were computed when training ended."""
        from supernet.rotary import ROTARY, read_rotaries, rotaries_of

        if ROTARY in self.hashes:
            return read_rotaries(self.path / ROTARY)
        from transformers import AutoConfig  # a supernet of before: what this machine computes may differ in a last bit

        return rotaries_of(AutoConfig.from_pretrained(self.model_dir, trust_remote_code=self.trusted), self.trusted)

    def subnet_model(self, subnet: Subnet) -> Any:
        """One subnet as a model in float32 that holds its packed codes and dequantizes a matrix at a time."""
        from supernet.evidence import subnet_model

        return subnet_model(self, subnet)

    def load(self, keep: Callable[[QuantizedWeight], Stored] | None = None) -> Supernet:
        """The supernet as a model, in float32, its adapters in place. `keep` says what is kept of each weight read.

        InputError where a file is damaged: that is looked for while libraries are read.
        """
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as thread:
            whole = thread.submit(self.check_hashes)
            from transformers import AutoConfig, AutoModelForCausalLM  # noqa: F401, which `assemble` makes it with

            from supernet.blocks import give_back_after_blocks
            from supernet.build import assemble

            whole.result()
        config = AutoConfig.from_pretrained(self.model_dir, trust_remote_code=self.trusted)
        weights = {
            linear.name: {choice: self._kept(linear.name, choice, keep) for choice in self.space.whole[unit.name]}
            for unit in self.spec.units
            for linear in unit.linears
        }
        supernet = assemble(config, self.spec, self.space, self.float_tensors(), weights, self.trusted)
        if ADAPTERS_FILE in self.hashes:
            self._load_adapters(supernet)
        if self._fills_memory:
            give_back_after_blocks(supernet.model)
        return supernet

    @property
    def _fills_memory(self) -> bool:
        """Whether the codes would take a large part of the memory that is free, were all of their pages in it."""
        import psutil

        codes = self.path / (START if START in self.hashes else CODES)
        return codes.stat().st_size > FILLS * psutil.virtual_memory().available

    def _kept(self, linear: str, choice: Choice, keep: Callable[[QuantizedWeight], Stored] | None) -> Stored:
        stored = self.stored(linear, choice)
        return stored if keep is None else keep(stored)

    def _load_adapters(self, supernet: Supernet) -> None:
        from collections import defaultdict

        from supernet.linear import TOGETHER

        file = self.tensors(ADAPTERS_FILE)
        states: dict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
        for key in file.keys():  # noqa: SIM118
            linear, choices, parameter = key.split("|")
            states[linear, choices][parameter] = file.get_tensor(key)
        for (linear, names), state in states.items():
            matrix = supernet.matrices[linear]
            choices = [Choice.parse(name) for name in names.split(TOGETHER)]
            matrix.adapt(choices, self._adapter(matrix.stored(choices[0]), state).requires_grad_(False))


def open_supernet(path: str | Path, unfinished: bool = False, trust_remote_code: bool = False) -> SupernetFiles:
    """A supernet's folder; MissingError or InputError, one line, where it is missing, corrupt or unfinished, and where
    the model brings Python code that `trust_remote_code` does not allow: the folder may be a stranger's, so what it
    says of itself allows nothing."""
    path = Path(path)
    if not (path / SUPERNET).is_file():
        raise MissingError(f"no supernet at {path}; make one with `bitfleet train MODEL --out {path}`")
    index = read_record(path / SUPERNET, Index, "supernet's index", "copy it again or train it again")
    files = SupernetFiles(path, index.model, index.space, index.info, index.hashes, trust_remote_code)
    files.check_model()
    if files.runs_code and not trust_remote_code:
        raise InputError(f"the model of {path} runs Python code of its own; allow it with --trust-remote-code")
    if not files.finished and not unfinished:
        raise InputError(
            f"the training of {path} has not finished; go on with `bitfleet train MODEL --out {path} --resume`"
        )
    return files


def model_files(path: Path) -> list[str]:
    """What describes the model of the supernet in `path`, by its names in the hashes."""
    found = (path / LOAD, *(path / MODEL).rglob("*"))
    return sorted(file.relative_to(path).as_posix() for file in found if not file.is_dir())


def _of_model(name: str) -> bool:
    return name == LOAD or name.startswith(f"{MODEL}/")


def link(there: Path, name: Path) -> None:
    """Give a file that stays as it is another name; a copy where the file system has no such names."""
    import shutil

    from records.atomic import replacing

    with replacing(name) as temporary:
        temporary.unlink()
        try:
            os.link(there, temporary)
        except OSError:
            shutil.copyfile(there, temporary)


def hashes_of(path: Path, names: tuple[str, ...]) -> dict[str, str]:
    from records.atomic import sha256

    return {name: sha256(path / name) for name in names}


def save_index(
    path: Path, spec: ModelSpec, space: SearchSpace, info: Mapping[str, Any], hashes: Mapping[str, str]
) -> SupernetFiles:
    """Write `supernet.json`; last, since it is what makes the folder a supernet."""
    from records.atomic import write_text

    data = {
        "format": FORMAT, "info": dict(info), "hashes": dict(hashes), "space": space.to_json(), "model": spec.to_json()
    }  # fmt: skip
    write_text(path / SUPERNET, json.dumps(data, indent=1) + "\n")
    return SupernetFiles(path, spec, space, dict(info), dict(hashes))
