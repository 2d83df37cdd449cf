"""Text from installed packages: nothing that is held out was trained on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import package_text

LICENCE = "Permission is granted to use this text for anything at all, by anybody, for as long as they like."
OWN = "A matrix times a vector is a vector whose numbers are sums of products of rows."


def file_of(*paragraphs: str) -> str:
    text = "\n\n".join(paragraphs)
    return f'"""{text}"""\n\ndef made():\n    """{text}\n\n    There is more here."""\n'


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages `seen`, of 40 files, and `other`; `numpy` stands for their versions."""
    for package, count in (("seen", 40), ("other", 3)):
        for number in range(count):
            path = tmp_path / package / f"part{number}.py"
            path.parent.mkdir(exist_ok=True)
            words = " ".join(f"{package}{number}word{index}" for index in range(20))
            path.write_text(file_of(LICENCE, OWN + f" {package}{number}", words))
        (tmp_path / package / "tests").mkdir()
        (tmp_path / package / "tests" / "test_it.py").write_text('"""Left out."""\n')
    (tmp_path / "seen" / "template.py").write_text("{{ not python }} (\n")
    monkeypatch.setattr(package_text, "root_of", lambda package: tmp_path / package)
    monkeypatch.setattr(package_text, "version_of", lambda package: "1.0")
    return tmp_path


def test_held_out_files_and_packages_share_nothing_with_what_trains(installed: Path) -> None:
    out = installed / "text"
    package_text.write(out, ["seen"], ["other"])
    train, held_out, other = ((out / name).read_text() for name in package_text.TEXTS)
    held = [n for n in range(40) if package_text.is_held_out(f"seen/part{n}.py")]
    assert 0 < len(held) < 10
    for number in range(40):
        word = f"seen{number}word7"
        assert (word in train, word in held_out) == (number not in held, number in held)
    assert all(f"other{number}word7" in other for number in range(3))
    assert train.count(LICENCE) == 1
    for text in (held_out, other):
        assert LICENCE not in text
        assert OWN not in text  # though its last word is new: most of its runs of words are known
    assert "Left out" not in train + held_out + other


def test_a_text_is_made_once_and_the_same_again(installed: Path) -> None:
    texts = []
    for name in ("first", "second"):
        package_text.write(installed / name, ["seen"], ["other"])
        texts.append([(installed / name / part).read_bytes() for part in (*package_text.TEXTS, "sources.json")])
    assert texts[0] == texts[1]
    assert json.loads(texts[0][-1])["versions"] == {"seen": "1.0", "other": "1.0"}
    (installed / "first" / "train.txt").write_text("mine")
    package_text.write(installed / "first", ["seen"], ["other"])
    assert (installed / "first" / "train.txt").read_text() == "mine"


def test_the_share_of_known_runs_is_exact() -> None:
    known = set(package_text.runs(list("abcdefghijkl")))
    assert package_text.share_of(list("abcdefghij"), known) == 1.0
    assert package_text.share_of(list("abcdefghxy"), known) == pytest.approx(1 / 3)
    assert package_text.share_of(list("abc"), known) == 0.0


def test_docstrings_are_those_of_modules_classes_and_functions_without_their_indent() -> None:
    source = (
        b'"""M"""\nclass A:\n    """C\n\n    more\n    """\n    def f(self):\n        """F"""\n        "no"\nx = "no"\n'
    )
    assert list(package_text.docstrings(source)) == ["M", "C\n\nmore", "F"]
