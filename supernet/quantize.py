"""Codes for every matrix of a full model at every choice, block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from supernet.absent import present
from supernet.blocks import input_sums
from supernet.build import Weights
from supernet.hessians import fisher_hessians
from supernet.memory import release
from supernet.progress import Progress, silent
from supernet.quantizers import RTN, Quantizer
from supernet.shelf import InMemory, Shelf, Solved
from supernet.space import Choice, SearchSpace
from supernet.spec import ModelSpec, UnitSpec

TALL = 8192  # rows
FEW = 2  # matrices at once where memory is short: what `supernet.needs` expects

Stretch = tuple[str, int, Tensor]
"""A linear, and some of its rows from one on."""


def quantize(
    model: Any, spec: ModelSpec, space: SearchSpace, quantizer: Quantizer, windows: Tensor, progress: Progress = silent,
    seed: int = 0, others: Tensor | None = None, shelf: Shelf | None = None,
    unread: Callable[[str], object] = lambda linear: None, chosen_by: Callable[[str, int], object] = lambda *_: None,
) -> Weights:  # fmt: skip
    """Codes for every matrix at every choice. `windows` `(n, tokens)` calibrates quantizers that need a Hessian, and
    `seed` draws what is random about that. `others` are windows of another kind of text, for what the head multiplies
    by: its codes are fitted to a text more than a block's are (docs/log.md).

    Matrices are quantized where the windows are, and their codes wait where the model is. What the head multiplies by
    is a matrix like others, also where it is the embedding too; an embedding by itself is rounded to nearest: its
    inputs are one-hot, so there is no error to spread. An expert that no token chose is rounded likewise, and `unread`
    is told of each of its linears. `chosen_by` is told how many tokens each expert's linear read, where the quantizer
    reads any. A `shelf` keeps the codes of each block as they are found.
    """
    shelf = shelf or InMemory()
    units = {linear.name: unit for unit in spec.units for linear in unit.linears}
    head = head_unit(model, spec)
    read = [name for name, unit in units.items() if not unit.is_table or unit is head]
    found = shelf.known(spec, space)
    of_head = {} if head.linears[0].name in found else _of_head(model, head, quantizer, others, seed, progress)
    makes: dict[str, Tensor] = {}
    tokens = Counter[str]()

    def counted(layer: int | None) -> Mapping[str, int]:
        """How many tokens each expert's linear of a layer read, in this run or in one that was stopped."""
        here = [lin.name for unit in spec.units if unit.chosen and unit.layer == layer for lin in unit.linears]
        return shelf.note(f"chosen-by-{layer}", lambda: {name: tokens[name] for name in here}) if here else {}

    def solve_block(told: Mapping[str, Tensor | None]) -> None:
        """The codes of a block, by what the quantizer is `told` of its inputs."""
        hessians = {name: _evenly(own, of_head.get(name)) for name, own in told.items() if name not in found}

        def solve(part: Stretch) -> Solved:
            name, start, rows = part
            choices, own = space.whole[units[name].name], slice(start, start + len(rows))
            outputs = makes[name][own, own] if name in makes else None
            return _quantized(rows, quantizer, choices, hessians[name], windows.device, model.device, outputs)

        largest_first = sorted(hessians, key=lambda name: model.get_submodule(name).weight.shape[1], reverse=True)
        with present(*(model.get_submodule(name).weight for name in largest_first)):
            parts = [
                (name, number * TALL, rows)
                for name in largest_first
                for number, rows in enumerate(_stretches(model, name))
            ]
            solved: dict[str, list[Solved]] = {name: [] for name in largest_first}
            for (name, *_), part in zip(parts, pool.map(solve, parts), strict=True):
                solved[name].append(part)
        del parts  # the weights are not needed while codes are written
        if solved:
            counted(units[largest_first[0]].layer)  # before the codes, whose tokens are not read again
            found.update(shelf.keep(largest_first[0], {name: _stacked(several) for name, several in solved.items()}))

    with _side_by_side(windows.device, FEW if shelf.streams else None) as pool:
        for told in _hessians(model, spec, read, quantizer, windows, seed, progress, shelf, found, makes, tokens):
            solve_block(told)
            del told  # the next block's come before the loop lets go of it
            if shelf.streams:
                release()
            progress("quantize", len(found), len(units))
    for linear in shelf.note("unread", lambda: [name for name in read if name not in found]):
        unread(linear)
    for layer in range(spec.num_layers):
        for linear, count in counted(layer).items():
            chosen_by(linear, count)
    for name in units.keys() - found.keys():
        found |= shelf.keep(name, {name: rounded(model, name, space.whole[units[name].name])})
    return {name: found[name] for name in units}


