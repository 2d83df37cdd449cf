"""bitfleet plan: the bits of every layer for one device and budget."""

from __future__ import annotations

import shlex
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands.command_line import command_line, repeating
from commands.measuring import check_text, measured_caches, measured_quality
from commands.minutes import Minutes
from commands.names import (
    AUTO,
    check_cache,
    check_runtime,
    default_supernet,
    device_named,
    hosted,
    own_device,
    runtimes_for,
    trained_supernet,
)
from commands.outputs import PAGE, PLAN, check_apart, check_file
from commands.reports import print_plan, write_card
from commands.searching import Searching, check_searchable, measured_search
from commands.terminal import JSON, TRUST, emit, say
from commands.tuning import asked_to_tune, check_tuning, tuner

if TYPE_CHECKING:
    from supernet.checkpoint import SupernetFiles


@click.command()
@click.argument("supernet", required=False)
@click.option("--mem", metavar="SIZE", help="Peak memory of the process: 8GB, 8GiB, 8192MB, 0.5 GB.")
@click.option(
    "--max-loss", metavar="KL|P%", help="The smallest within this: nats of KL a token, or a share of perplexity."
)
@click.option("--latency", metavar="TIME", help="Time per token, such as 20ms.")
@click.option("--target-tps", type=float, metavar="N", help="Tokens a second of each sequence, instead of --latency.")
@click.option("--ttft", metavar="TIME", help="Time to the first token, such as 500ms.")
@click.option("--disk", metavar="SIZE", help="Size of the weight files.")
@click.option(
    "--context",
    metavar="N|A..B|max",
    help="Tokens of context, or the longest that the limits allow.  [default: 4096, or what the model can]",
)
@click.option("--batch", type=int, default=1, show_default=True, help="Sequences at once.")
@click.option("--prompt-tokens", type=int, metavar="N", help="Tokens of the prompt behind --ttft.  [default: 128]")
@click.option(
    "--kv-cache",
    metavar="TYPE",
    help="How keys and values are kept: auto, q8_0, or several to choose from.  [default: the runtime's own]",
)
@click.option("--device", metavar="NAME|FILE", help="What to plan for; the default is this machine.")
@click.option("--host", metavar="NAME|FILE", help="The machine that a GPU is in: layers that do not fit stay there.")
@click.option("--host-mem", metavar="SIZE", help="Memory that they may take there.  [default: all that it has]")
@click.option("--gpu-layers", type=click.IntRange(min=1), metavar="N", help="Layers on the GPU.  [default: decided]")
@click.option(
    "--gpus", type=click.IntRange(1, 64), default=1, show_default=True, help="Divide it over so many; --mem is of each."
)
@click.option("--runtime", default=AUTO, show_default=True, help="What will load the package: the best one, or a name.")
@click.option("--text", metavar="FILE", help="Measure on this text too: what the package is for. Needs the full model.")
@click.option("--trials", type=click.IntRange(min=0), metavar="N", help="Subnets that the search tries.")
@click.option("--minutes", type=Minutes(), metavar="M", help="Search on, by measuring.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
              help="Processes that share that search.")  # fmt: skip
