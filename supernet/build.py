"""A supernet from its parts: every matrix at every choice, the rest as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from records.errors import InputError
from supernet.adapters import Adapter
from supernet.experts import unstacked
from supernet.grids import QuantizedWeight, Stored
from supernet.linear import Quantized, SuperEmbedding, SuperLinear, TiedHead
from supernet.model import name_of
from supernet.sharing import Agreement, Decoupled, Sharing
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import ModelSpec

Weights = dict[str, dict[Choice, QuantizedWeight]]


@dataclass
class Supernet:
    """A Hugging Face model whose matrices hold every choice. `activate` makes it one subnet, without training."""

    model: Any
    spec: ModelSpec
    space: SearchSpace
    floats: dict[str, Tensor]  # everything that is never quantized, float32
    matrices: dict[str, Quantized]  # by the linear's name

    def activate(self, subnet: Subnet) -> None:
        for unit in self.spec.units:
            for linear in unit.linears:
                self.matrices[linear.name].select(subnet[unit.name])
        routed = [adapter for adapter in self.adapters(subnet).values() if adapter.routes]
        if routed:
            encoding = self.encode(subnet)
            for adapter in routed:
                adapter.condition(encoding)

    def encode(self, subnet: Subnet) -> Tensor:
        """Every unit's bits, from -1 at its smallest choice to 1 at its largest, `(units,)`."""
        values = []
        for unit, choices in self.space:
            low, high = choices[0].bits, choices[-1].bits
            values.append(2 * (subnet[unit].bits - low) / max(high - low, 1) - 1)
        return torch.tensor(values)

    def adapters(self, subnet: Subnet) -> dict[str, Adapter]:
        """The adapters that `subnet` computes with, by `linear|choice`."""
        pairs = ((lin.name, subnet[unit.name]) for unit in self.spec.units for lin in unit.linears)
        found = ((f"{name}|{choice}", self.matrices[name].adapter(choice)) for name, choice in pairs)
        return {key: adapter for key, adapter in found if adapter is not None}

    @property
    def adapted_bits(self) -> tuple[int, ...]:
        """The bit-widths at which any matrix has an adapter, smallest first."""
        matrices = self.matrices.values()
        return tuple(sorted({c.bits for matrix in matrices for c in matrix.choices if matrix.adapter(c) is not None}))

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Compute in `dtype`. Scales and adapters stay float32."""
        for name, value in self.floats.items():
            _assign(self.model, name, value.to(dtype))
        for matrix in self.matrices.values():
            if isinstance(matrix, SuperEmbedding):
                matrix.dtype = dtype

    def adapt(
        self, adapter: type[Adapter], bits: Sequence[int], seed: int, sharing: Sharing | None = None,
        agreement: Mapping[str, Agreement] | None = None, full: Any = None, **options: Any,
    ) -> None:  # fmt: skip
        """Give every linear adapters at these `bits`, as `sharing` says: one for each choice where it is None.

        `agreement` by unit is for a sharing that measures; `full` is the full model, for adapters that want its
        weights. Adapters there were are replaced; tables have none.
        """
        generator = torch.Generator().manual_seed(seed)
        options = adapter.options(len(self.spec.units)) | options
        for unit in self.spec.units:
            if unit.is_table:
                continue
            adapted = [choice for choice in self.space.whole[unit.name] if choice.bits in bits]
            groups = (sharing or Decoupled()).groups(adapted, (agreement or {}).get(unit.name, {}))
            for linear in unit.linears:
                matrix = self.matrices[linear.name]
                matrix.adapters = nn.ModuleDict()
                weight = None if full is None else full.get_submodule(linear.name).weight
                for group in groups:
                    matrix.adapt(group, adapter(matrix.stored(group[0]), generator, weight, **options))

    def fold(self) -> None:
        """Put every adapter that folds where it belongs."""
        for matrix in self.matrices.values():
            for choice in matrix.choices:
                matrix.fold(choice)

    def weights(self) -> Weights:
        """The frozen weights by linear and choice."""
        return {name: {c: matrix.stored(c) for c in matrix.choices} for name, matrix in self.matrices.items()}


def build(model: Any, spec: ModelSpec, space: SearchSpace, weights: Weights) -> Supernet:
    """The supernet of a full model. The full model stays as it is; what is never quantized is shared with it."""
    quantized = {linear.name for unit in spec.units for linear in unit.linears}
    floats = {
        name: value.detach().float()
        for name, value in model.named_parameters()
        if not (name.endswith(".weight") and name.removesuffix(".weight") in quantized)
    }
    return assemble(model.config, spec, space, floats, weights)


def assemble(
    config: Any,
    spec: ModelSpec,
    space: SearchSpace,
    floats: dict[str, Tensor],
    weights: Mapping[str, Mapping[Choice, Stored]],
    trust_remote_code: bool = False,
) -> Supernet:
    """A supernet from its parts, without the full model."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model = unstacked(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
    head = name_of(model, model.get_output_embeddings())
    matrices: dict[str, Quantized] = {}
    for unit in spec.units:
        for linear in unit.linears:
            old = model.get_submodule(linear.name)
            if unit.role == "embedding":
                new: Quantized = SuperEmbedding(weights[linear.name], old, torch.float32)
            else:
                new = SuperLinear(weights[linear.name], floats.get(f"{linear.name}.bias"), unit.channels)
            matrices[linear.name] = new
            model.set_submodule(linear.name, new)
    if spec.tied:
        embedding = matrices[spec.units[0].linears[0].name]
        assert isinstance(embedding, SuperEmbedding)
        model.set_submodule(head, TiedHead(embedding))
    supernet = Supernet(model, spec, space, floats, matrices)
    supernet.set_dtype(torch.float32)
    left = [name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.is_meta]
    if left:
        raise InputError(f"the supernet lacks weights of its model ({', '.join(left[:3])}); build it again")
    model.eval().requires_grad_(False)
    return supernet


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    """Put `value` where the model's own is; what is on no device yet takes the value's."""
    parent, tail = name.rsplit(".", 1)
    module = model.get_submodule(parent)
    old = getattr(module, tail)
    value = value if old.is_meta else value.to(old.device)
    if isinstance(module, Quantized):  # a linear's bias, a buffer there
        setattr(module, tail, value)
    else:
        setattr(module, tail, nn.Parameter(value, requires_grad=False))


@torch.no_grad()
def extract(supernet: Supernet, subnet: Subnet) -> Any:
    """A plain float32 Hugging Face model whose weights are the subnet's, adapters merged; pruned channels are 0.

    Experts are linears in it.
    """
    supernet.activate(subnet)
    model = unstacked(type(supernet.model)(supernet.model.config))
    state = dict(supernet.floats)
    for unit in supernet.spec.units:
        for linear in unit.linears:
            state[f"{linear.name}.weight"] = supernet.matrices[linear.name].effective(subnet[unit.name])
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = {name for name in missing if supernet.spec.tied and name == "lm_head.weight"}
    if unexpected or set(missing) - tied:
        raise InputError(f"the supernet does not fit its model: {[*missing, *unexpected][:3]}; build it again")
    model.tie_weights()
    return model.eval().requires_grad_(False)
