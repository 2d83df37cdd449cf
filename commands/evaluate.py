"""bitfleet evaluate: what subnets lose against the full model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands.measuring import FirstWindows
from commands.packaged import packaged
from commands.terminal import JSON, TRUST, emit, say, table
from commands.waiting import progress
from planner.quality import Quality, over_texts
from planner.statistics import lines, of_full_model
from records.errors import InputError
from records.installed import require_tasks, require_training

if TYPE_CHECKING:
    from supernet.checkpoint import SupernetFiles
    from supernet.space import Subnet


@click.command()
@click.argument("supernet", metavar="DIR")
@click.option("--subnet", type=click.Path(path_type=Path), help="A plan, or a JSON object of unit: choice.")
@click.option("--bits", type=int, help="Every linear at these bits.")
@click.option(
    "--package",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="This package of the supernet as its runtime loads it, beside the subnet of its plan.",
)
@click.option(
    "--text",
    "texts",
    metavar="FILE",
    multiple=True,
    help="What to evaluate on, also several times; the default is the texts that the supernet keeps.",
)
@TRUST
@click.option("--windows", type=int, default=16, show_default=True, help="Windows of --text.")
@click.option("--window-tokens", type=int, default=512, show_default=True, help="Tokens of each.")
@click.option(
    "--second-half",
    is_flag=True,
    help="Measure the second half of each window of --text alone, as llama-perplexity does.",
)
@click.option(
    "--tasks",
    metavar="NAME|FILE,...",
    help="Measure these tasks of lm-eval instead: .yaml files with their data beside them, or names that it lists.",
)
@click.option("--shots", type=click.IntRange(min=0), help="Of --tasks: examples before each question.")
@click.option("--limit", type=click.IntRange(min=1), help="Of --tasks: so many questions of each, from its beginning.")
@click.option("--chat", is_flag=True, help="Of --tasks: questions are messages, through the model's chat template.")
@JSON
def evaluate(
    supernet: str, subnet: Path | None, bits: int | None, package: Path | None, texts: tuple[str, ...], windows: int,
    window_tokens: int, second_half: bool, tasks: str | None, shots: int | None, limit: int | None, chat: bool,
    trust: bool, as_json: bool,
) -> None:  # fmt: skip
    """KL to the full model over tokens, perplexity and top-1 agreement, of one subnet or of every uniform one."""
    from supernet.checkpoint import open_supernet

    check_options(texts, second_half, tasks, shots is not None or limit is not None or chat)
    files = open_supernet(supernet, trust_remote_code=trust)
    if package is None:
        found, (files, subnets) = None, chosen_subnets(files, subnet, bits)
    elif subnet is not None or bits is not None:
        raise InputError("--package is evaluated beside its own subnet; leave --subnet and --bits out")
    else:
        found = packaged(package, files)
        made = found.package.plan
        files, subnets = made.opened(files), {"its subnet": made.subnet}
    require_training()
    if tasks is not None:
        from commands.tasks import Question, measure_tasks

        measure_tasks(Question(tasks, shots, limit, chat), files, subnets, found, as_json)
        return
    own = [FirstWindows(files, text, windows, window_tokens, second_half) for text in texts]
    if len({text.name for text in own}) < len(own):
        raise InputError(
            f"texts are told apart by the names of their files, got {', '.join(texts)}; rename one of them"
        )
    from supernet.evaluate import evaluate_texts

    references = FirstWindows.references(own, trust) if own else files.references()
    qualities = {} if found is None else {found.name: {t: found.quality(t, one) for t, one in references.items()}}
    with progress() as report:
        qualities |= zip(subnets, evaluate_texts(files.load(), list(subnets.values()), references, report), strict=True)
    measured = {
        name: over_texts({text: quality.to_json() for text, quality in by_text.items()})
        for name, by_text in qualities.items()
    }
    if as_json:
        emit([{"subnet": name, **quality} for name, quality in measured.items()])
    else:
        print_evaluated(measured)


def check_options(texts: Sequence[str], second_half: bool, tasks: str | None, of_tasks: bool) -> None:
    """InputError for an option of what is not measured."""
    if second_half and not texts:
        raise InputError("--second-half is of the windows of a text; give --text FILE")
    if of_tasks and tasks is None:
        raise InputError("--shots, --limit and --chat are of tasks; give --tasks NAME|FILE")
    if tasks is not None:
        if texts:
            raise InputError("--tasks and --text exclude each other; give one of them")
        require_tasks()


def print_evaluated(measured: Mapping[str, Quality]) -> None:
    """On each text, a line for each statistic and a column for each subnet, beside the full model: where its perplexity
    is odd, the text is, or how it begins."""
    first = next(iter(measured.values()))
    for text, quality in first["texts"].items():
        found = [dict(lines(one["texts"][text])) for one in measured.values()]
        full = of_full_model(quality)
        rows = [(what, full.get(what, ""), *(one[what] for one in found)) for what in found[0]]
        said = f"{text}: {quality['windows']} windows, {quality['tokens']} tokens"
        table((said, "FULL MODEL", *measured), rows)
        say()
    say("± of the first line is 95 % by how windows differ; all others are one standard error over tokens")


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
