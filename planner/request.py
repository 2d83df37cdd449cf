"""What is asked of a plan: the workload to serve and the budget to serve it in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from records.errors import InputError
from records.reading import LARGEST, as_record
from supernet.spec import ModelSpec

_DECIMAL = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BYTES = _DECIMAL | {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_MS = {"ms": 1.0, "s": 1000.0}
_CACHE = re.compile(r"[a-z0-9_]{1,20}(,[a-z0-9_]{1,20}){0,9}")
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]+)\s*", re.IGNORECASE | re.ASCII)

DEFAULT_CONTEXT = 4096
MAX_CONTEXT, MOST_CONTEXT = "max", 10**9
DEFAULT_PROMPT_TOKENS = 128
MOST_SEQUENCES = 2**16  # of a batch
MOST_GPUS = 64  # in one machine
SLOWEST_TPS, FASTEST_TPS = 0.001, 1e6


def parse_bytes(text: str) -> int:
    """Bytes of `8GB`, `8GiB`, `8192MB`, `0.5 GB`: GB is 10^9, GiB 2^30, in any case. InputError for anything else."""
    accepted = "a size is a number and a unit like 8GB, 8GiB, 8192MB or 0.5 GB (B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)"
    return round(_quantity(text, _BYTES, accepted, 1))


def parse_duration(text: str) -> float:
    """Milliseconds of `20ms` or `0.5s`. InputError for anything else."""
    accepted = "a time is a number and a unit like 20ms or 0.5s (ms, s)"
    return _quantity(text, _MS, accepted, 0.001)


def parse_loss(text: str) -> float:
    """Nats of KL a token of `0.02` or of `2%` of perplexity. InputError for anything else.

    KL a token is what the logarithm of perplexity grows by, on average over text that the full model itself writes; on
    other text perplexity grows by more or less, as luck has it. So `2%` are ln 1.02 nats.
    """
    accepted = "a loss is nats of KL a token such as 0.02, or a share of perplexity such as 2%"
    match = re.fullmatch(r"\s*(\d{1,4}(?:\.\d{0,9})?|\.\d{1,9})\s*(%?)\s*", text, re.ASCII)
    if match is None:
        raise InputError(f"{accepted}, got {text!r:.80}")
    value = math.log1p(float(match[1]) / 100) if match[2] else float(match[1])
    if value <= 0:
        raise InputError(f"{accepted}, above zero, got {text!r:.80}")
    return value


@dataclass(frozen=True)
class ContextRange:
    """Tokens of context, from `shortest` to `longest`, of which planning takes as many as the limits leave room for.
    `open` where nobody named the ends: all that a model can, once `of` was told which."""

    shortest: int
    longest: int
    open: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.shortest < self.longest:
            raise InputError(f"a range of contexts is like 2048..8192, got {self.shortest}..{self.longest}")

    def of(self, spec: ModelSpec, prompt_tokens: int | None = None) -> ContextRange:
        """With the model's own ends where none were named."""
        if not self.open:
            return self
        least = max(2 * DEFAULT_PROMPT_TOKENS, (prompt_tokens or 0) + 1)
        return ContextRange(min(least, spec.max_context - 1), spec.max_context, open=True)

    def contexts(self, step: int) -> list[int]:
        """The ends, and the multiples of `step` between them; ascending."""
        return [self.shortest, *range((self.shortest // step + 1) * step, self.longest, step), self.longest]


def parse_context(text: str) -> int | ContextRange:
    """Tokens of `4096`, of a range `2048..8192`, or of all that a model can for `max`. InputError for anything else."""
    match = re.fullmatch(r"(\d{1,9})(?:\.\.(\d{1,9}))?", text.strip(), re.ASCII)
    if text.strip() == MAX_CONTEXT:
        return ContextRange(1, MOST_CONTEXT, open=True)
    if match is None:
        raise InputError(f"a context is tokens such as 4096, a range 2048..8192, or {MAX_CONTEXT}, got {text!r:.80}")
    return int(match[1]) if match[2] is None else ContextRange(int(match[1]), int(match[2]))


def time_limit(
    latency: float | None, target_tps: float | None, names: tuple[str, str] = ("--latency", "--target-tps")
) -> float | None:
    """Milliseconds that a token may take: `latency`, or that of `target_tps` tokens a second. InputError, by the
    `names` that they were given as, where both are and differ."""
    if target_tps is None:
        return latency
    if not SLOWEST_TPS <= target_tps <= FASTEST_TPS:
        raise InputError(
            f"{names[1]} is {SLOWEST_TPS:g} to {FASTEST_TPS:,.0f} tokens a second, such as 20, got {target_tps:g}"
        )
    wanted = 1000 / target_tps
    if latency is not None and not math.isclose(latency, wanted, rel_tol=1e-3):
        raise InputError(
            f"{names[1]} {target_tps:g} is {wanted:.4g} ms a token, {names[0]} says {latency:.4g} ms; give one of them"
        )
    return wanted


def host_limit(asked: int | None, hosted: bool, names: tuple[str, str] = ("--host-mem", "--host")) -> int | None:
    """Bytes of a host's memory that were `asked` for. InputError, by the `names` that they are given as, where it is
    not known what machine the device is in."""
    if asked is not None and not hosted:
        raise InputError(f"{names[0]} limits what the machine of a GPU gives: name that with {names[1]}")
    return asked


def _quantity(text: str, units: Mapping[str, float], accepted: str, least: float) -> float:
    match = _QUANTITY.fullmatch(text)
    factor = units.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise InputError(f"{accepted}, got {text!r:.80}")
    value = float(match[1]) * factor
    if not least <= value < LARGEST:
        raise InputError(f"{accepted} above zero, got {text!r:.80}")
    return value


@dataclass(frozen=True)
class Workload:
    """What the package will serve: `batch` sequences of up to `context` tokens, prompts of `prompt_tokens`.

    `kv_cache` names how keys and values are kept, in the runtime's own word; None is what the runtime does unasked.
    `auto`, or several with commas, leave it to planning, and a plan's workload has what was decided.

    `gpu_layers` is how many layers are on a GPU beside a host, as the runtime counts them; None leaves that to planning
    where there is anything to decide.

    `gpus` are alike and divide the model: what is said of the device's memory is said of each of them.
    """

    context: int
    batch: int = 1
    prompt_tokens: int = DEFAULT_PROMPT_TOKENS
    kv_cache: str | None = None
    gpu_layers: int | None = None
    gpus: int = 1

    def __post_init__(self) -> None:
        for name in ("context", "batch", "prompt_tokens", "gpus"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.gpu_layers is not None and self.gpu_layers < 1:
            raise InputError(f"gpu_layers must be at least 1, got {self.gpu_layers}")
        if self.gpus > MOST_GPUS:
            raise InputError(f"gpus must be at most {MOST_GPUS}, got {self.gpus}")
        if self.batch > MOST_SEQUENCES:
            raise InputError(f"batch must be at most {MOST_SEQUENCES}, got {self.batch}")
        if self.kv_cache is not None and not _CACHE.fullmatch(self.kv_cache):
            raise InputError(f"kv_cache names a type such as q8_0, got {self.kv_cache!r:.40}")
        if self.context < 2:
            raise InputError(f"context must be at least 2, a prompt's token and an answer's, got {self.context}")
        if self.prompt_tokens >= self.context:  # an answer needs room, too
            raise InputError(f"prompt_tokens must be below the context of {self.context}, got {self.prompt_tokens}")

    @property
    def has_second_token(self) -> bool:
        """Whether there is room for a second token after the prompt: without one nothing has a time per token."""
        return self.context > self.prompt_tokens + 1

    @classmethod
    def for_model(
        cls, spec: ModelSpec, context: int | None = None, batch: int = 1, prompt_tokens: int | None = None,
        kv_cache: str | None = None,
    ) -> Workload:  # fmt: skip
        """With what was not asked filled in: a context of 4096 tokens or what the model can, a prompt of 128
        or half the context."""
        context = min(DEFAULT_CONTEXT, spec.max_context) if context is None else context
        prompt_tokens = min(DEFAULT_PROMPT_TOKENS, max(1, context // 2)) if prompt_tokens is None else prompt_tokens
        workload = cls(context, batch, prompt_tokens, kv_cache)
        workload.check(spec)
        return workload

    def check(self, spec: ModelSpec) -> None:
        """InputError for a context that the model was not made for."""
        if self.context > spec.max_context:
            raise InputError(
                f"context must be at most the {spec.max_context} tokens of {spec.name}, got {self.context}; "
                f"use --context {spec.max_context}"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Workload:
        return cast(Workload, as_record(cls, data, "a workload"))


@dataclass(frozen=True)
class Asked:
    """A workload as it is asked for before the model is known, field by field as in `Workload`; None is "not said"."""

    context: int | ContextRange | None = None
    batch: int = 1
    prompt_tokens: int | None = None
    kv_cache: str | None = None
    gpu_layers: int | None = None
    gpus: int = 1

    def of(self, spec: ModelSpec) -> tuple[Workload, ContextRange | None]:
        """What a package of the model shall serve; where the context is left open its shortest, and the contexts to
        choose from. InputError for what the model was not made for."""
        if not isinstance(self.context, ContextRange):
            return self._workload(spec, self.context), None
        contexts = self.context.of(spec, self.prompt_tokens)
        shortest = self._workload(spec, contexts.shortest)
        replace(shortest, context=contexts.longest).check(spec)
        return shortest, contexts

    def _workload(self, spec: ModelSpec, context: int | None) -> Workload:
        made = Workload.for_model(spec, context, self.batch, self.prompt_tokens, self.kv_cache)
        return replace(made, gpu_layers=self.gpu_layers, gpus=self.gpus)


@dataclass(frozen=True)
class Budget:
    """What may be spent: peak memory of the process, time per token, time to first token, disk; None is no limit.

    `max_kl` is what may be lost, in nats of KL a token: where it is given, the smallest within it is asked for.
    For a GPU beside a host `memory_bytes` are the GPU's and `host_memory_bytes` the host's; None is all that it has.
    """

    memory_bytes: int
    tpot_ms: float | None = None
    ttft_ms: float | None = None
    disk_bytes: int | None = None
    max_kl: float | None = None
    host_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value > 0:
                raise InputError(f"{name} must be above zero, got {value}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Budget:
        return cast(Budget, as_record(cls, data, "a budget"))
