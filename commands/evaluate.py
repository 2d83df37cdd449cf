"""bitfleet evaluate: what subnets lose against the full model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands.terminal import JSON, TRUST, emit, table
from commands.waiting import progress
from records.errors import InputError

if TYPE_CHECKING:
    from supernet.checkpoint import SupernetFiles
    from supernet.evaluate import Reference
    from supernet.space import Subnet


@click.command()
@click.argument("supernet", metavar="DIR")
@click.option("--subnet", type=click.Path(path_type=Path), help="A plan, or a JSON object of unit: choice.")
@click.option("--bits", type=int, help="Every linear at these bits.")
@click.option("--text", metavar="FILE", help="What to evaluate on; the default is the supernet's held-out text.")
@TRUST
@click.option("--windows", type=int, default=16, show_default=True, help="Windows of --text.")
@click.option("--window-tokens", type=int, default=512, show_default=True, help="Tokens of each.")
@JSON
def evaluate(
    supernet: str,
    subnet: Path | None,
    bits: int | None,
    text: str | None,
    windows: int,
    window_tokens: int,
    trust: bool,
    as_json: bool,
) -> None:
    """KL to the full model, perplexity and top-1 agreement, of one subnet or of every uniform one."""
    from supernet.checkpoint import open_supernet

    files = open_supernet(supernet, trust_remote_code=trust)
    subnets = chosen_subnets(files, subnet, bits)
    from supernet.evaluate import evaluate

    with progress() as report:
        reference = full_model_on(files, text, windows, window_tokens, trust, report) if text else files.reference()
        found = evaluate(files.load(), list(subnets.values()), reference, report)
    if as_json:
        emit([{"subnet": name, **quality.to_json()} for name, quality in zip(subnets, found, strict=True)])
    else:
        rows = [(n, f"{q.kl:.4f}", f"{q.perplexity:.2f}", f"{q.top1:.3f}") for n, q in zip(subnets, found, strict=True)]
        table(("SUBNET", "KL PER TOKEN", "PERPLEXITY", "TOP-1"), rows)


def chosen_subnets(files: SupernetFiles, path: Path | None, bits: int | None) -> dict[str, Subnet]:
    """Subnets by the name to print: the one in a file, the uniform one at `bits`, or every uniform one."""
    from planner.plan import KIND, Plan
    from records.reading import read_json
    from supernet.space import Subnet

    if path is not None and bits is not None:
        raise InputError("--subnet and --bits exclude each other; give one of them")
    if path is None:
        wanted = files.space.bits(files.spec) if bits is None else (bits,)
        return {f"{b} bits": files.space.uniform(files.spec, b) for b in wanted}
    data = read_json(path, "subnet", "give a plan, or a JSON object of unit: choice")
    subnet = Plan.load(path).subnet if data.get("kind") == KIND else Subnet.from_json(data)
    if subnet not in files.space:
        raise InputError(f"a subnet has one of the supernet's choices for every unit, {path} has not; see {files.path}")
    return {path.name: subnet}


def full_model_on(
    files: SupernetFiles, text: str, windows: int, window_tokens: int, trust: bool, report: Any
) -> Reference:
    """What the full model says of other text than the supernet's own; needs the model that it was made from."""
    from supernet.evaluate import Reference
    from supernet.loading import load_model
    from supernet.text import read_windows

    full = load_model(files.info["source"], trust)
    return Reference.of(full.model, read_windows(text, full.tokenizer, windows, window_tokens), report)
