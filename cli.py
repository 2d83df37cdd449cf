"""bitfleet's command line: parse, call one function, print. The only place that maps names to instances.

Data goes to stdout; progress, notes and errors go to stderr. What a command needs is imported inside it, so that
`--help` and planning on cached numbers start without the heavy libraries.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from planner.terminal import (
    emit,
    first_process,
    note,
    print_device,
    print_plan,
    print_training,
    print_verified,
    progress,
    rate,
    size,
    table,
)

if TYPE_CHECKING:
    from planner.quality import MeasuredQuality
    from planner.runtimes.base import Runtime
    from profiles.device import DeviceProfile
    from supernet.checkpoint import SupernetFiles
    from supernet.evaluate import Reference
    from supernet.space import Subnet

__version__ = "0.1.0"

Number = TypeVar("Number", int, float)

OK, BROKEN, BAD_INPUT, OVER_BUDGET, NOT_INSTALLED, SYSTEM, BUG, INTERRUPTED = 0, 1, 2, 3, 4, 5, 70, 130
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EPILOG = """\b
Exit codes:
  0    ok
  1    a promise is broken (verify), or a check failed (doctor)
  2    bad input: an unknown option, a missing or corrupt file, a value out of range
  3    a budget cannot be met; the message names the smallest that can
  4    something is not installed; the message says what to install
  5    the system failed: disk full, out of memory, I/O
  70   a bug in bitfleet
  130  interrupted; what was finished is kept
"""
RUNTIME = "onnxruntime"
DEFAULT_MINUTES = 5.0  # of training, for the default supernet on first use
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="bitfleet")
@click.option("--debug", is_flag=True, help="Show tracebacks and the libraries' warnings.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Train one quantized language model; ship the best fit to every device."""
    context.obj["debug"] = debug
    if not debug:
        warnings.filterwarnings("ignore")


# --- what a device is ---------------------------------------------------------------------------------------------


@cli.group()
def profile() -> None:
    """What a device is and how fast its runtime's kernels are on it."""


@profile.command("device")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda:N", help="What to profile.")
@click.option("--quick", is_flag=True, help="Fewer shapes and repeats: under a minute, wider error bands.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write the profile; the default is the cache.")
@JSON
def profile_device(device: str, quick: bool, out: Path | None, as_json: bool) -> None:
    """Measure this machine and write its profile."""
    path = out or own_profile_path()
    if out is not None:
        check_parent(out)
    found = measure_device(device, quick, path)
    if as_json:
        emit(found.to_json())
    else:
        print_device(found)
    note(f"wrote {path}")


@profile.command("list")
@JSON
def profile_list(as_json: bool) -> None:
    """The catalogue of devices that a plan can be made for."""
    from profiles.catalog import load, names

    entries = [load(name) for name in names()]
    if as_json:
        emit([entry.to_json() for entry in entries])
    else:
        rows = [(e.name, e.kind, size(e.memory_bytes), rate(e.bandwidth_bytes_per_s), e.model) for e in entries]
        table(("NAME", "KIND", "MEMORY", "BANDWIDTH", "MODEL"), rows)


@profile.command("show")
@click.argument("name", metavar="NAME|FILE")
@JSON
def profile_show(name: str, as_json: bool) -> None:
    """One device, from the catalogue or from a file."""
    found = device_named(name)
    if as_json:
        emit(found.to_json())
    else:
        print_device(found)


