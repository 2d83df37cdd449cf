"""A finer grid for channels whose activations are large (AWQ, Lin et al., arXiv 2306.00978, section 3.2), before
anything is quantized.

    x W^T = (x / t) (W diag(t))^T,    t = mean |x| ^ power, of geometric mean 1

A column's error counts as much as its input is large, and the grid's step is that of the largest weight in a group. So
the columns of large inputs are stretched by t, and what makes the inputs is shrunk: the norm before the linears, or in
a gated feed-forward block the rows of the up projection. The model computes the same and takes no byte more.

AWQ searches the power for each linear, by the error of round-to-nearest; here it is one number for the model, since
the codes are learned afterwards, at several bit-widths that share one norm. Values, which make the inputs of the output
projection, stay as they are: scaling them won nothing (docs/log.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from records.errors import InputError
from supernet.absent import change
from supernet.blocks import input_sums
from supernet.exact import in_float32
from supernet.model import hidden_states, logits_of, removed_after
from supernet.progress import Progress, silent
from supernet.spec import ModelSpec, UnitSpec

LIMIT = 8.0  # a channel is stretched or shrunk by at most so much
READS, MAKES = "reads", "makes"  # a linear's columns times t, a norm's or a linear's rows by t
SAME, SAME_IN_BFLOAT16 = 1e-3, 2e-2
TOKENS = 16  # that show whether the model still computes the same

Scales = dict[str, Tensor]  # t by `module|reads` or `module|makes`; as long as its columns or rows


@torch.no_grad()
def channel_scales(
    model: Any, spec: ModelSpec, windows: Tensor, power: float = 0.25, progress: Progress = silent
) -> Scales:
    """t of every channel that a norm or an up projection makes, from the activations on `windows` `(n, tokens)`."""
    readers = norm_readers(model, spec, windows[:1, :TOKENS])
    gated = {reader.linears[0].name: up_rows(makers) for *makers, reader in spec.feed_forwards}
    ups = {down: rows for down, rows in gated.items() if rows is not None}
    watched = [*(linears[0] for linears in readers.values()), *ups]
    means = mean_inputs(model, watched, windows, progress)
    found: Scales = {}
    for norm, linears in readers.items():
        scale = _scale(means[linears[0]], power)
        found |= {f"{norm}|{MAKES}": scale} | {f"{linear}|{READS}": scale.clone() for linear in linears}
    for down, (up, first) in ups.items():
        scale = _scale(means[down], power)
        rows = torch.ones(model.get_submodule(up).weight.shape[0])
        rows[first : first + len(scale)] = scale
        found |= {f"{up}|{MAKES}": rows, f"{down}|{READS}": scale}
    return found


def _scale(mean: Tensor, power: float) -> Tensor:
    logs = power * mean.clamp(min=torch.finfo(torch.float32).tiny).log()
    limit = torch.tensor(LIMIT).log()
    return (logs - logs.mean()).clamp(-limit, limit).exp().cpu()


def up_rows(makers: Sequence[UnitSpec]) -> tuple[str, int] | None:
    """The linear that makes a gated block's channels without an activation after it, and the first of those rows."""
    linears = {linear.name.rpartition(".")[2]: linear.name for maker in makers for linear in maker.linears}
    if "gate_proj" in linears and "up_proj" in linears:
        return linears["up_proj"], 0
    if "gate_up_proj" in linears and makers[0].channels is not None:
        return linears["gate_up_proj"], makers[0].channels.count
    return None


@torch.no_grad()
def rescale(model: Any, scales: Mapping[str, Tensor]) -> None:
    """Fold `scales` into the full model's weights, in place.

    In the order of their names: an up projection is multiplied and divided, which rounds differently in another order,
    and what is read back from a file comes in the order of names.
    """
    for key, scale in sorted(scales.items()):
        name, part = key.split("|")
        module = model.get_submodule(name)
        scale = scale.to(module.weight.device)
        if part == READS:
            change(module.weight, partial(_times, scale=scale))
            continue
        if module.weight.dim() == 1:
            added = added_to_weight(module)
            module.weight.add_(added).div_(scale).sub_(added)
        else:
            change(module.weight, partial(_over, scale=scale.unsqueeze(1)))
        if getattr(module, "bias", None) is not None:
            module.bias.div_(scale)


def _times(weight: Tensor, scale: Tensor) -> None:
    weight.mul_(scale)


def _over(weight: Tensor, scale: Tensor) -> None:
    weight.div_(scale)


def same(model: Any) -> float:
    """The share of their size by which states of one model may differ, from device to device or rescaled: weights in
    bfloat16 are rounded when they are scaled."""
    return SAME if model.dtype == torch.float32 else SAME_IN_BFLOAT16


@torch.no_grad()
def rescale_checked(model: Any, scales: Mapping[str, Tensor], windows: Tensor) -> None:
    """`rescale`; InputError where the model computes something else afterwards, as when a norm has more readers.

    The start of the first of `windows` `(n, tokens)` tells.
    """
    ids = windows[:1, :TOKENS].to(model.device)
    with in_float32(model):
        before = logits_of(model, hidden_states(model, ids))
        rescale(model, scales)
        after = logits_of(model, hidden_states(model, ids))
    if not (after - before).norm() <= same(model) * before.norm():  # also where it is not a number
        raise InputError(
            f"awq needs norms that linears alone read, {type(model).__name__} has others; train with awq 0"
        )


def added_to_weight(norm: nn.Module) -> float:
    """What a norm adds to its weight before it multiplies: Gemma's add 1."""
    parameters = {name: torch.zeros_like(value) for name, value in norm.named_parameters()}
    probe = torch.ones_like(parameters["weight"])
    probe[::2] = -1  # of mean 0, as LayerNorm needs it
    return float(torch.func.functional_call(norm, parameters, (probe,)).abs().max() > 0)


def norm_readers(model: Any, spec: ModelSpec, window: Tensor) -> dict[str, list[str]]:
    """The linears that read each norm's output as it is, by the norm's name; seen in a pass over `window`."""
    norms = [name for name, module in model.named_modules() if is_norm(module)]
    linears = [linear.name for unit in spec.units if not unit.is_table for linear in unit.linears]
    made: list[tuple[str, Tensor]] = []  # the tensors themselves, so that none is freed and its place used again
    found: dict[str, list[str]] = defaultdict(list)

    def make(name: str) -> Callable[..., None]:
        return lambda module, args, output: made.append((name, output))

    def read(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            for norm in {norm for norm, output in made if output is args[0]}:
                found[norm].append(name)

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(make(name)) for name in norms]
    hooks += [model.get_submodule(name).register_forward_pre_hook(read(name)) for name in linears]
    with removed_after(hooks):
        hidden_states(model, window.to(model.device))
    return dict(found)


def is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 1 and next(module.children(), None) is None


def mean_inputs(model: Any, linears: list[str], windows: Tensor, progress: Progress) -> dict[str, Tensor]:
    """The mean of |x| for each channel that the linears read, over all tokens."""
    means: dict[str, Tensor] = {}
    for number, sums in enumerate(input_sums(model, linears, windows, lambda x: x.abs().sum(0))):
        means |= {name: total / windows.numel() for name, total in sums.items()}
        progress("weigh channels", number + 1, model.config.get_text_config().num_hidden_layers)
    return means
