"""Everything that is to be measured wherever a GPU is at hand, in parts; benchmarks/gpu.sh starts it.

    python benchmarks/gpu.py --out FOLDER [--parts a,b] [--seconds 540] [--model FILE --text FOLDER]

Each part is a process of its own with a limit of time and writes FOLDER/PART.json while it goes on; a part that fails,
or whose time is up, is a line in its file, and the others go on. Without a GPU they run on tiny shapes and say so.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Part:
    """`share` of the seconds is its limit; what other parts leave over is added to the next ones."""

    name: str
    share: float
    bundle: str
    about: str


PARTS = (
    Part("products", 0.20, "a", "bandwidth, products of 2 to 16 bits, attention, launches: the device's profile"),
    Part("step-1b", 0.07, "a", "a training step of Llama-3.2-1B's shape beside LoRA's"),
    Part("step-8b", 0.13, "a", "the same of Llama-3.1-8B's shape, and where codes teach"),
    Part("blocks", 0.07, "a", "GPTQ and learned rounding of a block of 8B"),
    Part("decode", 0.05, "a", "a token through each kernel, beside what is predicted"),
    Part("training", 0.46, "b", "SmolLM2's full training, and its KL"),
    Part("long", 0.02, "b", "the same with ten times the steps, or as many as fit"),
)
NAMES = [part.name for part in PARTS]
GRACE_S = 5.0


def main() -> None:
    arguments = parsed()
    if arguments.one:
        do(arguments)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in PARTS if part.name in arguments.parts.split(",")]
    spare, total, done = 0.0, sum(part.share for part in chosen), {}
    for part in chosen:
        limit = arguments.seconds * part.share / total + spare
        print(f"{time.strftime('%H:%M:%S')} {part.name}, {limit:.0f} s at most: {part.about}", flush=True)
        done[part.name] = run(part, limit, arguments)
        spare = limit - done[part.name]["seconds"]
        print("  " + said(done[part.name]), flush=True)
    if not any(found.get("on_gpu") for found in done.values()):
        print("nothing was measured on a GPU: these are tiny shapes on a processor")
    sys.exit(0 if all(found["status"] == "done" for found in done.values()) else 1)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where each part's JSON file goes")
    parser.add_argument("--parts", default=",".join(NAMES), help="which, with commas")
    parser.add_argument("--seconds", type=float, default=540.0, help="of all parts together")
    parser.add_argument("--model", help="SmolLM2's GGUF file; without it a tiny model is trained")
    parser.add_argument("--text", type=Path, help="the folder of train.txt and eval.txt")
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)
    found = parser.parse_args()
    wrong = set(found.parts.split(",")) - set(NAMES)
    if wrong:
        parser.error(f"--parts must be of {', '.join(NAMES)}, got {', '.join(sorted(wrong))}")
    if (found.model is None) != (found.text is None):
        parser.error("--model and --text are given together or not at all")
    return found


def run(part: Part, limit: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the part's file says in the end."""
    path, started = arguments.out / f"{part.name}.json", time.monotonic()
    path.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--one", part.name, "--out", str(arguments.out), "--limit", str(limit)]
    if arguments.model:
        command += ["--model", arguments.model, "--text", str(arguments.text)]
    log = arguments.out / "gpu.log"
    with log.open("ab") as lines:
        lines.write(f"== {part.name}\n".encode())
        lines.flush()
        begun = lines.tell()
        child = subprocess.Popen(command, stdout=lines, stderr=lines, start_new_session=True)
        try:
            status = "done" if child.wait(limit + GRACE_S) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:
            end(child)
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found |= {"part": part.name, "status": status, "seconds": time.monotonic() - started, "limit_s": limit}
    if status == "failed":
        found["error"] = last_line(log, begun)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def end(child: subprocess.Popen[bytes]) -> None:
    """The part and whatever it started: compilers, too."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def last_line(log: Path, begun: int) -> str:
    with log.open("rb") as lines:
        lines.seek(begun)
        said = lines.read().decode(errors="replace").strip().splitlines()
    return said[-1][:500] if said else "it said nothing"


def do(arguments: argparse.Namespace) -> None:
    """One part, in this process."""
    import torch
    from gpu_record import Record

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    record = Record(arguments.out / f"{arguments.one}.json", device, arguments.limit)
    started = time.monotonic()
    if arguments.one in ("training", "long"):
        import gpu_training

        member = gpu_training.full if arguments.one == "training" else gpu_training.long
        member(record, arguments.model, arguments.text)
    elif arguments.one.startswith("step-"):
        import gpu_steps

        (gpu_steps.small if arguments.one == "step-1b" else gpu_steps.large)(record)
    else:
        import gpu_blocks
        import gpu_decode
        import gpu_products

        {"blocks": gpu_blocks.run, "decode": gpu_decode.run, "products": gpu_products.run}[arguments.one](record)
    record.add(part_s=time.monotonic() - started)


def said(found: dict[str, Any]) -> str:
    """A part in a line."""
    line = f"{found['status']} in {found['seconds']:.0f} s"
    if "error" in found:
        return f"{line}: {found['error']}"
    numbers = [f"{name} {value} (target {target})" for name, (value, target) in found.get("targets", {}).items()]
    if "kl" in found:
        numbers.append("KL " + ", ".join(f"{bits} bits {one['kl']:.4f}" for bits, one in found["kl"].items()))
    return f"{line}: {'; '.join(numbers)}" if numbers else line


if __name__ == "__main__":
    main()