# --- the supernet -------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("model")
@click.option("--bits", default="2,3,4,8", show_default=True, metavar="B,B,...", help="Bit-widths of the linears.")
@click.option("--group-size", type=int, default=64, show_default=True, help="Weights that share a scale and a zero.")
@click.option("--data", metavar="FILE|DATASET", help="Training text; without it, text is sampled from the full model.")
@click.option("--steps", type=int, metavar="N", help="Training steps; the default is what fits into --minutes.")
@click.option("--minutes", type=float, default=15.0, show_default=True, help="Time to learn codes and adapters.")
@click.option(
    "--quantizer", default="auto", metavar="rtn|gptq|learned", help="How codes are found; learned where there is time."
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
@click.option("--train-bits", metavar="B,B,...", help="Bit-widths with adapters; unless given, the smallest 2 up to 4.")
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
    metavar="uniform|balanced|neighbours|slimmable|sandwich|shift",
    help="What a step trains; the default goes with the quantizer.",
)
@click.option(
    "--schedule",
    default="constant",
    show_default=True,
    metavar="constant|progressive|delayed",
    help="Which bits a step may draw.",
)
@click.option("--teacher", default="full", show_default=True, metavar="full|largest", help="What subnets learn from.")
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
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on with the training in --out that was stopped.")
@click.option("--trust-remote-code", is_flag=True, help="Run the Python code that comes with the model.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write it.  [default: supernet-MODEL]")
def train(
    model: str, bits: str, train_bits: str | None, prune: str | None, resume: bool, out: Path | None, **options: Any
) -> None:
    """Make the supernet of MODEL: a Hugging Face folder, a hub id, a .gguf file, or smollm2-135m-instruct.

    With `accelerate launch cli.py train ...` several processes train together.
    """
    numbers = whole_numbers("--bits", bits)
    trained = None if train_bits is None else whole_numbers("--train-bits", train_bits)
    shares = () if prune is None else numbers_in("--prune", prune, float, "numbers with commas such as 0.75,0.5,0")
    path = out or Path(f"supernet-{Path(model).stem if model.endswith('.gguf') else Path(model).name}")
    from accelerate import PartialState

    from supernet.create import create
    from supernet.recipe import Recipe

    recipe = Recipe(bits=numbers, train_bits=trained, prune=shares, **options)
    with progress() as report:
        files = create(model, path, recipe, resume, report)
    PartialState().destroy_process_group()  # a process that ends with one may be aborted by gloo's threads
    if first_process():
        print_training(files)
        click.echo(f"next: bitfleet plan {path} --mem SIZE")


@cli.command()
@click.argument("supernet", metavar="DIR")
@click.option("--subnet", type=click.Path(path_type=Path), help="A plan, or a JSON object of unit: choice.")
@click.option("--bits", type=int, help="Every linear at these bits.")
@click.option("--text", metavar="FILE", help="What to evaluate on; the default is the supernet's held-out text.")
@click.option("--trust-remote-code", is_flag=True, help="Run the Python code that comes with the model.")
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
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """KL to the full model, perplexity and top-1 agreement, of one subnet or of every uniform one."""
    from supernet.checkpoint import open_supernet

    files = open_supernet(supernet)
    subnets = chosen_subnets(files, subnet, bits)
    from supernet.evaluate import evaluate

    with progress() as report:
        trust = trust_remote_code
        reference = full_model_on(files, text, windows, window_tokens, trust, report) if text else files.reference()
        found = evaluate(files.load(trust), list(subnets.values()), reference, report)
    if as_json:
        emit([{"subnet": name, **quality.to_json()} for name, quality in zip(subnets, found, strict=True)])
    else:
        rows = [(n, f"{q.kl:.4f}", f"{q.perplexity:.2f}", f"{q.top1:.3f}") for n, q in zip(subnets, found, strict=True)]
        table(("SUBNET", "KL PER TOKEN", "PERPLEXITY", "TOP-1"), rows)


# --- plans and packages -------------------------------------------------------------------------------------------