def head_unit(model: Any, spec: ModelSpec) -> UnitSpec:
    """What the head multiplies by: the embedding where both are one."""
    weight = model.get_output_embeddings().weight
    return next(u for u in spec.units if u.is_table and model.get_submodule(u.linears[0].name).weight is weight)


def rounded(model: Any, linear: str, choices: Sequence[Choice]) -> Solved:
    """A matrix rounded to nearest at each choice."""
    with present(model.get_submodule(linear)):
        parts = _stretches(model, linear)
        return _stacked([_quantized(rows, RTN(), choices, None, rows.device, rows.device) for rows in parts])


def _stretches(model: Any, linear: str) -> tuple[Tensor, ...]:
    """Of a matrix, rows that are solved at a time: rows do not interact, and a vocabulary has many."""
    weight: Tensor = model.get_submodule(linear).weight.detach()
    return weight.split(TALL)


def _stacked(parts: Sequence[Solved]) -> Solved:
    if len(parts) == 1:
        return parts[0]
    return {
        choice: whole.join({name: torch.cat([part[choice].parts[name] for part in parts]) for name in whole.parts})
        for choice, whole in parts[0].items()
    }


@contextmanager
def _side_by_side(device: torch.device, most: int | None) -> Iterator[ThreadPoolExecutor]:
    """A thread for each core, but `most`, or one where another device computes: the columns of a matrix are rounded one
    after the other, which one core does as fast as several, and matrices do not wait for each other."""
    threads = torch.get_num_threads()
    workers = min(threads, most or threads) if device.type == "cpu" else 1
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool
        finally:
            torch.set_num_threads(threads)  # of the libraries behind torch, some know one number for all threads


def _hessians(
    model: Any, spec: ModelSpec, linears: list[str], quantizer: Quantizer, windows: Tensor, seed: int,
    progress: Progress, shelf: Shelf, known: Container[str], makes: dict[str, Tensor], tokens: Counter[str],
) -> Iterator[Mapping[str, Tensor | None]]:  # fmt: skip
    """What the quantizer is told of every linear's inputs, block by block: no other block's Hessians are held. `makes`
    has what it is told of the same block's outputs, and `tokens` gets how many each linear read."""
    if not quantizer.needs_hessian:
        for layer in dict.fromkeys(unit.layer for unit in spec.units):
            here = {linear.name for unit in spec.units if unit.layer == layer for linear in unit.linears}
            yield dict.fromkeys(name for name in linears if name in here)
    elif quantizer.fisher:
        report, outputs = partial(progress, "weigh tokens"), makes if quantizer.needs_outputs else None
        yield from fisher_hessians(model, linears, windows, seed, report, shelf, known, outputs, tokens)
    else:
        yield from input_sums(model, linears, windows, lambda x: x.T @ x, tokens)


def _of_head(
    model: Any, head: UnitSpec, quantizer: Quantizer, others: Tensor | None, seed: int, progress: Progress
) -> Mapping[str, Tensor | None]:
    """What the quantizer is told of the head's inputs in the `others`; no block goes back for it."""
    if others is None or not quantizer.needs_hessian or not quantizer.fisher:
        return {}
    report = partial(progress, "weigh tokens")
    return next(iter(fisher_hessians(model, [head.linears[0].name], others, seed, report)))


def _evenly(hessian: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Two kinds of text that count alike, however many tokens each has and however sure the model is of them."""
    if hessian is None or other is None:
        return hessian
    return hessian / hessian.trace() + other / other.trace()


@torch.no_grad()
def _quantized(
    rows: Tensor, quantizer: Quantizer, choices: Sequence[Choice], hessian: Tensor | None, device: torch.device,
    home: torch.device, outputs: Tensor | None = None,
) -> Solved:  # fmt: skip
    return {c: found.to(home) for c, found in quantizer.quantize(rows.to(device), choices, hessian, outputs).items()}
