"""What every runtime promises the planner, as tests that run on any: subclass `RuntimeContract`, and name the runtime.

    from planner.testing.contract import RuntimeContract

    class TestMine(RuntimeContract):
        runtime = Mine()

        def weights(self, folder, spec): ...  # reads a package back

Only `runtime` must be given; what else is said makes more of the tests check something.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax

from planner.costs import Costs
from planner.request import Workload
from planner.runtimes.base import BASES, DECODE, PREFILL, Runtime
from planner.runtimes.engine import Engine
from planner.runtimes.source import FoldedMatrix, PackageSource, dequantized
from planner.testing.models import tiny_model
from planner.testing.supernets import RoundedSupernet
from profiles.device import KINDS, DeviceProfile
from records.errors import InputError, NotInstalledError
from supernet.formats import FORMATS
from supernet.space import Choice, Subnet
from supernet.spec import EMBEDDING, LinearSpec, ModelSpec, UnitSpec
from supernet.ties import apart

DEVICE = DeviceProfile(
    name="test", kind="cpu", vendor="test", model="test", memory_bytes=2**34, measured=False, source="test",
    date="2026-01-01", threads=1, bandwidth_bytes_per_s=2e10, bandwidth_basis="datasheet", int8_ops_per_s=1e12,
    bf16_ops_per_s=1e12,
)  # fmt: skip
WORKLOAD = Workload(128, 1, 32)
GROUP_SIZES = (32, 64)
WRONG_GROUP_SIZE = 48  # divides no row of a model
TEXTS = ("a b", "é\n", "")
CHAT = ({"role": "user", "content": "hi"},)
HEAVY = ("torch", "transformers")
MOST_SUBNETS = 64
BESIDE = ("probes.json", "proof.safetensors")  # what stands in every package beside what its runtime reads


class RuntimeContract:
    """Subclasses are named `Test...`; the attributes and methods before the first test are theirs to give."""

    runtime: ClassVar[Runtime]
    engine_needs: ClassVar[tuple[str, ...]] = ()
    """The modules that the engine imports. Without them `engine()` says what to install, and planning works."""
    most_kl: ClassVar[float] = 0.01
    """Nats a token by which the engine may differ from the subnet, where it runs here."""

    def source(self, folder: Path) -> PackageSource:
        """The tiny supernet that packages are made of, in the new `folder`; of an architecture that is held."""
        return RoundedSupernet(tiny_model(folder, hidden_size=256))

    def weights(self, folder: Path, spec: ModelSpec) -> Mapping[str, NDArray[np.float32]]:
        """The matrices that a package holds, by the name of the linear, as many as there is a reader for."""
        return {}

    def stored(self, unit: UnitSpec, choice: Choice, folded: FoldedMatrix) -> NDArray[np.float32]:
        """What a package must hold of a matrix: the very weights, unless the runtime's docs say what is rounded."""
        return dequantized(folded)

    # What follows are the tests, and what they share.

    @pytest.fixture(scope="class")
    @classmethod
    def files(cls, tmp_path_factory: pytest.TempPathFactory) -> PackageSource:
        return cls().source(tmp_path_factory.mktemp("source") / "model")

    def test_it_says_what_it_is(self) -> None:
        runtime = self.runtime
        assert runtime.name and runtime.name.isascii() and runtime.name.islower()
        assert runtime.device_kinds and runtime.deploys and runtime.activations
        assert runtime.packages.weight_files
        for kind in KINDS:
            refused = runtime.device_refusal(replace(DEVICE, kind=kind))
            if kind not in runtime.device_kinds:
                assert refused is not None and kind in refused and one_line(refused)

    def test_it_holds_something_and_says_why_not(self, files: PackageSource) -> None:
        spec = self.runtime.tied(files.spec)
        holding = self.runtime.holding(spec)
        assert holding.refusal() is None
        assert len({subnet.digest for subnet in loadable(self.runtime, spec)}) > 1
        refusals = [holding.unit_refusal(unit, choice) for unit in spec.units for choice in choices()]
        assert all(reason is None or one_line(reason) for reason in refusals)
        refusal = holding.unit_refusal(spec.units[1], Choice(4, WRONG_GROUP_SIZE))
        assert refusal is not None and str(WRONG_GROUP_SIZE) in refusal and one_line(refusal)

    def test_an_unknown_architecture_is_refused_by_name(self) -> None:
        unit = UnitSpec("embed", EMBEDDING, None, (LinearSpec("embed", 64, 64),))
        spec = ModelSpec("odd", "OddForCausalLM", 1, 64, 1, 1, 64, 64, 64, True, 0, (unit,))
        refusal = self.runtime.holding(spec).refusal()
        assert refusal is not None and "OddForCausalLM" in refusal and one_line(refusal)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"features": ("clip_qkv",)}, "clip_qkv"),
            ({"ropes": ("rope of tomorrow",)}, "rope of tomorrow"),
            ({"windows": (0, None)}, "window"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_it_would_lose_of_a_model_is_refused_by_name(
        self, files: PackageSource, changes: dict[str, Any], reason: str
    ) -> None:
        refusal = self.runtime.holding(replace(files.spec, **changes)).refusal()
        assert refusal is not None and reason in refusal and one_line(refusal)

    def test_units_that_it_ties_are_the_model_s_and_tied_once(self, files: PackageSource) -> None:
        groups = self.runtime.ties(files.spec)
        found = [unit for group in groups for unit in group]
        assert set(found) <= names(files.spec) and len(set(found)) == len(found)
        assert self.runtime.ties(self.runtime.tied(files.spec)) == ()

    def test_siblings_that_differ_are_written_or_said_to_be_tied(self, files: PackageSource, tmp_path: Path) -> None:
        """Bytes are promised for whatever may be written; where units are tied, the reason names them."""
        low, *_, high = loadable(self.runtime, files.spec)
        turns = enumerate(unit for unit, _ in low)
        mix = Subnet.of({unit: (low if number % 2 else high)[unit] for number, unit in turns})
        if groups := self.runtime.ties(files.spec):
            parts = ", ".join(unit.rpartition(".")[2] for unit in groups[0])
            with pytest.raises(InputError, match=f"^{self.runtime.name} computes {parts} of .* together") as caught:
                self.written(files, mix, tmp_path / "mix")
            assert one_line(str(caught.value))
            return
        folder = self.written(files, mix, tmp_path / "mix")
        predicted = Costs.of(self.runtime, files.spec, WORKLOAD, DEVICE, files.model_dir).disk_bytes(mix)
        assert predicted == sum((folder / name).stat().st_size for name in self.runtime.packages.weight_files)

    def test_estimates_are_additive_over_units(self, files: PackageSource) -> None:
        """The exact solver relies on it: changing one unit changes the items of that unit, and no others."""
        spec = self.runtime.tied(files.spec)
        pricing = self.runtime.pricing(spec, WORKLOAD, DEVICE)
        first, *_, last = loadable(self.runtime, spec)
        parts: tuple[Callable[[Subnet], Sequence[Any]], ...] = (
            pricing.memory,
            lambda subnet: pricing.latency(subnet, PREFILL),
            lambda subnet: pricing.latency(subnet, DECODE),
        )
        for unit in spec.units:
            changed = first.replace(unit.name, last[unit.name])
            for items in parts:
                rest = [[item for item in items(subnet) if item.unit != unit.name] for subnet in (first, changed)]
                assert rest[0] == rest[1]

    def test_every_number_says_what_it_rests_on(self, files: PackageSource) -> None:
        spec = self.runtime.tied(files.spec)
        subnet, pricing = next(loadable(self.runtime, spec)), self.runtime.pricing(spec, WORKLOAD, DEVICE)
        memory, latency = pricing.memory(subnet), (*pricing.latency(subnet, PREFILL), *pricing.latency(subnet, DECODE))
        said = [(item.basis, item.unit) for item in memory] + [(item.basis, item.unit) for item in latency]
        assert all(basis in BASES and unit in (None, *subnet.choices) for basis, unit in said)
        assert sum(item.bytes for item in memory) > 0 and sum(item.ms for item in latency) > 0

    def test_predicted_bytes_are_those_of_the_files(self, files: PackageSource, tmp_path: Path) -> None:
        """Of a subnet of each grid; the same subnet gives the same bytes, and its pieces are all of them."""
        for number, subnet in enumerate(of_each_grid(self.runtime, self.runtime.tied(files.spec))):
            folder, again = tmp_path / str(number), tmp_path / f"{number} again"
            for place, threads in ((folder, 1), (again, 1)):
                self.written(files, subnet, place, threads)
            predicted = Costs.of(self.runtime, files.spec, WORKLOAD, DEVICE, files.model_dir).disk_bytes(subnet)
            assert predicted == sum((folder / name).stat().st_size for name in self.runtime.packages.weight_files)
            assert contents(folder) == contents(again)
            self.check_pieces(folder)

    def check_pieces(self, folder: Path) -> None:
        """They cover every file in order, and each tensor is one of them."""
        sizes = listed(folder)
        found = self.runtime.packages.pieces(folder, sizes)
        assert found.keys() == sizes.keys()
        for name, pieces in found.items():
            starts = list(accumulate([0, *(piece.bytes for piece in pieces)]))
            assert [piece.offset for piece in pieces] == starts[:-1] and starts[-1] == sizes[name]
            assert all(piece.bytes > 0 for piece in pieces)
        names = [piece.name for pieces in found.values() for piece in pieces if piece.name]
        assert len(names) == len(set(names))

    def test_every_format_that_is_not_refused_comes_back_exactly(self, files: PackageSource, tmp_path: Path) -> None:
        if type(self).weights is RuntimeContract.weights:
            pytest.skip(f"nothing here reads a package of {self.runtime.name}: give `weights`")
        spec = self.runtime.tied(files.spec)
        for number, subnet in enumerate(covering(self.runtime, spec)):
            folder = self.written(files, subnet, tmp_path / str(number))
            found = self.weights(folder, spec)
            assert found
            for unit in spec.units:
                for linear in unit.linears:
                    if linear.name in found:
                        wanted = self.stored(unit, subnet[unit.name], files.folded(linear.name, subnet[unit.name]))
                        assert np.array_equal(found[linear.name], wanted), f"{linear.name} at {subnet[unit.name]}"

    def test_its_own_packages_pass_its_check(self, files: PackageSource, tmp_path: Path) -> None:
        spec = self.runtime.tied(files.spec)
        folder = self.written(files, next(loadable(self.runtime, spec)), tmp_path / "package")
        for name in BESIDE:
            (folder / name).write_bytes(b"{}")
        self.runtime.packages.check(folder, listed(folder), WORKLOAD)
        assert one_line(self.runtime.packages.launch(folder, WORKLOAD))

    def test_a_package_speaks_as_the_model_does(self, files: PackageSource, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        spec = self.runtime.tied(files.spec)
        folder = self.written(files, next(loadable(self.runtime, spec)), tmp_path / "package")
        tokenizer = AutoTokenizer.from_pretrained(files.model_dir)
        ids, chats, stops = self.runtime.packages.spoken(folder, TEXTS, [CHAT])
        assert ids == [tokenizer.encode(text) for text in TEXTS]
        assert chats == [tokenizer.apply_chat_template(list(CHAT), tokenize=False, add_generation_prompt=True)]
        assert stops == [tokenizer.eos_token_id]

    def test_a_package_answers_as_its_subnet_does(self, files: PackageSource, tmp_path: Path) -> None:
        """Of a subnet of each grid, in the engine; and what serving one takes."""
        import torch

        engine = self.engine()
        ids = np.random.default_rng(0).integers(3, files.spec.vocab_size, (2, 24))
        spec = self.runtime.tied(files.spec)
        for number, subnet in enumerate(of_each_grid(self.runtime, spec)):
            folder = self.written(files, subnet, tmp_path / str(number))
            said = torch.from_numpy(np.array(engine.speaker(folder).logits(ids))).double().log_softmax(-1)
            with torch.no_grad():
                wanted = (
                    files.subnet_model(apart(subnet, spec, files.spec))(torch.from_numpy(ids))
                    .logits.double()
                    .log_softmax(-1)
                )
            kl = float((wanted.exp() * (wanted - said)).sum(-1).mean())
            assert abs(kl) < self.most_kl, f"{kl} nats a token from {subnet.items[1][1]}"
        server = engine.server(folder)
        if server is not None:
            served = server.measure(WORKLOAD)
            assert served.peak_bytes > 0 and served.ttft_ms > 0 and served.tpot_ms > 0

    def test_windows_and_prompts_may_be_of_any_length(self, files: PackageSource, tmp_path: Path) -> None:
        """Tasks ask so: what is said of some tokens, and how it goes on greedily, as its logits have both."""
        folder = self.written(files, next(loadable(self.runtime, self.runtime.tied(files.spec))), tmp_path / "package")
        speaker, rng = self.engine().speaker(folder), np.random.default_rng(0)
        windows = [rng.integers(3, files.spec.vocab_size, length) for length in (7, 3, 12)]
        positions, ids = np.array([2, 6, 9, 21]), rng.integers(0, files.spec.vocab_size, (4, 2))
        found, likeliest = speaker.log_probs(windows, positions, ids, 60.0)
        logits = np.concatenate([speaker.logits(window[None])[0] for window in windows]).astype(np.float64)[positions]
        wanted = np.take_along_axis(log_softmax(logits, axis=-1), ids, 1)
        assert np.abs(found - wanted).max() < 1e-3
        assert likeliest.tolist() == logits.argmax(-1).tolist()
        for window, answer in zip(windows, speaker.continued(windows, 4), strict=True):
            whole = np.concatenate([window, np.array(answer, window.dtype)])
            assert 0 < len(answer) <= 4
            assert answer == speaker.logits(whole[None])[0].argmax(-1)[len(window) - 1 : -1].tolist()

    def engine(self) -> Engine:
        """The runtime's engine; the test is skipped where there is none here."""
        try:
            engine = self.runtime.engine()
        except NotInstalledError as error:
            pytest.skip(str(error))
        if engine is None:
            pytest.skip(f"bitfleet runs nothing of {self.runtime.name}")
        return engine

    def test_without_its_engine_it_plans_and_says_what_to_install(
        self, files: PackageSource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in self.engine_needs:
            monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
        if self.engine_needs:
            with pytest.raises(NotInstalledError, match="pip install") as caught:
                self.runtime.engine()
            assert one_line(str(caught.value)) and self.runtime.name in str(caught.value)
        costs = Costs.of(self.runtime, files.spec, WORKLOAD, DEVICE, files.model_dir)
        subnet = next(loadable(self.runtime, self.runtime.tied(files.spec)))
        assert costs.memory(subnet).total_bytes > 0 and costs.latency(subnet).tpot_ms > 0
        assert costs.disk_bytes(subnet) > 0

    def test_planning_imports_neither_torch_nor_the_engine(self) -> None:
        module = type(self.runtime).__module__
        code = f"import sys, planner.pipeline, {module}; print(*sys.modules)"
        path = f"import sys; sys.path[:] = {sys.path!r}; {code}"
        done = subprocess.run([sys.executable, "-c", path], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert not {*HEAVY, *self.engine_needs} & set(done.stdout.split())

    def written(self, files: PackageSource, subnet: Subnet, folder: Path, threads: int = 1) -> Path:
        """A package of `subnet`, which is in the units that the runtime ties or in the supernet's."""
        folder.mkdir()
        if subnet.choices.keys() != names(files.spec):
            subnet = apart(subnet, self.runtime.tied(files.spec), files.spec)
        self.runtime.packages.write(files, subnet, WORKLOAD, threads, folder)
        return folder


def names(spec: ModelSpec) -> set[str]:
    return {unit.name for unit in spec.units}


def one_line(text: str) -> bool:
    return bool(text) and "\n" not in text


def listed(folder: Path) -> dict[str, int]:
    """The bytes of each file."""
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def choices() -> Iterator[Choice]:
    """Every format, narrow ones first."""
    for bits in range(1, 9):
        for grid, format in FORMATS.items():
            if bits in format.widths:
                sizes = GROUP_SIZES if format.block == 1 else (format.group_size(bits),)
                yield from (Choice(bits, size, grid) for size in sizes)


def held(runtime: Runtime, spec: ModelSpec) -> dict[str, list[Choice]]:
    """The choices that each unit can take."""
    holding = runtime.holding(spec)
    return {unit.name: [c for c in choices() if holding.unit_refusal(unit, c) is None] for unit in spec.units}


def loadable(runtime: Runtime, spec: ModelSpec) -> Iterator[Subnet]:
    """A subnet for each choice that all linears can take; tables that cannot are at the widest that they can."""
    can = held(runtime, spec)
    for choice in choices():
        if all(choice in can[unit.name] for unit in spec.units if not unit.is_table):
            yield Subnet.of({unit: choice if choice in options else options[-1] for unit, options in can.items()})


def of_each_grid(runtime: Runtime, spec: ModelSpec) -> list[Subnet]:
    """The last of `loadable` of each grid that has any, so that little is lost beside what the runtime loses."""
    return list({subnet.items[1][1].grid: subnet for subnet in loadable(runtime, spec)}.values())


def covering(runtime: Runtime, spec: ModelSpec) -> Iterator[Subnet]:
    """Subnets in which each choice that a unit can take is somewhere."""
    can = held(runtime, spec)
    left = {choice for options in can.values() for choice in options}
    for start in count(step=len(can)):
        turns = enumerate(can.items(), start)
        subnet = Subnet.of({unit: options[at % len(options)] for at, (unit, options) in turns})
        left -= {choice for _, choice in subnet}
        yield subnet
        if not left or start > MOST_SUBNETS * len(can):
            return
