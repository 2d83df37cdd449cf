"""A fifth runtime for bitfleet, whole: folders of plain float16 weights, which transformers runs on any CPU."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from planner.request import Workload
from planner.runtimes.base import FLOAT, Runtime
from planner.runtimes.by_bandwidth import Usual
from planner.runtimes.caches import FLOAT16
from planner.runtimes.engine import Engine, Ids, Speaker
from planner.runtimes.folder_runtime import BandwidthPricing, FolderHolding, FolderPackages
from planner.runtimes.folder_writing import Layout
from planner.runtimes.model_folder import float16
from planner.runtimes.source import FoldedMatrix, dequantized
from planner.runtimes.spoken import Spoken, prompt_ids
from planner.runtimes.tensor_file import Tensor
from planner.tokens import Tokenization
from profiles.device import DeviceProfile
from profiles.folder_shares import Reading
from records.errors import NotInstalledError
from supernet.space import Choice
from supernet.spec import ModelSpec, UnitSpec

ARCHITECTURES, ROPES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"), ("default", "llama3")
USUAL = Usual(process_bytes=400_000_000, step_ms=1.0, layer_ms=0.1, chunk_tokens=512, ops_per_byte=10.0)


def tensors(unit: UnitSpec, choice: Choice) -> tuple[Tensor, ...]:
    return tuple(Tensor(f"{lin.name}.weight", "F16", (lin.out_features, lin.in_features)) for lin in unit.linears)


class Holding(FolderHolding):
    parts = 1  # tensor of a matrix

    def refusal(self) -> str | None:
        unknown = [*self.spec.features, *(kind for kind in self.spec.ropes if kind not in ROPES)]
        unknown += [f"a sliding window of {window}" for window in self.spec.windows if window is not None]
        if self.spec.architecture not in ARCHITECTURES:
            return f"halves are tested with {', '.join(ARCHITECTURES)}, got {self.spec.architecture}"
        return f"halves were never tested with {unknown[0]}" if unknown else None

    def unit_refusal(self, unit: UnitSpec, choice: Choice) -> str | None:
        if choice.kept is not None:
            return f"a config has one width for all feed-forward blocks, {choice} prunes this one"
        wrong = [linear.in_features for linear in unit.linears if linear.in_features % choice.group_size]
        return f"the group size must divide in_features, got {choice.group_size} and {wrong[0]}" if wrong else None

    def tensors(self, unit: UnitSpec, choice: Choice) -> tuple[Tensor, ...]:
        return tensors(unit, choice)

    def reading(self, unit: UnitSpec, choice: Choice) -> Reading:
        return Reading(self.unit_bytes(unit, choice), FLOAT)


def arrays(unit: UnitSpec, name: str, folded: FoldedMatrix, choice: Choice) -> Iterator[tuple[str, Any]]:
    yield "weight", float16(name, dequantized(folded))


def shapes(config: Any, tensors: Any) -> dict[str, tuple[int, int]]:
    return {name.removesuffix(".weight"): one.shape for name, one in tensors.items() if len(one.shape) == 2}


LAYOUT = Layout("halves", Holding.parts, tensors, arrays, lambda config, spec, subnet: {}, shapes)


class Packages(FolderPackages):
    architectures = ARCHITECTURES

    def layout(self) -> Layout:
        return LAYOUT

    def launch(self, folder: Path, workload: Workload) -> str:
        return f"transformers chat {folder}"


class Transformers(Speaker):
    """In this process: a checked folder names no code, so that weights are all that is loaded."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.folder, self.tensor = folder, lambda ids: torch.from_numpy(np.asarray(ids, np.int64))
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)

    def logits(self, windows: Ids, unrounded: bool = False) -> Any:
        return self.model(self.tensor(windows)).logits.numpy()

    def log_probs(
        self, windows: Any, positions: Ids, ids: Ids, seconds: float, unrounded: bool = False
    ) -> tuple[Any, Any]:
        end, said = time.monotonic() + seconds, []
        for window in windows:
            if time.monotonic() < end:
                said.append(self.model(self.tensor(window[None])).logits[0].log_softmax(-1).numpy())
        done = int(np.searchsorted(positions, sum(map(len, said))))
        at = np.concatenate(said)[positions[:done]] if said else np.empty((0, self.model.config.vocab_size))
        return np.take_along_axis(at, ids[:done], -1), at.argmax(-1).astype(np.int32)

    def continued(self, prompts: Sequence[Ids], new_tokens: int) -> list[list[int]]:
        options = {"max_new_tokens": new_tokens, "do_sample": False}
        found = (self.model.generate(self.tensor(prompt[None]), **options) for prompt in prompts)
        return [tokens[0, len(prompt) :].tolist() for prompt, tokens in zip(prompts, found, strict=True)]

    def spoken(self, texts: Any, chats: Any) -> Spoken:
        return Packages().spoken(self.folder, texts, chats)  # the same library reads the same file

    def generate(self, prompt: str, max_tokens: int) -> Iterator[str]:
        tokens = Tokenization(self.folder)
        ids = prompt_ids(self.folder, tokens, prompt, self.model.config.max_position_embeddings)
        return tokens.stream(iter(self.continued([np.array(ids)], max_tokens)[0]))


class Here(Engine):
    def speaker(self, folder: Path) -> Speaker:
        return Transformers(folder)


class Halves(Runtime):
    name, device_kinds, activations, deploys = "halves", ("cpu", "cuda"), FLOAT, ("scales", "codes")
    packages, caches = Packages(), (FLOAT16,)

    def holding(self, spec: ModelSpec) -> Holding:
        return Holding(spec)

    def pricing(self, spec: ModelSpec, workload: Workload, device: DeviceProfile) -> BandwidthPricing:
        return BandwidthPricing(spec, workload, device, Holding(spec), USUAL, self.name, "", FLOAT16)

    def versions(self) -> dict[str, str]:
        return {}

    def engine(self) -> Engine:
        if find_spec("transformers") is None:
            raise NotInstalledError("the halves runtime needs transformers; run: pip install 'bitfleet[train]'")
        return Here()
