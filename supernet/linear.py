"""Modules that hold every choice of one matrix and compute with the selected one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from records.errors import InputError
from supernet.adapters import Adapter
from supernet.adapters.base import frozen_product
from supernet.grids import QuantizedWeight, Stored
from supernet.space import Choice
from supernet.spec import Channels

ROWS = 2**12  # of a table that are made at a time
TOGETHER = "+"  # joins the choices that share an adapter, in its name


class Quantized(nn.Module):
    """Every stored choice of one matrix: the parts that its grid keeps as buffers, adapters as parameters.

    The buffers may be this process's parts alone (`supernet.shard`): `stored` joins what is there.

    `adapters` names each by the choices that it serves, such as `int2g64` or `int2g64+int3g64`. A choice that keeps
    some `channels` is a part of the whole one and shares its codes and its adapter.
    """

    def __init__(self, weights: Mapping[Choice, Stored], channels: Channels | None = None) -> None:
        super().__init__()
        if not weights:
            raise ValueError("a quantized matrix needs at least one choice, got none")
        self.choices = tuple(sorted(weights))
        self.choice = self.choices[-1]
        self.channels = channels
        self.in_features = next(iter(weights.values())).in_features
        self.joins = {choice: weight.join for choice, weight in weights.items()}
        self.parts = {choice: tuple(weight.parts) for choice, weight in weights.items()}
        for choice, weight in weights.items():
            for name, part in weight.parts.items():
                self.register_buffer(f"{choice}_{name}", part)
        self.adapters = nn.ModuleDict()

    def select(self, choice: Choice) -> None:
        if choice.whole not in self.choices or (choice.kept is not None and not self.channels):
            have = ", ".join(map(str, self.choices))
            raise InputError(f"a choice must be one the supernet holds, got {choice}; it holds {have}")
        if choice.kept is not None and self.channels and choice.kept >= self.channels.count:
            raise ValueError(f"kept must be below the block's {self.channels.count} channels, got {choice}")
        self.choice = choice

    def stored(self, choice: Choice) -> QuantizedWeight:
        """The frozen codes of `choice`, without its adapter."""
        whole = choice.whole
        parts = {name: getattr(self, f"{whole}_{name}") for name in self.parts[whole]}
        return self._part(self.joins[whole](parts), choice)

    def _part(self, weight: QuantizedWeight, choice: Choice) -> QuantizedWeight:
        if choice.kept is None:
            return weight
        assert self.channels is not None
        return weight.keep(choice.kept, self.channels)

    def store(self, weight: QuantizedWeight) -> None:
        """Replace the frozen parts of the weight's choice."""
        self.joins[weight.choice] = weight.join
        for name, part in weight.parts.items():
            setattr(self, f"{weight.choice}_{name}", part)

    def keep_here(self, used: Iterable[Choice]) -> None:
        """Send the codes of all other choices to the CPU's memory, until the module is moved again."""
        others = set(self.choices) - {choice.whole for choice in used}
        for name in (f"{choice}_{part}" for choice in others for part in self.parts[choice]):
            setattr(self, name, getattr(self, name).cpu())

    def adapter(self, choice: Choice) -> Adapter | None:
        if choice.kept == 0:
            return None
        for name, adapter in self.adapters.items():
            if str(choice.whole) in name.split(TOGETHER):
                return adapter  # type: ignore[return-value]
        return None

    def adapt(self, choices: Sequence[Choice], adapter: Adapter) -> None:
        """Train `choices` through `adapter`, all of them through this one."""
        self.adapters[TOGETHER.join(map(str, choices))] = adapter

    def drop(self, lost: Iterable[Choice]) -> None:
        """Leave these choices without an adapter."""
        gone = set(map(str, lost))
        kept = {name: [c for c in name.split(TOGETHER) if c not in gone] for name in self.adapters}
        self.adapters = nn.ModuleDict({TOGETHER.join(c): self.adapters[name] for name, c in kept.items() if c})

    @torch.no_grad()
    def fold(self, choice: Choice) -> None:
        """Put the adapter of `choice` into its codes, scales or zeros; a side path stays an adapter."""
        adapter = self.adapter(choice)
        if adapter is not None and adapter.deploys != "side":
            self.store(adapter.fold(self.stored(choice)))
            self.drop([choice])

    @torch.no_grad()
    def effective(self, choice: Choice) -> Tensor:
        """The float32 matrix that `choice` computes with, adapter included; channels that it does not keep are 0."""
        adapter, stored = self.adapter(choice), self.stored(choice.whole)
        whole = adapter.effective(stored) if adapter else stored.dequantize()
        if choice.kept is None:
            return whole
        assert self.channels is not None
        left = torch.zeros_like(whole)
        for start, stop in self.channels.spans(choice.kept):
            at = (slice(start, stop),) if self.channels.parts else (slice(None), slice(start, stop))
            left[at] = whole[at]
        return left


