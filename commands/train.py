"""bitfleet train: the supernet of a model."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from commands.exits import BROKEN
from commands.minutes import Minutes
from commands.names import check_launcher, numbers_in, whole_numbers
from commands.reports import print_training
from commands.terminal import TRUST, first_process, note, say
from commands.waiting import progress
from planner.request import parse_bytes
from records.errors import InputError
from records.installed import require_training

if TYPE_CHECKING:
    from supernet.recipe import Recipe
    from supernet.spec import ModelSpec


@click.command()
@click.argument("model")
@click.option("--bits", default="2,3,4,8", show_default=True, metavar="B,B,...", help="Bit-widths of the linears.")
@click.option(
    "--grid",
    default="sym",
    show_default=True,
    metavar="sym|int|k",
    help="What codes stand for: sym has a signed scale of 16 bits for each group, int a scale and a zero; k is that of "
    "llama.cpp's K types.",
)
@click.option(
    "--group-size",
    metavar="N[,N,...]",
    help="Weights that share a scale, or one for each of --bits; grid k has its own.  [default: 64, 32 "
    "from 4 bits on; on grid int 64]",
)
@click.option("--data", metavar="FILE|-|DATASET", help="Training text; without it, the full model writes some.")
@click.option("--eval", "eval_text", metavar="FILE", help="Text that plans are measured on too: what the model is for.")
@click.option("--steps", type=int, metavar="N", help="Training steps; the default is what fits into --minutes.")
@click.option("--minutes", type=Minutes(), default=15.0, show_default=True, help="Time for all stages together.")
@click.option(
    "--quantizer", default="auto", metavar="rtn|gptq|yaqa|learned", help="How codes are found; learned if time allows."
)
@click.option("--block-steps", type=int, metavar="N", help="Steps of quantizer learned on each block and bit-width.")
@click.option(
    "--adapter",
    default="scales",
    show_default=True,
    metavar="scales|lora|pooled|rounding|routed",
    help="What is trained.",
)
@click.option("--rank", type=int, metavar="N", help="Rank of a low-rank adapter; each has its default.")
@click.option("--learning-rate", type=float, metavar="R", help="Of the adapters; each has its default.")
@click.option(
    "--train-bits",
    metavar="B,B,...|none",
    help="Bit-widths with adapters; unless given, the smallest 2 up to 4. With none, codes stay as they were found.",
)
@click.option(
    "--sharing",
    default="decoupled",
    show_default=True,
    metavar="decoupled|shared|matched",
    help="Which bit-widths train through one adapter.",
)
@click.option(
    "--sampler",
    default="auto",
    metavar="uniform|balanced|neighbours|slimmable|planned|sandwich|shift",
    help="What a step trains; the default goes with the quantizer.",
)
@click.option(
    "--schedule",
    default="constant",
    show_default=True,
    metavar="constant|progressive|delayed",
    help="Which bits a step may draw.",
)
@click.option(
    "--teacher", default="full", show_default=True, metavar="full|largest|quantized", help="What subnets learn from."
)
@click.option(
    "--gradient-checkpointing", "checkpointing", is_flag=True, help="Less memory: compute blocks again to go backward."
)
@click.option(
    "--awq",
    type=float,
    default=0.25,
    show_default=True,
    help="Power of the activations in AWQ's channel scales; 0 is off.",
)
@click.option(
    "--prune", metavar="S,S,...", help="Shares of its channels that a feed-forward block may keep, such as 0.75,0.5,0."
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="Memory to work in; a model that does not fit is read from its files block by block, for codes alone.  "
    "[default: what is free]",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on with the training in --out that was stopped.")
@TRUST
@click.option("--without-export", is_flag=True, help="Train a model that no runtime can export, for PyTorch alone.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write it.  [default: supernet-MODEL]")
@click.pass_context
def train(
    context: click.Context,
    model: str,
    bits: str,
    group_size: str | None,
    train_bits: str | None,
    prune: str | None,
    resume: bool,
    trust: bool,
    without_export: bool,
    memory: str | None,
    out: Path | None,
    **options: Any,
) -> None:
    """Make the supernet of MODEL: a Hugging Face folder, a hub id, a .gguf file, or smollm2-135m-instruct.

    With `accelerate launch cli.py train ...` several processes train together.
    """
    numbers = whole_numbers("--bits", bits)
    groups = () if group_size is None else whole_numbers("--group-size", group_size)
    sizes = {"group_size": groups[0]} if len(groups) == 1 else {"group_sizes": groups}
    trained = None if train_bits is None else () if train_bits == "none" else whole_numbers("--train-bits", train_bits)
    shares = () if prune is None else numbers_in("--prune", prune, float, "numbers with commas such as 0.75,0.5,0")
    path = out or Path(f"supernet-{Path(model).stem if model.endswith('.gguf') else Path(model).name}")
    room = None if memory is None else parse_bytes(memory)
    streamed = False
    check_launcher()
    require_training()
    if options["data"] == options["eval_text"] == "-":
        raise InputError("standard input can be read once, --data and --eval both name it; give one of them a file")
    with progress() as report:
        if first_process():
            report("load libraries", 0)
        from accelerate import PartialState

        from commands.needs import check_needs
        from supernet.create import create
        from supernet.recipe import Recipe
        from supernet.text import check_source

        for text in (options["data"], options["eval_text"]):
            if text is not None and not resume:
                check_source(text)
        recipe = Recipe(
            bits=numbers, **sizes, train_bits=trained, prune=shares, trust_remote_code=trust, **options
        )  # fmt: skip
        if first_process():
            begun = begun_with(path, trust)  # whether to train what no runtime exports was asked when it was
            spec = check_exports(model, trust, without_export or begun is not None)
            recipe = fitted(recipe, spec)
            streamed = check_needs(spec, begun or recipe, path, room)
        typed = typed_options(context, recipe)
        files = create(model, path, recipe, resume, report, typed=typed, streamed=streamed)
    PartialState().destroy_process_group()  # a process that ends with one may be aborted by gloo's threads
    if first_process():
        print_training(files)
        lost = files.info.get("lost", {})
        for bits, (than, now, then) in lost.items():
            note(f"{bits} bits lose {now:.4g} KL per token on the held-out windows, {than} {then:.4g}")
        if lost:
            widths = " and ".join(lost)
            note(
                f"error: {path} is worse than it began at {widths} bits; it is kept, but train again with other options"
            )
            context.exit(BROKEN)
        say(f"next: bitfleet plan {shlex.quote(str(path))} --mem SIZE")


def fitted(recipe: Recipe, spec: ModelSpec) -> Recipe:
    """The recipe with windows that the model can read: they are no option, so a small model has shorter ones."""
    if recipe.window_tokens <= spec.max_context:
        return recipe
    note(f"windows have {spec.max_context} tokens, all that {spec.name} can read")
    return replace(recipe, window_tokens=spec.max_context)


def typed_options(context: click.Context, recipe: Recipe) -> dict[str, str]:
    """What was given of the `recipe` on the command line, as its field and the option's name."""
    options = {parameter.name: parameter.opts[0] for parameter in context.command.params if parameter.name}
    others = ("model", "out", "resume", "trust", "without_export", "memory")
    typed = (n for n in options if context.get_parameter_source(n) is ParameterSource.COMMANDLINE)
    found = {name: options[name] for name in typed if name not in others}
    if recipe.group_sizes:
        found["group_sizes"] = found.pop("group_size")
    return found


