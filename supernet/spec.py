"""What a model is made of: linears, the units they form, and the geometry of its KV cache.

Plain values with a JSON round trip. Nothing here imports torch, so that planning on cached numbers starts fast;
`supernet.model.spec_of` reads a spec from a Hugging Face config alone, without weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from records.errors import InputError
from records.reading import as_record, check

MOST_LAYERS = 10_000
_COUNTS = (
    "num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "vocab_size", "max_context"
)  # fmt: skip
EMBEDDING = "embedding"
HEAD = "head"
# Roles that make the channels of a feed-forward block as rows, in so many stretches, and roles that read them.
MAKERS = {"gate_proj": 1, "up_proj": 1, "gate_up": 1, "gate_up_proj": 2, "fc1": 1}
MADE_BY = (("gate_proj", "up_proj"), ("gate_up",), ("gate_up_proj",), ("fc1",))  # all that make a block's channels
READERS = ("down", "fc2")
EXPERT_ROLES = {"gate_proj": "expert_gate", "up_proj": "expert_up", "down_proj": "expert_down"}
"""Roles of what a mixture's experts have each, by the last part of the linear's name."""


@dataclass(frozen=True)
class Channels:
    """Where the `count` channels of a feed-forward block lie in a linear: as its rows, in `parts` equal stretches
    (Phi-3 stores gate and up as one linear), or, where `parts` is 0, as its columns."""

    count: int
    parts: int

    def spans(self, kept: int) -> tuple[tuple[int, int], ...]:
        """The rows, or the columns, of the first `kept` channels."""
        return tuple((i * self.count, i * self.count + kept) for i in range(max(self.parts, 1)))


@dataclass(frozen=True)
class LinearSpec:
    """One weight matrix of shape `(out_features, in_features)`; for an embedding, `(vocab_size, hidden_size)`."""

    name: str
    out_features: int
    in_features: int
    bias: bool = False

    def __post_init__(self) -> None:
        for name in ("out_features", "in_features"):
            check(f"{name} of {self.name:.80}", getattr(self, name), int, least=1)

    @property
    def weights(self) -> int:
        return self.out_features * self.in_features


@dataclass(frozen=True)
class UnitSpec:
    """What has a choice of its own: a linear, or several where they are tied (`supernet.ties`).

    `role` is `o`, `down`, `embedding`, `head`, or the last part of the linear's name; `qkv` and `gate_up` where those
    are tied. `layer` is the decoder layer, or None for the embedding and the head.

    Of a mixture of experts, the same matrix of all experts of a layer is one unit: runtimes keep them as one tensor.
    `chosen` is then how many of its experts a token goes through; None where there are no experts. `chosen_by` is how
    many tokens of a text chose each of them (`supernet.quantize` counts); empty where nobody counted, as in a spec that
    is read from a config.
    """

    name: str
    role: str
    layer: int | None
    linears: tuple[LinearSpec, ...]
    chosen: int | None = None
    chosen_by: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.linears:
            raise InputError(f"a unit has at least one linear, {self.name!r:.80} has none")
        if self.chosen is not None and not 1 <= self.chosen <= len(self.experts):
            raise InputError(f"chosen is from 1 to the experts of {self.name:.80}, got {self.chosen}")
        if self.chosen_by:
            self._check_counts()

    def _check_counts(self) -> None:
        found, name = self.chosen_by, f"{self.name:.80}"
        if len(found) != len(self.experts):
            raise InputError(
                f"chosen_by is of each expert of {name}, got {len(found)} numbers for {len(self.experts)} experts"
            )
        if min(found) < 0 or not sum(found) or sum(found) % (self.chosen or 1) or max(found) > self.tokens_counted:
            raise InputError(f"chosen_by of {name} must be of tokens that choose {self.chosen} experts each, it is not")

    @property
    def experts(self) -> tuple[str, ...]:
        """The names of the experts whose linears these are; none where the unit is of no mixture."""
        if self.chosen is None:
            return ()
        return tuple(dict.fromkeys(linear.name.rpartition(".")[0] for linear in self.linears))

    @property
    def tokens_counted(self) -> int:
        """Of how many tokens the choices were counted; 0 where nobody counted."""
        return sum(self.chosen_by) // (self.chosen or 1)

    @property
    def shares(self) -> tuple[float, ...]:
        """For each expert the share of tokens that choose it: as they were counted, all alike where nobody counted."""
        tokens, count = self.tokens_counted, len(self.experts)
        if not tokens:
            return ((self.chosen or 0) / count,) * count if count else ()
        return tuple(chosen_by / tokens for chosen_by in self.chosen_by)

    def experts_read(self, tokens: float) -> float:
        """How many experts are expected to be read by t tokens that choose independently of each other:

            sum over experts e of  1 - (1 - p_e)^t,    p_e the share of tokens that choose e.

        Of shares that add up to the same it is largest where all are alike; E (1 - (1 - k/E)^t) then, of E experts of
        which a token chooses k.
        """
        return sum(1 - (1 - share) ** tokens for share in self.shares)

    def share_read(self, tokens: float) -> float:
        """The share of the unit's weights that a pass over so many tokens reads: all, but for experts."""
        return self.experts_read(tokens) / len(self.experts) if self.chosen is not None else 1.0

    @property
    def share_computed(self) -> float:
        """The share of the unit's weights that one token is multiplied by: all, but for experts."""
        return self.chosen / len(self.experts) if self.chosen is not None else 1.0

    @property
    def widest(self) -> int:
        """Values of a token that its products make at most side by side: every expert that it chose makes its own."""
        return max(linear.out_features for linear in self.linears) * (self.chosen or 1)

    @property
    def weights(self) -> int:
        return sum(linear.weights for linear in self.linears)

    @property
    def products(self) -> dict[int, int]:
        """All out_features by in_features: linears that read the same input may be computed as one product."""
        found = dict[int, int]()
        for linear in self.linears:
            found[linear.in_features] = found.get(linear.in_features, 0) + linear.out_features
        return found

    @property
    def is_table(self) -> bool:
        """Whether this is the embedding or the head: as wide as the vocabulary, and never trained."""
        return self.role in (EMBEDDING, HEAD)

    @property
    def channels(self) -> Channels | None:
        """The feed-forward channels in each of the unit's linears; None for a unit of another kind."""
        linear = self.linears[0]
        if self.role in MAKERS:
            return Channels(linear.out_features // MAKERS[self.role], MAKERS[self.role])
        return Channels(linear.in_features, 0) if self.role in READERS else None

    def kept_weights(self, kept: int | None) -> int:
        """How many weights are left with `kept` channels; None keeps them all."""
        if kept is None:
            return self.weights
        assert self.channels is not None
        return self.weights * kept // self.channels.count


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only language model as the planner sees it.

    `tied` means that the head reads the embedding's weights: there is then an embedding unit and no head unit.
    `float_parameters` counts what is never quantized (norms, biases). `rotary_dim` is how many of a head's values
    rotate with the position; 0 where the model has no rotary embedding. `windows` says for each layer how many tokens,
    itself included, a token sees; None sees all of them, and an empty tuple means that all layers do. `ropes` names the
    kinds of rotary embedding, one for each that the layers use. `activation` is what the feed-forward blocks bend with.
    `features` names whatever else the architecture can be switched to by its config and this model is.

    `max_context` is how far the model means one function: a rotary embedding that changes every position once the text
    is longer than it was trained on ends there.
    """

    name: str
    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int
    tied: bool
    float_parameters: int
    units: tuple[UnitSpec, ...]
    rotary_dim: int = 0
    windows: tuple[int | None, ...] = ()
    ropes: tuple[str, ...] = ()
    activation: str = "silu"
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [unit.name for unit in self.units]
        if len(set(names)) != len(names):
            raise InputError("unit names must be unique within a model")
        for name in _COUNTS:
            check(name, getattr(self, name), int, least=1)
        for name in ("float_parameters", "rotary_dim"):
            check(name, getattr(self, name), int, least=0)
        if self.num_layers > MOST_LAYERS:
            raise InputError(f"num_layers must be at most {MOST_LAYERS}, got {self.num_layers}")
        if any(unit.layer is not None and not 0 <= unit.layer < self.num_layers for unit in self.units):
            raise InputError(f"layers of units are from 0 to {self.num_layers - 1}, some are not")
        if self.windows and len(self.windows) != self.num_layers:
            raise InputError(f"windows are given for each of {self.num_layers} layers or not at all")

    def unit(self, name: str) -> UnitSpec:
        for unit in self.units:
            if unit.name == name:
                return unit
        raise KeyError(f"{self.name} has no unit {name!r}")

    @property
    def head(self) -> UnitSpec:
        """The unit that the head multiplies by."""
        return next(unit for unit in self.units if unit.role == (EMBEDDING if self.tied else HEAD))

    @property
    def widest(self) -> int:
        """Values of a token that a unit of the decoder makes at most."""
        return max(unit.widest for unit in self.units if not unit.is_table)

    @property
    def feed_forwards(self) -> tuple[tuple[UnitSpec, ...], ...]:
        """The feed-forward blocks that can lose channels: the units that make them, then the one that reads them."""
        blocks: dict[str, list[UnitSpec]] = {}
        for unit in self.units:
            if unit.channels is not None:
                blocks.setdefault(unit.name.rpartition(".")[0], []).append(unit)
        return tuple(found for block in blocks.values() if (found := _makers_and_reader(block)))

    @property
    def experts(self) -> int:
        """How many experts a layer has; 0 where the model is dense."""
        return max((len(unit.experts) for unit in self.units), default=0)

    def counted(self, tokens: Mapping[str, int]) -> ModelSpec:
        """The same with how many tokens chose each expert: as many as each of its linears read. A layer of whose
        experts none read any was not counted."""

        def of(unit: UnitSpec) -> UnitSpec:
            read = tuple(tokens.get(linear.name, 0) for linear in unit.linears)
            return replace(unit, chosen_by=read) if unit.chosen is not None and any(read) else unit

        return replace(self, units=tuple(map(of, self.units)))

    @property
    def linear_weights(self) -> int:
        """Weights in the decoder's linears, without embedding and head."""
        return sum(unit.weights for unit in self.units if not unit.is_table)

    def kv_bytes_per_token(self, bytes_per_value: int) -> int:
        """Bytes that one token adds to the KV cache: keys and values of every layer's KV heads."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_value

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelSpec:
        return cast(ModelSpec, as_record(cls, data, "a model"))


def _makers_and_reader(block: list[UnitSpec]) -> tuple[UnitSpec, ...] | None:
    makers = [unit for unit in block if unit.role in MAKERS]
    readers = [unit for unit in block if unit.role in READERS]
    if tuple(sorted(unit.role for unit in makers)) not in MADE_BY or len(readers) != 1:
        return None
    counts = {unit.channels.count for unit in (*makers, *readers) if unit.channels}
    return (*makers, *readers) if len(counts) == 1 else None