@click.option(
    "--front",
    is_flag=True,
    help="Search for a front: what is lost for each memory and time per token. Needs --minutes.",
)
@click.option("--tune", type=Minutes(), metavar="M", help="Train the scales of the plan alone, so long.")
@click.option("--tune-steps", type=click.IntRange(min=1), metavar="N", help="The same in so many steps.")
@click.option("--storage", metavar="URL", help="An Optuna storage for that search.  [default: beside the supernet]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default="plan.json", show_default=True)
@click.option(
    "--html", metavar="FILE", type=click.Path(path_type=Path), help="Write the plan as a page to look at, too."
)
@TRUST
@JSON
def plan(
    supernet: str | None, mem: str | None, max_loss: str | None, latency: str | None, target_tps: float | None,
    ttft: str | None, disk: str | None, context: str | None, batch: int, prompt_tokens: int | None,
    kv_cache: str | None, device: str | None, host: str | None, host_mem: str | None, gpu_layers: int | None,
    gpus: int, runtime: str, text: str | None, trials: int | None, minutes: float | None, workers: int,
    front: bool, tune: float | None, tune_steps: int | None, storage: str | None, seed: int, out: Path,
    html: Path | None, trust: bool, as_json: bool,
) -> None:  # fmt: skip
    """The bits of every layer that lose least within a memory and latency budget, or the fewest within a loss.

    SUPERNET is a folder that `bitfleet train` made; without it, the embedded default model's, which is built and kept
    in the cache on first use.
    """
    from planner import pipeline
    from planner.propose import TRIALS
    from planner.request import (
        Asked,
        Budget,
        host_limit,
        parse_bytes,
        parse_context,
        parse_duration,
        parse_loss,
        time_limit,
    )

    if front and minutes is None:
        raise click.UsageError("--front is searched for --minutes: give both, or none.")
    if mem is None and max_loss is None and not front:
        raise click.UsageError("Give --mem, what the plan may take, or --max-loss, what it may lose, or both.")
    tunes = asked_to_tune(tune, tune_steps)
    if minutes is not None and max_loss is not None:
        raise click.UsageError("--minutes searches for less loss, --max-loss asks for less memory: give one of them.")
    if workers > 1 and minutes is None:
        raise click.UsageError("--workers share the search of --minutes: give both, or none.")
    if storage is not None and minutes is None:
        raise click.UsageError("--storage keeps the search of --minutes: give both, or none.")
    memory = None if mem is None else parse_bytes(mem)
    limits = (
        time_limit(None if latency is None else parse_duration(latency), target_tps),
        None if ttft is None else parse_duration(ttft),
        None if disk is None else parse_bytes(disk),
        None if max_loss is None else parse_loss(max_loss),
        None if host_mem is None else parse_bytes(host_mem),
    )
    tokens = None if context is None else parse_context(context)
    asked = Asked(tokens, batch, prompt_tokens, kv_cache, gpu_layers, gpus)
    check_file(out, PLAN)
    if html is not None:
        check_file(html, PAGE, "--html")
        check_apart(out, html, ("--out", "--html"))
    check_runtime(runtime)
    check_cache(kv_cache, runtime)
    # What was named is checked before anything that takes minutes: profiling this machine, making the default supernet.
    named = None if device is None else device_named(device)
    if host is not None:
        named = hosted(named, host)
    host_limit(limits[-1], named is not None and named.host is not None)
    searching = None if minutes is None else Searching(minutes, workers, storage, trust, front)
    files = None if supernet is None else trained_supernet(supernet, trust)
    load = measure = None
    if files is not None:
        asked.of(files.spec)
        load = cache(files.load)  # the weights, once for all that is measured with them
        measure = measured_quality(files, text, trust, load)
        _check(files, searching, tunes)
    elif text is not None:
        check_text(text)
    target = named or own_device(runtime)
    if files is None:
        files = default_supernet()
        _check(files, searching, tunes)
    load = load or cache(files.load)
    measure = measure or measured_quality(files, text, trust, load)
    loaders, absent = runtimes_for(runtime, target)
    deepen = None if searching is None else measured_search(files, searching, load)
    workload, contexts = asked.of(files.spec)
    made = pipeline.plan_any(
        files,
        loaders,
        target,
        workload,
        Budget(memory or max(1, target.usable_bytes), *limits),
        measure=measure,
        trials=TRIALS if trials is None else trials,
        seed=seed,
        command=command_line(sys.argv[1:]),
        absent=absent,
        deepen=deepen,
        drawn=html is not None,
        cache_loss=measured_caches(files, load),
        tune=tuner(files, tune, tune_steps, seed, text, trust) if tunes else None,
        contexts=contexts,
    )
    made.save(out)
    if html is not None:
        write_card(html, made)
    if as_json:
        emit(made.to_json())
    else:
        print_plan(made)
        if made.tuned is not None:
            say(f"again: {repeating(sys.argv[1:], made.tuned.steps)}")
        say(f"next: bitfleet export {shlex.quote(str(out))} --out DIR")


def _check(files: SupernetFiles, searching: Searching | None, tunes: bool) -> None:
    """InputError before the work where the supernet cannot be searched or tuned, as it is asked to be."""
    if searching is not None:
        check_searchable(files, searching)
    if tunes:
        check_tuning(files)