@cli.command()
@click.argument("supernet", required=False)
@click.option("--mem", required=True, metavar="SIZE", help="Peak memory of the process: 8GB, 8GiB, 8192MB, 0.5 GB.")
@click.option("--latency", metavar="TIME", help="Time per token, such as 20ms.")
@click.option("--ttft", metavar="TIME", help="Time to the first token, such as 500ms.")
@click.option("--disk", metavar="SIZE", help="Size of the weight files.")
@click.option("--context", type=int, metavar="N", help="Tokens of context; the default is 4096, or what the model can.")
@click.option("--batch", type=int, default=1, show_default=True, help="Sequences at once.")
@click.option("--prompt-tokens", type=int, metavar="N", help="Tokens of the prompt behind --ttft.  [default: 128]")
@click.option("--device", metavar="NAME|FILE", help="What to plan for; the default is this machine.")
@click.option("--runtime", default=RUNTIME, show_default=True, help="What will load the package.")
@click.option("--trials", type=int, metavar="N", help="Subnets that the search tries.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default="plan.json", show_default=True)
@JSON
def plan(
    supernet: str | None, mem: str, latency: str | None, ttft: str | None, disk: str | None, context: int | None,
    batch: int, prompt_tokens: int | None, device: str | None, runtime: str, trials: int | None, seed: int, out: Path,
    as_json: bool,
) -> None:  # fmt: skip
    """The bits of every layer that lose least within a memory and latency budget.

    SUPERNET is a folder that `bitfleet train` made; without it, the embedded default model's, which is built and kept
    in the cache on first use.
    """
    from planner import pipeline
    from planner.request import Budget, Workload, parse_bytes, parse_duration

    budget = Budget(
        parse_bytes(mem),
        None if latency is None else parse_duration(latency),
        None if ttft is None else parse_duration(ttft),
        None if disk is None else parse_bytes(disk),
    )
    check_parent(out)
    loader = runtime_named(runtime)
    # What was named is checked before anything that takes minutes: profiling this machine, making the default supernet.
    named = None if device is None else device_named(device)
    files = None if supernet is None else trained_supernet(supernet)
    if files is not None:
        Workload.for_model(files.spec, context, batch, prompt_tokens)
    target = named or own_device(runtime)
    files = files or default_supernet()
    made = pipeline.plan(
        files,
        loader,
        target,
        Workload.for_model(files.spec, context, batch, prompt_tokens),
        budget,
        measure=measured_quality(files),
        trials=pipeline.TRIALS if trials is None else trials,
        seed=seed,
        command=shlex.join(["bitfleet", *sys.argv[1:]]),
    )
    made.save(out)
    if as_json:
        emit(made.to_json())
    else:
        print_plan(made, files.spec)
        click.echo(f"next: bitfleet export {out} --out DIR")


@cli.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The package's folder; it appears whole.")
def export(plan: Path, out: Path) -> None:
    """Write the package of a plan: what the runtime loads, the tokenizer, and a manifest."""
    from planner.package import check_replaceable, write_package
    from planner.plan import Plan
    from supernet.checkpoint import open_supernet

    made = Plan.load(plan)
    check_replaceable(out)
    files = open_supernet(made.supernet)
    with progress() as report:
        package = write_package(runtime_named(made.runtime), files, made, out, report)
    total = sum(entry.bytes for entry in package.files.values())
    click.echo(f"{out}: {len(package.files)} files, {size(total)}")
    click.echo(f"next: bitfleet verify {out}")


@cli.command()
@click.argument("package", metavar="DIR", type=click.Path(path_type=Path))
@JSON
@click.pass_context
def verify(context: click.Context, package: Path, as_json: bool) -> None:
    """Load a package in a fresh process, measure it, and print what was promised beside what was measured."""
    from planner.package import open_package
    from planner.verify import verify

    runtime = runtime_named(open_package(package).plan.runtime)
    with progress() as report:
        found = verify(runtime, package, report)
    if as_json:
        emit(found.to_json())
    else:
        print_verified(found)
        click.echo("every promise that could be checked holds" if found.holds else "a promise is broken")
    context.exit(OK if found.holds else BROKEN)


@cli.command()
@click.argument("package", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens to generate.")
def run(package: Path, prompt: str, max_tokens: int) -> None:
    """Answer PROMPT with a package, as it is generated."""
    from planner.package import open_package

    runtime = runtime_named(open_package(package).plan.runtime)
    for piece in runtime.generate(package, prompt, max_tokens):
        click.echo(piece, nl=False)
    click.echo()


@cli.command()
@JSON
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """What works on this machine, the fix for what does not, and the next command."""
    from planner.doctor import diagnose

    report = diagnose(cache_dir())
    if as_json:
        emit(report.to_json())
    else:
        table(("", "CHECK", "FOUND"), [(c.status, c.name, c.detail) for c in report.checks])
        for check in report.checks:
            if check.fix:
                click.echo(f"fix for {check.name}: {check.fix}")
        click.echo(f"next: {report.next_command}")
    context.exit(BROKEN if report.failed else OK)


# --- names to instances -------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """Where the platform keeps caches: this machine's profile and the default supernet. BITFLEET_CACHE overrides it."""
    chosen = os.environ.get("BITFLEET_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "bitfleet"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitfleet"


def own_profile_path() -> Path:
    from planner.doctor import PROFILE_FILE

    return cache_dir() / PROFILE_FILE


def measure_device(device: str, quick: bool, path: Path, runtime: str = RUNTIME) -> DeviceProfile:
    """Profile a device of this machine into `path`, saying which devices were passed over and why."""
    from planner.pipeline import profile_device

    with progress() as report:
        found, skipped = profile_device(device, runtime_named(runtime), quick, report)
    for one in skipped:
        note(f"note: {one.device} is passed over: {one.reason}")
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save(path)
    return found


def own_device(runtime: str) -> DeviceProfile:
    """This machine's profile from the cache, with the memory available now; profiled quickly where there is none."""
    from profiles.cpu import profile_cpu
    from profiles.device import DeviceProfile

    path, now = own_profile_path(), profile_cpu(measure_bandwidth=False)
    known = DeviceProfile.load(path) if path.is_file() else None
    if known is None or (known.kind == "cpu" and known.name != now.name):
        why = "has no profile yet" if known is None else f"is not the {known.name} that {path} describes"
        note(f"this machine {why}: profiling it quickly; `bitfleet profile device` takes longer and is more exact")
        return measure_device("auto", True, path, runtime)
    if known.kind != "cpu":
        return known
    changing = ("available_bytes", "cgroup_limit_bytes", "cgroup_used_bytes")
    return dataclasses.replace(known, **{name: getattr(now, name) for name in changing})


def device_named(name: str) -> DeviceProfile:
    """A profile file where `name` looks like one, else a device of the catalogue."""
    from profiles.catalog import load
    from profiles.device import DeviceProfile

    if name.endswith(".json") or os.sep in name or Path(name).is_file():
        return DeviceProfile.load(name)
    return load(name)


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    return numbers_in(option, text, int, "whole numbers with commas such as 2,3,4,8")


def numbers_in(option: str, text: str, kind: Callable[[str], Number], example: str) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} must be {example}, got {text!r}") from None


def check_parent(out: Path) -> None:
    """FileNotFoundError before the work and not after it."""
    if not out.parent.is_dir():
        raise FileNotFoundError(f"no folder {out.parent} to write {out.name} into; make it, or give another --out")


def trained_supernet(path: str) -> SupernetFiles:
    from supernet.checkpoint import open_supernet

    return open_supernet(Path(path).resolve())  # a plan keeps the path, and may be exported from another folder


def default_supernet() -> SupernetFiles:
    """The embedded default model's supernet, made on first use and kept in the cache."""
    from supernet.checkpoint import open_supernet

    home = default_supernet_path()
    if home.is_dir():
        files = open_supernet(home, unfinished=True)
        if files.finished:
            return files
    note(f"making the default supernet in {home}, once: about {DEFAULT_MINUTES + 3:.0f} minutes")
    from supernet.create import create
    from supernet.model import DEFAULT_MODEL
    from supernet.recipe import Recipe

    home.parent.mkdir(parents=True, exist_ok=True)
    with progress() as report:
        return create(DEFAULT_MODEL, home, Recipe(minutes=DEFAULT_MINUTES), resume=True, progress=report)


def default_supernet_path() -> Path:
    from planner.doctor import SUPERNET_FOLDER

    return cache_dir() / SUPERNET_FOLDER


def measured_quality(files: SupernetFiles) -> MeasuredQuality:
    """Measures subnets on the supernet's held-out text, loading its weights only where a subnet was never measured."""
    from planner.quality import EVALUATIONS_FILE, MeasuredQuality, Quality

    def measure(subnets: Sequence[Subnet]) -> list[Quality]:
        import torch

        from supernet.evaluate import evaluate
        from supernet.model import compute_dtype

        note(f"measuring what {len(subnets)} finalists lose")
        dtype = compute_dtype(torch.device("cpu"))
        return [quality.to_json() for quality in evaluate(files.load(), subnets, files.reference(), dtype=dtype)]

    return MeasuredQuality(files.path / EVALUATIONS_FILE, files.fingerprint, "held-out", measure)


def chosen_subnets(files: SupernetFiles, path: Path | None, bits: int | None) -> dict[str, Subnet]:
    """Subnets by the name to print: the one in a file, the uniform one at `bits`, or every uniform one."""
    from planner.jsonfile import read_json
    from planner.plan import KIND, Plan
    from supernet.space import Subnet

    if path is not None and bits is not None:
        raise ValueError("--subnet and --bits exclude each other; give one of them")
    if path is None:
        wanted = files.space.bits(files.spec) if bits is None else (bits,)
        return {f"{b} bits": files.space.uniform(files.spec, b) for b in wanted}
    data = read_json(path, "subnet", "give a plan, or a JSON object of unit: choice")
    subnet = Plan.load(path).subnet if data.get("kind") == KIND else Subnet.from_json(data)
    if subnet not in files.space:
        raise ValueError(f"a subnet has one of the supernet's choices for every unit, {path} has not; see {files.path}")
    return {path.name: subnet}


def full_model_on(
    files: SupernetFiles, text: str, windows: int, window_tokens: int, trust: bool, report: Any
) -> Reference:
    """What the full model says of other text than the supernet's own; needs the model that it was made from."""
    from supernet.evaluate import Reference
    from supernet.model import load_model
    from supernet.text import read_windows

    model, tokenizer = load_model(files.info["source"], trust)
    return Reference.of(model, read_windows(text, tokenizer, windows, window_tokens), report)


def runtime_named(name: str) -> Runtime:
    from planner.runtimes import RUNTIMES

    return one_of("--runtime", RUNTIMES, name)()


def one_of(option: str, family: Mapping[str, Any], name: str) -> Any:
    """The member of a family that is called `name`; ValueError lists the names."""
    if name not in family:
        raise ValueError(f"{option} must be one of {', '.join(family)}, got {name!r}")
    return family[name]


# --- errors -------------------------------------------------------------------------------------------------------


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code and the one line of an error."""
    text = " ".join(str(error).split())
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "bitfleet"
        return BAD_INPUT, f"{' '.join(error.format_message().split())} See: {command} --help"
    if isinstance(error, click.ClickException):
        return BAD_INPUT, error.format_message()
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED, "interrupted; nothing half-written is left behind"
    if isinstance(error, ImportError):
        missing = isinstance(error, ModuleNotFoundError) and text.startswith("No module named")
        return NOT_INSTALLED, f"{text}; run: bitfleet doctor" if missing else text
    if isinstance(error, OSError) and error.errno is not None and error.filename:
        text = f"{error.strerror}: {error.filename}"
    if isinstance(error, (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)):
        return BAD_INPUT, text
    if isinstance(error, OSError):
        return SYSTEM, f"{text}; free some space or choose another --out" if error.errno in FULL else text
    if (
        type(error).__name__ == "SafetensorError" and "I/O error" in text
    ):  # how writing a tensor file reports a full disk
        return SYSTEM, f"{text}; free some space or choose another --out"
    if isinstance(error, MemoryError):
        return SYSTEM, "out of memory; close programs or use a smaller model"
    if isinstance(error, ValueError):
        return BAD_INPUT, text
    from planner.plan import BudgetError

    if isinstance(error, BudgetError):
        return OVER_BUDGET, text
    return BUG, f"{type(error).__name__}: {text}; this is a bug in bitfleet, bitfleet --debug shows where"


def main(arguments: Sequence[str] | None = None) -> None:
    """The one place where errors become a line on stderr and an exit code."""
    settings = {"debug": False}
    try:
        code = cli.main(arguments, prog_name="bitfleet", standalone_mode=False, obj=settings)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        sys.stderr.close()
        code = OK
    except click.exceptions.NoArgsIsHelpError as error:
        note(error.format_message())
        code = BAD_INPUT
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if settings["debug"]:
            traceback.print_exc()
        code, line = explain(error)
        note(f"error: {line}")
    sys.exit(code if isinstance(code, int) else OK)


if __name__ == "__main__":
    main()
