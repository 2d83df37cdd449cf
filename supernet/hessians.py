"""What an error of a linear's weights costs, from a little text: a Hessian for each linear, block by block.

    H = sum over tokens of  f x x^T,    f = |g| ^ (2 POWER)

with x what the linear reads, and g the gradient of log p(y) with respect to what it makes, y drawn from the model.
GPTQ's own H takes all tokens alike (f = 1), and is ruled by the few whose activations are enormous and whose errors
hardly matter. With a power of 1, f is the token's Fisher information, summed over outputs: GuidedQuant (Kim et al.,
arXiv 2505.07004, section 3) with one group of outputs, and with labels drawn from the model instead of the text's. One
label a token is a noisy estimate, hence a smaller power (docs/log.md).

The windows go through the model once and back once, and a block computes where they are for its own turns alone: what
is kept of the way forward is what each block reads, where the model is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from supernet.blocks import AT_ONCE, decoder_layers, first_inputs, layer_arguments, output_of, placed, sent, skipped
from supernet.labels import label_gradient
from supernet.model import compute_dtype, hidden_states, removed_after

POWER = 0.75  # of a token's Fisher information
STRETCH = 512  # columns whose products with those from them on are made together
Report = Callable[[int, int], None]


def fisher_hessians(
    model: Any, linears: Sequence[str], windows: Tensor, seed: int, report: Report = lambda done, total: None
) -> Iterator[dict[str, Tensor]]:
    """The Hessian of each of `linears`, float32 `(in_features, in_features)`: a dict for the head, where what it
    multiplies by is among them, also as the embedding; then one for each decoder block, from the last to the first.

    `windows` are `(n, tokens)`; a block computes in the device's `compute_dtype`.
    """
    device, layers = windows.device, decoder_layers(model)
    dtype = compute_dtype(device)
    there = partial(sent, device=device, dtype=dtype)
    calls = layer_arguments(model, windows[:1])
    head = model.get_output_embeddings()
    modules = {name: model.get_submodule(name) for name in linears}
    names = {head if module.weight is head.weight else module: name for name, module in modules.items()}
    read = [[first_inputs(model, part).to(dtype) for part in windows.split(AT_ONCE)]]
    for number, layer in enumerate(layers):
        with torch.no_grad(), placed(layer, device, dtype):
            arguments = there(calls[number])
            read.append([output_of(layer, there(state), arguments).to(model.device) for state in read[-1]])
        report(number + 1, len(layers))
    sums: dict[str, Tensor] = {}
    with removed_after(_watch(head, names, sums)):
        grads = _last_gradients(model, windows, read.pop(), seed)
    if sums:
        yield {name: mirrored(found) for name, found in sums.items()}
    for number in reversed(range(len(layers))):
        sums = {}
        watched = removed_after(_watch(layers[number], names, sums))
        with placed(layers[number], device, dtype), watched, torch.enable_grad():
            arguments = there(calls[number])
            for part, state in enumerate(read.pop()):
                state = there(state).requires_grad_()
                output_of(layers[number], state, arguments).backward(there(grads[part]))
                grads[part] = state.grad.to(model.device)
        yield {name: mirrored(found) for name, found in sums.items()}


def _last_gradients(model: Any, windows: Tensor, states: Sequence[Tensor], seed: int) -> list[Tensor]:
    """The gradient of log p(y) with respect to what the last block makes, which is `states`."""
    head = model.get_output_embeddings()
    generator = torch.Generator(device=windows.device).manual_seed(seed)
    leaves = [state.detach().requires_grad_() for state in states]
    hidden = []
    for part, leaf in zip(windows.split(AT_ONCE), leaves, strict=True):
        with skipped(decoder_layers(model), leaf), torch.enable_grad():
            hidden.append(hidden_states(model, part.to(model.device)))
    with placed(head, windows.device, states[0].dtype):  # once for all: a head is large
        slopes = [label_gradient(model, part.to(windows.device, states[0].dtype), generator) for part in hidden]
    for part, slope in zip(hidden, slopes, strict=True):
        part.backward(slope.to(part.device, part.dtype))
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def _watch(layer: nn.Module, names: dict[nn.Module, str], sums: dict[str, Tensor]) -> list[Any]:
    """Hooks that add a backward pass to the Hessians of the block's linears."""

    def forward(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].detach().flatten(0, -2)
        output.register_hook(lambda grad: add(names[module], x.float(), grad.flatten(0, -2).float()))

    @torch.no_grad()
    def add(name: str, x: Tensor, grad: Tensor) -> None:
        fisher = grad.square().sum(-1, keepdim=True)
        if name not in sums:
            sums[name] = x.new_zeros(x.shape[1], x.shape[1])
        add_square(sums[name], x, fisher.pow(POWER))

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
