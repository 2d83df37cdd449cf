"""What an error of a linear's weights costs, from a little text: a Hessian for each linear, block by block.

    H = sum over tokens of  f x x^T,    f = |g| ^ (2 POWER)

with x what the linear reads, and g the gradient of log p(y) with respect to what it makes, y drawn from the model.
GPTQ's own H takes all tokens alike (f = 1), and is ruled by the few whose activations are enormous and whose errors
hardly matter. With a power of 1, f is the token's Fisher information, summed over outputs: GuidedQuant (Kim et al.,
arXiv 2505.07004, section 3) with one group of outputs, and with labels drawn from the model instead of the text's. One
label a token is a noisy estimate, hence a smaller power (docs/log.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from supernet.backward import Report, backward
from supernet.blocks import decoder_layers
from supernet.model import compute_dtype
from supernet.shelf import Shelf

POWER = 0.75  # of a token's Fisher information
STRETCH = 512  # columns whose products with those from them on are made together


def fisher_hessians(
    model: Any, linears: Sequence[str], windows: Tensor, seed: int, report: Report = lambda done, total: None,
    shelf: Shelf | None = None, known: Container[str] = (), outputs: dict[str, Tensor] | None = None,
    read: Counter[str] | None = None,
) -> Iterator[dict[str, Tensor]]:  # fmt: skip
    """The Hessian of each of `linears`, float32 `(in_features, in_features)`: a dict for the head, where what it
    multiplies by is among them, also as the embedding; then one for each decoder block, from the last to the first.

    `windows` are `(n, tokens)`; a block computes in the device's `compute_dtype`. Parts of the model with
    linears that are `known` are left out where the `shelf` has what the others need.

    `outputs`, where given, has for each linear of the block at hand the sum of `|x| ^ (2 POWER) g g^T` over tokens,
    float32 `(out_features, out_features)`: the other factor of the same loss's second derivative, as YAQA has it (Tseng
    et al., arXiv 2505.22988). The head has none. `read` gets how many tokens each linear read: of an expert those that
    chose it.
    """
    layers, head = decoder_layers(model), model.get_output_embeddings()
    modules = {name: model.get_submodule(name) for name in linears}
    names = {head if module.weight is head.weight else module: name for name, module in modules.items()}
    within = [[names[part] for part in whole.modules() if part in names] for whole in (*layers, head)]
    sums: dict[str, Tensor] = {}

    def solved(part: int) -> bool:
        """A part's codes are kept together; of what no token reached there are none yet."""
        return not within[part] or any(name in known for name in within[part])

    makes = {} if outputs is None else outputs
    wanted = set() if outputs is None else {name for part in within[:-1] for name in part}
    tokens = Counter[str]() if read is None else read
    watch = partial(_watch, names=names, sums=sums, makes=makes, wanted=wanted, read=tokens)
    dtype, alone = compute_dtype(windows.device), not any(within[:-1])
    for _ in backward(model, windows, seed, dtype, watch, shelf, solved, report, head_alone=alone):
        if sums:
            yield {name: mirrored(found) for name, found in sums.items()}
            sums.clear()
            makes.clear()


def _watch(
    layer: nn.Module, names: dict[nn.Module, str], sums: dict[str, Tensor], makes: dict[str, Tensor],
    wanted: Container[str], read: Counter[str],
) -> list[Any]:  # fmt: skip
    """Hooks that add a backward pass to the Hessians of the block's linears."""

    def forward(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].detach().flatten(0, -2)
        read[names[module]] += len(x)
        if not len(x):  # an expert that no token chose
            return
        output.register_hook(lambda grad: add(names[module], x.float(), grad.flatten(0, -2).float()))

    @torch.no_grad()
    def add(name: str, x: Tensor, grad: Tensor) -> None:
        fisher = grad.square().sum(-1, keepdim=True)
        if name not in sums:
            sums[name] = x.new_zeros(x.shape[1], x.shape[1])
        add_square(sums[name], x, fisher.pow(POWER))
        if name in wanted:
            if name not in makes:
                makes[name] = x.new_zeros(grad.shape[1], grad.shape[1])
            makes[name].addmm_(grad.T, grad * x.square().sum(-1, keepdim=True).pow(POWER))

    return [module.register_forward_hook(forward) for module in layer.modules() if module in names]


def add_square(total: Tensor, x: Tensor, weights: Tensor) -> None:
    """Add `x^T diag(weights) x` to the upper half of `total`: a symmetric matrix needs no more, and that is nearly half
    the work where it is large. x `(tokens, in_features)`, weights `(tokens, 1)`. The blocks on the diagonal are whole.
    """
    weighed = x * weights
    for start in range(0, x.shape[1], STRETCH):
        stop = min(start + STRETCH, x.shape[1])
        total[start:stop, start:].addmm_(x[:, start:stop].T, weighed[:, start:])


def mirrored(total: Tensor) -> Tensor:
    """The upper half copied to the lower one, in place."""
    for start in range(STRETCH, len(total), STRETCH):
        total[start : start + STRETCH, :start] = total[:start, start : start + STRETCH].T
    return total
