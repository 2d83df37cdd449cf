"""A text's way through a model and back, a decoder block at a time: what every block reads, then every gradient.

The gradient is that of log p(y), y drawn from the model. On the way forward the input of each block is put on a shelf;
on the way back a block is computed once more, with gradients, the last one first. So one block is at work at any time,
and a model may stay elsewhere: in the memory of another device, or in its files (`supernet.absent`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from supernet.absent import present
from supernet.blocks import AT_ONCE, decoder_layers, first_inputs, layer_arguments, output_of, placed, sent, skipped
from supernet.labels import label_gradient
from supernet.model import hidden_states, removed_after
from supernet.shelf import InMemory, Shelf

Watch = Callable[[nn.Module], Sequence[Any]]  # hooks on a part of the model while it goes forward and back
Report = Callable[[int, int], None]


def backward(
    model: Any, windows: Tensor, seed: int | torch.Generator, dtype: torch.dtype, watch: Watch,
    shelf: Shelf | None = None,
    known: Callable[[int], bool] = lambda part: False, report: Report = lambda done, total: None,
    close: Callable[[], object] = lambda: None, head_alone: bool = False,
) -> Iterator[int]:  # fmt: skip
    """Yield the number of each part of the model whose way back is done: that of all blocks for the head, then the
    blocks', the last one first. `watch` gave the hooks that were on it meanwhile, and `close` was called for every few
    windows of `windows` `(n, tokens)` that went back together.

    Blocks compute where the windows are and in `dtype`; what waits for them is where the model is. A `shelf` on disk
    has what a run that was stopped left there: parts that are `known`, whose way back needs no watching, are left out.
    With `head_alone` no block goes back.
    """
    shelf = shelf or InMemory()
    device, layers = windows.device, decoder_layers(model)
    there = partial(sent, device=device, dtype=dtype)
    calls = layer_arguments(model, windows[:1])
    last = len(layers)
    begun = next((part for part in range(last + 1) if shelf.has(_grads(part))), last + 1)

    def done(part: int) -> bool:
        """Gradients of a part are put down when all after it are dealt with."""
        return part > begun or (part == begun and known(part))

    def back(number: int) -> None:
        """Nothing of it stays in memory where the shelf is on disk: what is done with the block needs the room."""
        grads, found = shelf.take(_grads(number + 1)), []
        with placed(layers[number], device, dtype), removed_after(watch(layers[number])), torch.enable_grad():
            arguments = there(calls[number])
            for state, grad in zip(shelf.take(_reads(number)), grads, strict=True):
                leaf = there(state).detach().requires_grad_()
                output_of(layers[number], leaf, arguments).backward(there(grad))
                assert leaf.grad is not None
                found.append(leaf.grad.to(model.device))
                close()
        shelf.put(_grads(number), found)

    if not done(last):
        _forward(model, windows, calls, there, dtype, shelf, report, head_alone)
        with removed_after(watch(model.get_output_embeddings())):
            shelf.put(_grads(last), _last_gradients(model, windows, shelf.take(_reads(last)), seed))
        yield last
    shelf.drop(_reads(last))
    for number in () if head_alone else reversed(range(last)):
        if not done(number):
            back(number)
            yield number
        shelf.drop(_reads(number))
        shelf.drop(_grads(number + 1))


def _reads(number: int) -> str:
    """What a block reads, or for the number of all blocks what comes after them."""
    return f"reads-{number:03}"


def _grads(number: int) -> str:
    return f"gradients-{number:03}"


def _forward(
    model: Any, windows: Tensor, calls: Sequence[dict[str, Any]], there: Callable[[Any], Any], dtype: torch.dtype,
    shelf: Shelf, report: Report, head_alone: bool,
) -> None:  # fmt: skip
    """Put what each block reads on the shelf, from the last that is there; for the head alone nothing but its own."""
    layers = decoder_layers(model)
    begun = [number for number in range(len(layers) + 1) if shelf.has(_reads(number))]
    if not begun:
        with present(model.get_input_embeddings()):
            shelf.put(_reads(0), [first_inputs(model, part).to(dtype) for part in windows.split(AT_ONCE)])
    for number in range(max(begun, default=0), len(layers)):
        states = shelf.take(_reads(number)) if head_alone else shelf.get(_reads(number))
        with torch.no_grad(), placed(layers[number], windows.device, dtype):
            arguments = there(calls[number])
            outputs = [output_of(layers[number], there(state), arguments).to(model.device) for state in states]
        shelf.put(_reads(number + 1), outputs)
        if head_alone:
            shelf.drop(_reads(number))
        report(number + 1, len(layers))


def _last_gradients(model: Any, windows: Tensor, states: Sequence[Tensor], seed: int | torch.Generator) -> list[Tensor]:
    """The gradient of log p(y) with respect to what the last block makes, which is `states`."""
    head = model.get_output_embeddings()
    drawn = seed if isinstance(seed, torch.Generator) else torch.Generator(windows.device).manual_seed(seed)
    leaves = [state.detach().requires_grad_() for state in states]
    hidden = []
    with present(model.get_input_embeddings()):
        for part, leaf in zip(windows.split(AT_ONCE), leaves, strict=True):
            with skipped(decoder_layers(model), leaf), torch.enable_grad():
                hidden.append(hidden_states(model, part.to(model.device)))
    with placed(head, windows.device, states[0].dtype):  # once for all: a head is large
        slopes = [label_gradient(model, part.to(windows.device, states[0].dtype), drawn) for part in hidden]
    for part, slope in zip(hidden, slopes, strict=True):
        part.backward(slope.to(part.device, part.dtype))
    return [leaf.grad for leaf in leaves if leaf.grad is not None]
