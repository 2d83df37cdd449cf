"""A model's decoder blocks, one after the other.

What is learned of a block from the activations it reads needs that block alone. So a text goes through the model once,
as the hidden states between two blocks, and a block is where the computing happens only for its own turn: a model that
does not fit there waits elsewhere.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from records.errors import InputError
from supernet.absent import present
from supernet.mapped import give_back_pages
from supernet.model import hidden_states, removed_after

AT_ONCE = 4  # windows that a pass without gradients takes side by side

_BLOCK = re.compile(r"(?:^|\.)layers\.\d+$")


def decoder_layers(model: Any) -> list[nn.Module]:
    """The decoder's blocks, in order."""
    return [module for name, module in model.named_modules() if _BLOCK.search(name)]


def layer_arguments(model: Any, window: Tensor) -> list[dict[str, Any]]:
    """What the model calls each block with beside its input, read off one window `(1, tokens)`. The first block alone
    computes: the others are only asked what they are given."""
    found: list[dict[str, Any]] = []
    layers, made = decoder_layers(model), list[Any]()
    hooks = [
        layer.register_forward_pre_hook(lambda module, args, kwargs: found.append(dict(kwargs)), with_kwargs=True)
        for layer in layers
    ]
    hooks.append(layers[0].register_forward_hook(lambda module, args, output: made.append(output)))
    with removed_after(hooks), skipped(layers[1:], lambda: made[0]), torch.no_grad():
        model.base_model(input_ids=window.to(model.device), use_cache=False)
    return found


class _Stop(Exception):
    """Enough was seen."""


@torch.no_grad()
def first_inputs(model: Any, windows: Tensor) -> Tensor:
    """What the first block reads of `windows` `(n, tokens)`: `(n, tokens, hidden_size)`."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])
        raise _Stop

    with (
        removed_after([decoder_layers(model)[0].register_forward_pre_hook(keep)]),
        contextlib.suppress(_Stop),
    ):
        model.base_model(input_ids=windows.to(model.device), use_cache=False)
    if not found:
        raise InputError(f"{type(model).__name__} does not run its first block; bitfleet cannot calibrate it")
    return found[0]


def output_of(layer: nn.Module, inputs: Tensor, arguments: dict[str, Any]) -> Tensor:
    """A block's output for `inputs` `(n, tokens, hidden_size)`."""
    return hidden_of(layer(inputs, **arguments))


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block returns: some architectures return more beside them."""
    return output[0] if isinstance(output, tuple) else output


def sent(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The tensors in `value`, however deep, on `device`, and in `dtype` those of floats."""
    from accelerate.utils import recursively_apply, send_to_device

    cast = recursively_apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, value)
    return send_to_device(cast, device)


@contextlib.contextmanager
def placed(module: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Have the module's parameters and buffers on `device`, in `dtype` if given; afterwards they are where they were.

    What is done to buffers meanwhile stays done, except in another `dtype`: then they are as they were.
    """
    with present(module):
        yield from _placed(module, device, dtype)


def _placed(module: nn.Module, device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    home = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), device)
    kept = [(part, *item) for part in module.modules() for item in part.named_parameters(recurse=False)]
    data = [parameter.data for _, _, parameter in kept]
    exact = [] if dtype is None else [(p, *item) for p in module.modules() for item in p.named_buffers(recurse=False)]
    module.to(device, dtype)
    try:
        yield
    finally:
        for (part, name, parameter), values in zip(kept, data, strict=True):
            parameter.data = values  # where it was: coming back would be a copy
            setattr(part, name, parameter)
        module.to(home)
        for part, name, buffer in exact:
            setattr(part, name, buffer)


@contextlib.contextmanager
def skipped(layers: Sequence[nn.Module], last: Any) -> Iterator[None]:
    """Within, these blocks of a model compute nothing: what comes after them reads `last`, or what it gives when it is
    called."""
    for layer in layers:
        layer.forward = lambda *args, **kwargs: last() if callable(last) else last
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def give_back_after_blocks(model: Any) -> None:
    """Have a supernet's model that computes with mapped codes hold those of one block at a time."""
    for layer in decoder_layers(model):
        layer.register_forward_hook(lambda module, args, output: give_back_pages())


@torch.no_grad()
def last_states(
    model: Any, windows: Tensor, report: Callable[[int, int], None] = lambda done, total: None
) -> list[Tensor]:
    """What the head reads of each of `windows` `(n, tokens)` by itself, `(1, tokens, hidden_size)`: the numbers of n
    passes, for which every block is read once."""
    layers, calls = decoder_layers(model), layer_arguments(model, windows[:1])
    with present(model.get_input_embeddings()):
        states = [first_inputs(model, window) for window in windows.split(1)]
        for number, (layer, arguments) in enumerate(zip(layers, calls, strict=True)):
            with present(layer):
                states = [output_of(layer, state, arguments) for state in states]
            report(number + 1, len(layers))
        found = []
        for window, state in zip(windows.split(1), states, strict=True):
            with skipped(layers, state):
                found.append(hidden_states(model, window.to(model.device)))
    return found


def input_sums(
    model: Any, linears: Sequence[str], windows: Tensor, statistic: Callable[[Tensor], Tensor],
    read: Counter[str] | None = None,
) -> Iterator[dict[str, Tensor]]:  # fmt: skip
    """For each decoder block in turn, `statistic` of what each of its linears among `linears` reads, summed.

    `statistic` is given inputs `(tokens, in_features)`, float32; `windows` `(n, tokens)` go through the model once.
    Each block is computed where the windows are, and the hidden states wait where the model is. `read` gets how many
    tokens each linear read.
    """
    from accelerate.utils import send_to_device

    calls = layer_arguments(model, windows[:1])
    states = [first_inputs(model, part) for part in windows.split(AT_ONCE)]
    names = {model.get_submodule(name): name for name in linears}
    tokens = Counter[str]() if read is None else read
    for layer, arguments in zip(decoder_layers(model), calls, strict=True):
        sums: dict[str, Tensor] = {}

        def watch(module: nn.Module, args: tuple[Tensor, ...], sums: dict[str, Tensor] = sums) -> None:
            x = args[0].flatten(0, -2)
            tokens[names[module]] += len(x)
            found = statistic(x.float())
            sums[names[module]] = sums[names[module]] + found if names[module] in sums else found

        hooks = [module.register_forward_pre_hook(watch) for module in layer.modules() if module in names]
        with torch.no_grad(), placed(layer, windows.device), removed_after(hooks):
            there = send_to_device(arguments, windows.device)
            states = [output_of(layer, state.to(windows.device), there).to(model.device) for state in states]
        yield sums
