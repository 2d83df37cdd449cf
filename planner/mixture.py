"""What the times of a mixture's experts rest on: how many of them are taken to be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.request import Workload
from supernet.spec import ModelSpec, UnitSpec


def notes(spec: ModelSpec, workload: Workload) -> Iterator[str]:
    """In a line how many experts a layer reads on average, and whether that was counted; none of a dense model."""
    layers = {unit.layer: unit for unit in spec.units if unit.chosen is not None}
    if not layers:
        return
    units = list(layers.values())
    step, prompt = (f"{_read(units, tokens):.4g}" for tokens in (workload.batch, workload.prompt_tokens))
    read = f"a step is taken to read {step} of {spec.experts} experts of a layer, a prompt {prompt}"
    counted = min(unit.tokens_counted for unit in units)
    if counted:
        yield f"{read}, chosen as often as by {counted} tokens of the text that the codes were found with"
    else:
        yield (
            f"{read}, each chosen as often as any other, since nobody counted: texts choose less evenly, and several "
            "sequences read fewer; train again to count, with any --quantizer but rtn"
        )


def _read(units: Sequence[UnitSpec], tokens: int) -> float:
    return sum(unit.experts_read(tokens) for unit in units) / len(units)