def begun_with(path: Path, trust: bool) -> Recipe | None:
    """The recipe of the training in `path`, or of its start, which going on with it uses."""
    from supernet.checkpoint import SUPERNET, open_supernet
    from supernet.folder import begun_start
    from supernet.recipe import Recipe

    start = begun_start(path)
    if start is not None:
        return Recipe.from_json(start["recipe"])
    if not (path / SUPERNET).is_file():
        return None
    return Recipe.from_json(open_supernet(path, unfinished=True, trust_remote_code=trust).info["recipe"])


def check_exports(model: str, trust: bool, without_export: bool) -> ModelSpec:
    """Say which runtimes can export a model, before anything is trained; InputError where none can.

    Not where the person asked for it, or where the model is code of its own: what it computes, its name cannot tell.
    """
    from planner.runtimes import RUNTIMES
    from supernet.loading import describe

    config, spec = describe(model, trust)
    own = trust and bool(getattr(config, "auto_map", None))
    reasons = {name: runtime().holding(spec).refusal() for name, runtime in RUNTIMES.items()}
    for name, reason in reasons.items():
        note(f"{name} can export {spec.architecture}" if reason is None else f"{name} cannot export it: {reason}")
    if all(reasons.values()) and not without_export and not own:
        raise InputError(
            f"no runtime can export {model}: {next(iter(reasons.values()))}; give another model, or "
            "train it for PyTorch alone with --without-export"
        )
    return spec