class SuperLinear(Quantized):
    """A linear at every choice."""

    bias: Tensor | None

    def __init__(self, weights: Mapping[Choice, Stored], bias: Tensor | None, channels: Channels | None = None) -> None:
        super().__init__(weights, channels)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, rows: slice | None = None) -> Tensor:
        """What reads channels is given those that are kept; what makes them gives those. Some `rows` alone are for a
        head, which is whole and has no adapter."""
        if rows is not None:
            y = frozen_product(x, self.stored(self.choice).rows(rows))
            return y if self.bias is None else y + self.bias[rows].to(y.dtype)
        makes = self.channels is not None and self.channels.parts > 0
        bias = self.bias
        if self.choice.kept is None:
            weight, adapter = self.stored(self.choice), self.adapter(self.choice)
            y = adapter(x, weight) if adapter else frozen_product(x, weight)
        else:
            y = self._pruned(x, self.choice, makes)
            bias = self._first(bias, self.choice.kept) if makes and bias is not None else bias
        return y if bias is None else y + bias.to(y.dtype)

    def _pruned(self, x: Tensor, choice: Choice, makes: bool) -> Tensor:
        """The product with the kept channels.

        An adapter is not cut but computes the whole, with zeros for the inputs that are gone: pruning saves time where
        codes are multiplied by alone, as in evaluation and in a package, and not in training.
        """
        adapter, kept = self.adapter(choice), choice.kept or 0
        if kept == 0:
            return x.new_zeros(*x.shape[:-1], 0 if makes else self.stored(choice.whole).shape[0])
        if adapter is None:
            return frozen_product(x, self.stored(choice))
        whole = self.stored(choice.whole)
        if makes:
            return self._first(adapter(x, whole), kept)
        return adapter(nn.functional.pad(x, (0, self.in_features - kept)), whole)

    def _first(self, values: Tensor, kept: int) -> Tensor:
        """Of `(..., out_features)`, the kept channels."""
        assert self.channels is not None
        return torch.cat([values[..., start:stop] for start, stop in self.channels.spans(kept)], dim=-1)


class SuperEmbedding(Quantized):
    """A token embedding at every choice. Where `tied`, the model's head reads it through `TiedHead`."""

    def __init__(self, weights: Mapping[Choice, Stored], embedding: nn.Embedding, dtype: torch.dtype) -> None:
        super().__init__(weights)
        self.dtype = dtype
        # some models scale the embedding's output (Gemma): keep the factor that their module applies
        self.embed_scale = getattr(embedding, "embed_scale", None)
        self._table: tuple[Choice, torch.dtype, Tensor] | None = None

    def store(self, weight: QuantizedWeight) -> None:
        self._table = None
        super().store(weight)

    def table(self) -> Tensor:
        """The selected choice's matrix. It has no adapter and is read whole by a head, so it is kept."""
        table = self._at_hand
        if table is None:
            table = self._made()
            self._table = (self.choice, self.dtype, table)
        return table

    @torch.no_grad()
    def _made(self) -> Tensor:
        """Some rows at a time: on the way a weight takes several times its bytes."""
        stored = self.stored(self.choice)
        found = torch.empty(stored.shape, dtype=self.dtype, device=stored.device)
        start = 0
        for rows in stored.split(ROWS):
            made = rows.dequantize()
            found[start : start + len(made)] = made
            start += len(made)
        return found

    @property
    def _at_hand(self) -> Tensor | None:
        return self._table[2] if self._table is not None and self._table[:2] == (self.choice, self.dtype) else None

    def rows(self, which: Tensor | slice) -> Tensor:
        """Some rows of `table`, which is not made for them."""
        table = self._at_hand
        return self.stored(self.choice).rows(which).dequantize().to(self.dtype) if table is None else table[which]

    def forward(self, ids: Tensor) -> Tensor:
        """A pass with gradients reads the whole table at its head; others may read rows alone."""
        if self._at_hand is None and not torch.is_grad_enabled():
            found, places = ids.unique(return_inverse=True)
            rows = self.rows(found)[places]
        else:
            rows = nn.functional.embedding(ids, self.table())
        return rows if self.embed_scale is None else rows * self.embed_scale.to(rows.dtype)


class TiedHead(nn.Module):
    """The head of a model whose embedding and head are one matrix."""

    def __init__(self, embedding: SuperEmbedding) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple: the embedding's buffers belong to the embedding alone

    @property
    def embedding(self) -> SuperEmbedding:
        return self._embedding[0]

    def forward(self, x: Tensor, rows: slice | None = None) -> Tensor:
        table = self.embedding.table() if rows is None else self.embedding.rows(rows)
        return nn.functional.linear(x, table.to(x.dtype))
