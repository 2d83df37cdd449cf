"""The shape that docs/architecture.md promises, read from the source itself."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("commands", "planner", "profiles", "records", "supernet")
ALLOWED = {
    "cli": {"cli", "commands", "records"},
    "commands": {"commands", "planner", "supernet", "profiles", "records"},
    "planner": {"planner", "supernet", "profiles", "records"},
    "supernet": {"supernet", "records"},
    "profiles": {"profiles", "records"},
    "records": {"records"},
}
FAMILIES = (
    "planner.runtimes",
    "planner.search",
    "supernet.adapters",
    "supernet.grids",
    "supernet.quantizers",
    "supernet.refiners",
    "supernet.samplers",
    "supernet.sharing",
    "supernet.schedules",
)
HEAVY = ("torch", "transformers", "accelerate", "onnx", "onnxruntime", "onnxruntime_genai", "optuna", "scipy")


def _sources() -> list[Path]:
    return [ROOT / "cli.py", *(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))]


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function."""
    package = _module(path) if path.name == "__init__.py" else _module(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", _sources(), ids=_module)
def test_imports_go_one_way(path: Path) -> None:
    allowed = ALLOWED[_module(path).split(".")[0]]
    ours = {name.split(".")[0] for name in _imports(path)} & ALLOWED.keys()
    assert ours <= allowed, f"{_module(path)} imports {sorted(ours - allowed)}"


def _loaded(node: ast.AST) -> Iterator[str]:
    """What the code below a node imports when it runs, at once or late: what only type checkers read is left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        yield from _loaded(child)


def test_no_module_of_the_supernet_imports_itself_in_a_circle() -> None:
    paths = {_module(path): path for path in _sources() if _module(path).startswith("supernet")}
    graph = {}
    for module, path in paths.items():
        names = _loaded(ast.parse(path.read_text("utf-8")))
        graph[module] = {name if name in paths else name.rpartition(".")[0] for name in names} & paths.keys() - {module}
    assert any("supernet.quantizers" in read for read in graph.values())
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def _members(family: str) -> Iterator[tuple[str, Path]]:
    """(member, file) for each file of a family; a member is one module or folder that the family's dict names.

    What the dict does not name (the abstract class, a part that several members share) is nobody's sibling.
    """
    folder = ROOT / family.replace(".", "/")
    named = re.findall(rf"{re.escape(family)}\.(\w+)", (folder / "__init__.py").read_text("utf-8"))
    for path in sorted(folder.rglob("*.py")):
        member = path.relative_to(folder).parts[0].removesuffix(".py")
        if member in named and member != "base":
            yield member, path


@pytest.mark.parametrize("family", FAMILIES)
def test_members_of_a_family_do_not_import_each_other(family: str) -> None:
    members = {member for member, _ in _members(family)}
    for member, path in _members(family):
        siblings = {f"{family}.{other}" for other in members - {member}}
        imported = {".".join(name.split(".")[:3]) for name in _imports(path)}
        assert not imported & siblings, f"{_module(path)} imports {sorted(imported & siblings)}"


def test_what_plans_on_cached_numbers_starts_without_the_heavy_libraries() -> None:
    modules = [_module(path) for path in _sources() if _module(path).startswith("profiles")]
    modules += ["supernet.spec", "supernet.space", "supernet.checkpoint", "planner.plan", "planner.pipeline", "cli"]
    code = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
    code += f"print(sorted(set({HEAVY!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", _sources(), ids=_module)
def test_nothing_unpickles_or_trusts_remote_code_by_itself(path: Path) -> None:
    assert not {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"} & set(_imports(path))
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("torch", "load"), f"{path.name}:{node.lineno} calls torch.load"
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            literal = isinstance(node.value, ast.Constant) and node.value.value is True
            assert not literal, f"{path.name}:{node.value.lineno} sets {node.arg}=True"


@pytest.mark.parametrize("path", _sources(), ids=_module)
def test_names_say_what_a_file_is_about(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
