"""Text that anybody can get from the package index: the docstrings of what `make install` installs.

    python benchmarks/package_text.py --out FOLDER

Writes train.txt, eval.txt and packages.txt, which share nothing but single words and phrases:

- train.txt: the docstrings of TRAINED, but for one file in HELD_OUT
- eval.txt: those held-out files, chosen by a hash of their path
- packages.txt: the docstrings of OTHERS, of which no file is in train.txt

A paragraph stays where it comes first. One of the held-out texts is left out where more than SHARED of its runs of RUN
words are somewhere in train.txt: licences, inherited docstrings, and parameters that are described twice.
sources.json says which versions made it, with a checksum of each text.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
import platform
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from records.atomic import write_text

PYTHON = "python"
TRAINED = (PYTHON, "numpy", "scipy", "sympy", "torch", "sqlalchemy")
OTHERS = ("networkx", "optuna")
HELD_OUT = 16
RUN, SHARED = 8, 0.2
TEXTS = ("train.txt", "eval.txt", "packages.txt")
SKIPPED = {"site-packages", "test", "tests", "idlelib", "lib2to3"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    write(parser.parse_args().out)


def write(out: Path, trained: Sequence[str] = TRAINED, others: Sequence[str] = OTHERS) -> None:
    """The three texts in the folder `out`, unless they are there."""
    if (out / "sources.json").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    files = [(package, path) for package in trained for path in files_of(package)]
    held = {path for package, path in files if is_held_out(f"{package}/{path.relative_to(root_of(package))}")}
    seen: set[str] = set()
    texts = [join(paragraphs_of((path for _, path in files if path not in held), seen))]
    known = set(runs(texts[0].split()))
    for paths in ((path for _, path in files if path in held), (p for one in others for p in files_of(one))):
        texts.append(join(p for p in paragraphs_of(paths, seen) if share_of(p.split(), known) <= SHARED))
    for name, text in zip(TEXTS, texts, strict=True):
        write_text(out / name, text)
        print(f"{name}: {len(text):,} characters", flush=True)
    sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in zip(TEXTS, texts, strict=True)}
    versions = {package: version_of(package) for package in (*trained, *others)}
    write_text(out / "sources.json", json.dumps({"versions": versions, "sha256": sums}, indent=1) + "\n")


def root_of(package: str) -> Path:
    if package == PYTHON:
        return Path(sysconfig.get_paths()["stdlib"])
    return Path(sysconfig.get_paths()["purelib"]) / package


def version_of(package: str) -> str:
    return platform.python_version() if package == PYTHON else version(package)


def files_of(package: str) -> list[Path]:
    root = root_of(package)
    return [path for path in sorted(root.rglob("*.py")) if not SKIPPED & set(path.relative_to(root).parts)]


def is_held_out(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] % HELD_OUT == 0


def paragraphs_of(paths: Iterator[Path], seen: set[str]) -> Iterator[str]:
    """Of all docstrings, without those whose words were `seen`; they are added to it."""
    for path in paths:
        for docstring in docstrings(path.read_bytes()):
            for paragraph in docstring.split("\n\n"):
                words = " ".join(paragraph.split())
                if words and words not in seen:
                    seen.add(words)
                    yield paragraph.strip("\n")


def docstrings(source: bytes) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in others' strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # some files are templates, or examples of what does not parse
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield inspect.cleandoc(text)


def runs(words: Sequence[str]) -> Iterator[int]:
    return (hash(tuple(words[at : at + RUN])) for at in range(len(words) - RUN + 1))


def share_of(words: Sequence[str], known: set[int]) -> float:
    """How many of its runs are known. Paragraphs of fewer words have none: they were compared as a whole."""
    found = [run in known for run in runs(words)]
    return sum(found) / len(found) if found else 0.0


def join(paragraphs: Iterator[str]) -> str:
    return "\n\n".join(paragraphs) + "\n"


if __name__ == "__main__":
    main()
