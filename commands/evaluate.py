"""bitfleet evaluate: what subnets lose against the full model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands.measuring import FirstWindows
from commands.terminal import JSON, TRUST, emit, table
from commands.waiting import progress
from planner.quality import Quality, over_texts, with_interval
from records.errors import InputError
from records.installed import require_training

if TYPE_CHECKING:
    from supernet.checkpoint import SupernetFiles
    from supernet.space import Subnet


@click.command()
@click.argument("supernet", metavar="DIR")
@click.option("--subnet", type=click.Path(path_type=Path), help="A plan, or a JSON object of unit: choice.")
@click.option("--bits", type=int, help="Every linear at these bits.")
@click.option("--text", metavar="FILE", help="What to evaluate on; the default is the texts that the supernet keeps.")
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

    files, subnets = chosen_subnets(open_supernet(supernet, trust_remote_code=trust), subnet, bits)
    require_training()
    own = None if text is None else FirstWindows(files, text, windows, window_tokens)
    from supernet.evaluate import evaluate_texts

    references = files.references() if own is None else {own.name: own.reference(trust)}
    with progress() as report:
        found = evaluate_texts(files.load(), list(subnets.values()), references, report)
    measured = [over_texts({text: quality.to_json() for text, quality in one.items()}) for one in found]
    if as_json:
        emit([{"subnet": name, **quality} for name, quality in zip(subnets, measured, strict=True)])
    else:
        print_evaluated(dict(zip(subnets, measured, strict=True)))


def print_evaluated(measured: Mapping[str, Quality]) -> None:
    """Each subnet on each text, below the full model: where its perplexity is odd, the text is, or how it begins."""
    rows = []
    for text, quality in next(iter(measured.values()))["texts"].items():
        rows.append(("full model", text, "0", f"{quality['full_perplexity']:.2f}", "1"))
    for name, over in measured.items():
        for text, quality in over["texts"].items():
            shown = f"{quality['perplexity']:.2f}", f"{quality['top1']:.3f}"
            rows.append((name, text, with_interval(quality), *shown))
    table(("SUBNET", "TEXT", "KL PER TOKEN, 95 %", "PERPLEXITY", "TOP-1"), rows)


def chosen_subnets(
    files: SupernetFiles, path: Path | None, bits: int | None
) -> tuple[SupernetFiles, dict[str, Subnet]]:
    """Subnets by the name to print: the one in a file, the uniform one at `bits`, or every uniform one; and the
    supernet that they are of, with the numbers of its own that a plan has."""
    from planner.plan import KIND, Plan
    from records.reading import read_json
    from supernet.space import Subnet

    if path is not None and bits is not None:
        raise InputError("--subnet and --bits exclude each other; give one of them")
    if path is None:
        wanted = files.space.bits(files.spec) if bits is None else (bits,)
        return files, {f"{b} bits": files.space.uniform(files.spec, b) for b in wanted}
    data = read_json(path, "subnet", "give a plan, or a JSON object of unit: choice")
    made = Plan.load(path) if data.get("kind") == KIND else None
    subnet = Subnet.from_json(data) if made is None else made.subnet
    if subnet not in files.space:
        raise InputError(f"a subnet has one of the supernet's choices for every unit, {path} has not; see {files.path}")
    return files if made is None else made.opened(files), {path.name: subnet}
