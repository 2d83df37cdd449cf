"""What a new package has and an old one lacks, as a folder: where the old one is, the new one follows to the last bit.

    delta.json   what both packages are, and the parts that each file of the new one is put together from
    delta.data   the parts that the old package lacks, one after another, each compressed where that makes it smaller

What is compared are the pieces that the runtime knows of, by their content: a tensor that is the same in both is copied
wherever it lies. A delta may be a stranger's: nothing in it is believed before its hashes and places are checked, and
nothing is written before the old package is known to be the one that it was made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from planner.package import MANIFEST, PLAIN_NAME, Entry, Package, check_replaceable, open_package
from planner.runtimes.base import Piece, Progress, Runtime
from records.atomic import new_folder, sha256
from records.errors import InputError, MissingError, SystemFailure
from records.lock import locked
from records.reading import as_record, check, read_json

DELTA, DATA = "delta.json", "delta.data"
KIND = "bitfleet delta"
SCHEMA = 1
CHUNK_BYTES = 2**20  # what is in memory of a file at once
_REMAKE = "make it again with `bitfleet delta OLD NEW --out DIR`"


@dataclass(frozen=True)
class Part:
    """`bytes` of a new file: those from `offset` on of the old package's `file`, or, without one, what the
    `packed_bytes` from `offset` on in delta.data hold: compressed where they are fewer. `name` is the tensor's."""

    bytes: int
    offset: int
    file: str | None = None
    packed_bytes: int | None = None
    name: str = ""

    def __post_init__(self) -> None:
        check("bytes", self.bytes, int, least=1)
        check("offset", self.offset, int, least=0)
        check("packed_bytes", self.packed_bytes, int, optional=True, least=1)
        if (self.file is None) == (self.packed_bytes is None):
            raise InputError("a part is of an old file or has packed_bytes, and never both")
        if self.packed_bytes is not None and self.packed_bytes > self.bytes:
            raise InputError(f"packed_bytes must be at most its bytes, got {self.packed_bytes} and {self.bytes}")


@dataclass(frozen=True)
class Delta:
    """`new` are all files of the new package, its manifest too; `old` those that parts of them are copied from, and the
    old manifest, which stands for the rest. `tensors` is how many the new package has; `data` is delta.data."""

    path: Path
    old: Mapping[str, Entry]
    new: Mapping[str, Entry]
    parts: Mapping[str, tuple[Part, ...]]
    data: Entry
    tensors: int

    def __post_init__(self) -> None:
        """InputError unless the parts make up the new files, lie in the files that they are of, and use all of data."""
        check("tensors", self.tensors, int, least=0)
        for name in {**self.old, **self.new, **self.parts}:
            if not PLAIN_NAME.fullmatch(name):
                raise InputError(f"a file of a package has a plain name, got {name!r:.80}")
        if MANIFEST not in self.old or MANIFEST not in self.new or self.parts.keys() != self.new.keys():
            raise InputError(f"both packages must have a {MANIFEST}, and every new file its parts")
        end = 0
        for name, parts in self.parts.items():
            if sum(part.bytes for part in parts) != self.new[name].bytes:
                raise InputError(f"the parts of {name} must have {self.new[name].bytes} bytes in all")
            for part in parts:
                if part.file is None and part.offset != end:
                    raise InputError(f"parts must lie one after another in {DATA}, got {part.offset} after {end}")
                end += part.packed_bytes or 0
                if part.file is not None and part.file not in self.old:
                    raise InputError(f"the old package's files must be listed, {part.file!r:.80} is not")
                if part.file is not None and part.offset + part.bytes > self.old[part.file].bytes:
                    raise InputError(f"a part of {name} ends beyond the end of {part.file}")
        if end != self.data.bytes:
            raise InputError(f"the parts must use all {self.data.bytes} bytes of {DATA}, they use {end}")

    @property
    def changed(self) -> tuple[str, ...]:
        """The tensors that the delta carries."""
        return tuple(part.name for parts in self.parts.values() for part in parts if part.file is None and part.name)

    @property
    def package_bytes(self) -> int:
        return sum(entry.bytes for entry in self.new.values())

    @property
    def bytes(self) -> int:
        """What the delta takes, its index included."""
        return self.data.bytes + (self.path / DELTA).stat().st_size

    def check(self, old: Package) -> None:
        """InputError unless `old`, whole, is the package that this was made from, and delta.data is what was written.

        Reads every byte of both, and writes none.
        """
        has = {**old.files, MANIFEST: _entry(old.path / MANIFEST)}
        if has[MANIFEST] != self.old[MANIFEST]:
            asked, got = (entries[MANIFEST].sha256[:12] for entries in (self.old, has))
            raise InputError(
                f"{old.path} is not the package that {self.path} was made from: the SHA-256 of its {MANIFEST} must "
                f"begin with {asked}, got {got}; give the package that it was made from"
            )
        for name, entry in self.old.items():
            if has.get(name) != entry:
                raise InputError(f"{self.path} and {old.path / MANIFEST} disagree about {name}; {_REMAKE}")
        old.check_files()
        if _entry(self.path / DATA) != self.data:
            raise InputError(f"{self.path / DATA} is damaged: its SHA-256 is not the one in {DELTA}; {_REMAKE}")


def _entry(path: Path) -> Entry:
    return Entry(sha256(path), path.stat().st_size)


# --- on disk ------------------------------------------------------------------------------------------------------


def signature(data: Mapping[str, Any]) -> str:
    """SHA-256 of an index but for its own: a flipped bit is found before anything is done. It proves no origin."""
    text = json.dumps({k: v for k, v in data.items() if k != "sha256"}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def open_delta(path: Path) -> Delta:
    """MissingError or InputError, one line with the next step, for what is missing, damaged or something else.

    Reads the index alone: whether it speaks of the files that are there, `Delta.check` says.
    """
    if not path.is_dir():
        raise MissingError(f"no delta at {path}; {_REMAKE}")
    there = {file.name: file.lstat().st_mode for file in path.iterdir()}
    if DELTA not in there:
        raise MissingError(f"no {DELTA} in {path}, so it is no delta; {_REMAKE}")
    if there.keys() != {DELTA, DATA} or not all(map(stat.S_ISREG, there.values())):
        raise InputError(f"a delta holds the regular files {DELTA} and {DATA} alone, {path} does not; {_REMAKE}")
    data = read_json(path / DELTA, "delta manifest", _REMAKE)
    if data.get("kind") != KIND or data.get("schema") != SCHEMA:
        raise InputError(f"{path / DELTA} is not a delta of this version; {_REMAKE}")
    if data.get("sha256") != signature(data):
        raise InputError(f"{path / DELTA} is damaged: its SHA-256 is not the one in it; {_REMAKE}")
    try:
        return Delta(
            path.resolve(),
            as_record(dict[str, Entry], data.get("old"), "old"),
            as_record(dict[str, Entry], data.get("new"), "new"),
            as_record(dict[str, tuple[Part, ...]], data.get("parts"), "parts"),
            as_record(Entry, data.get("data"), "data"),
            as_record(int, data.get("tensors"), "tensors"),
        )
    except InputError as error:
        raise InputError(f"{path / DELTA} is damaged ({error}); {_REMAKE}") from None


def _write_index(
    folder: Path, old: Mapping[str, Entry], new: Mapping[str, Entry], parts: Mapping[str, list[Part]], tensors: int
) -> None:
    index = {
        "kind": KIND,
        "schema": SCHEMA,
        "tensors": tensors,
        "old": {name: asdict(entry) for name, entry in old.items()},
        "new": {name: asdict(entry) for name, entry in new.items()},
        "data": asdict(_entry(folder / DATA)),
        "parts": {name: [{k: v for k, v in asdict(p).items() if v or k == "offset"} for p in found]
                  for name, found in parts.items()},
    }  # fmt: skip
    text = json.dumps({**index, "sha256": signature(index)}, indent=1)
    (folder / DELTA).write_text(text + "\n", encoding="utf-8")


# --- making one ---------------------------------------------------------------------------------------------------


def write_delta(runtime: Runtime, old: Package, new: Package, out: Path, progress: Progress | None = None) -> Delta:
    """Write what `new` has and `old` lacks into the folder `out`, whole or not at all; an older delta is replaced.

    InputError where a package is not whole, or may not be loaded by the `runtime` of both, and where `out` is anything
    else or within one of them.
    """
    if old.plan.runtime != new.plan.runtime:
        raise InputError(
            f"a delta is between packages of one runtime, {old.path} is for {old.plan.runtime} and {new.path} for "
            f"{new.plan.runtime}; export one of them again"
        )
    check_replaceable(out, "delta", DELTA)
    _check_apart(out, old.path, new.path)
    for package in (old, new):
        package.check(runtime)
    out.parent.mkdir(parents=True, exist_ok=True)  # the lock lies there, too
    with locked(out, "another delta"):
        check_replaceable(out, "delta", DELTA)
        with new_folder(out) as folder:
            _write(runtime, old, new, folder, progress or (lambda what, share: None))
            open_delta(folder)  # what cannot be read again is not written
    return open_delta(out)


def _write(runtime: Runtime, old: Package, new: Package, folder: Path, progress: Progress) -> None:
    places = _places(runtime, old, progress)
    parts: dict[str, list[Part]] = {}
    entries, tensors, done = _entries(new), 0, 0
    total = sum(entry.bytes for entry in entries.values())
    with (folder / DATA).open("w+b") as data:
        for name, pieces in _pieces(runtime, new, entries).items():
            parts[name] = []
            with (new.path / name).open("rb") as file:
                for piece in pieces:
                    _add(parts[name], piece, file, data, places.get(_digest(file, piece)))
                    tensors += bool(piece.name)
                    done += piece.bytes
                    progress("comparing", done / total)
    used = {part.file for found in parts.values() for part in found} | {MANIFEST}
    known = {name: entry for name, entry in _entries(old).items() if name in used}
    _write_index(folder, known, entries, parts, tensors)


def _entries(package: Package) -> dict[str, Entry]:
    return {**package.files, MANIFEST: _entry(package.path / MANIFEST)}


def _pieces(runtime: Runtime, package: Package, entries: Mapping[str, Entry]) -> dict[str, tuple[Piece, ...]]:
    return runtime.packages.pieces(package.path, {name: entry.bytes for name, entry in entries.items()})


def _places(runtime: Runtime, old: Package, progress: Progress) -> dict[bytes, dict[tuple[str, int], None]]:
    """By the hash of a piece of the old package, every file and offset where it is."""
    found: dict[bytes, dict[tuple[str, int], None]] = {}
    pieces = _pieces(runtime, old, _entries(old))
    for number, (name, inside) in enumerate(pieces.items()):
        with (old.path / name).open("rb") as file:
            for piece in inside:
                found.setdefault(_digest(file, piece), {})[name, piece.offset] = None
        progress("reading the old package", (number + 1) / len(pieces))
    return found


def _digest(file: BinaryIO, piece: Piece) -> bytes:
    digest = hashlib.sha256()
    for chunk in _read(file, piece.offset, piece.bytes):
        digest.update(chunk)
    return digest.digest()


def _add(
    parts: list[Part], piece: Piece, file: BinaryIO, data: BinaryIO, places: dict[tuple[str, int], None] | None
) -> None:
    """One more part, or more of the last one: what lies side by side in the old file as well is copied in one go."""
    if places is None:
        offset = data.tell()
        parts.append(Part(piece.bytes, offset, None, _pack(file, piece, data), piece.name))
        return
    last = parts[-1] if parts else None
    if last is not None and last.file is not None and (last.file, last.offset + last.bytes) in places:
        parts[-1] = Part(last.bytes + piece.bytes, last.offset, last.file)
    else:
        name, offset = next(iter(places))
        parts.append(Part(piece.bytes, offset, name))


def _pack(file: BinaryIO, piece: Piece, data: BinaryIO) -> int:
    """How many bytes `piece` takes in `data`: compressed only where that is less."""
    start, packer = data.tell(), zlib.compressobj()
    for chunk in _read(file, piece.offset, piece.bytes):
        data.write(packer.compress(chunk))
    data.write(packer.flush())
    if data.tell() - start >= piece.bytes:
        data.seek(start)
        data.writelines(_read(file, piece.offset, piece.bytes))
        data.truncate()
    return data.tell() - start


# --- applying one -------------------------------------------------------------------------------------------------


def apply_delta(old: Path, delta: Path, out: Path, progress: Progress | None = None) -> Package:
    """Put the new package together in the folder `out`, to the last bit or not at all; `out` may be `old` itself.

    InputError, before anything is written, where `old` is not whole or not what the delta was made from, where the
    delta is damaged, and where `out` is neither free nor a package; SystemFailure where the disk has too little room.
    """
    check_replaceable(out)
    made = open_delta(delta)
    base = open_package(old)
    _check_apart(out, old, delta)
    made.check(base)
    _check_room(out, made.package_bytes)
    out.parent.mkdir(parents=True, exist_ok=True)  # the lock lies there, too
    with locked(out, "another export"):
        check_replaceable(out)
        with new_folder(out) as folder:
            _apply(base.path, made, folder, progress or (lambda what, share: None))
            _check_made(made, folder)
    return open_package(out)


def _check_apart(out: Path, *folders: Path) -> None:
    place = Path(os.path.realpath(out))
    for folder in (Path(os.path.realpath(folder)) for folder in folders):
        if place != folder and (place.is_relative_to(folder) or folder.is_relative_to(place)):
            raise InputError(f"{out} and {folder} must not lie one within the other; give another --out")


def _check_room(out: Path, needed: int) -> None:
    place = next(folder for folder in Path(os.path.realpath(out)).parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise SystemFailure(
            f"the new package takes {needed} bytes in {place}, {free} are free there; free some space or give another "
            "--out"
        )


def _apply(old: Path, delta: Delta, folder: Path, progress: Progress) -> None:
    done = 0
    for name, parts in delta.parts.items():
        digest = hashlib.sha256()
        with (folder / name).open("xb") as file:
            for part in parts:
                for chunk in _content(old, delta, part):
                    digest.update(chunk)
                    file.write(chunk)
                done += part.bytes
                progress("writing", done / delta.package_bytes)
            file.flush()
            os.fsync(file.fileno())  # the old package may go as soon as this one has its name, and the power after that
        if digest.hexdigest() != delta.new[name].sha256:
            raise InputError(f"{delta.path} does not make the {name} that it promises; {_REMAKE}")


def _content(old: Path, delta: Delta, part: Part) -> Iterator[bytes]:
    with (delta.path / DATA if part.file is None else old / part.file).open("rb") as file:
        if part.packed_bytes is not None and part.packed_bytes < part.bytes:
            yield from _unpacked(file, part.offset, part.packed_bytes, part.bytes)
        else:
            yield from _read(file, part.offset, part.bytes)


def _unpacked(file: BinaryIO, offset: int, packed: int, size: int) -> Iterator[bytes]:
    """Never more in memory than a chunk, nor more in all than `size`, whatever the packed bytes say."""
    packer, left = zlib.decompressobj(), size
    try:
        for chunk in _read(file, offset, packed):
            while left >= 0 and (found := packer.decompress(chunk, min(CHUNK_BYTES, left + 1))):
                chunk, left = packer.unconsumed_tail, left - len(found)
                yield found
    except zlib.error as error:
        raise InputError(f"{file.name} cannot be unpacked ({error}); {_REMAKE}") from None
    if left or not packer.eof or packer.unused_data:
        raise InputError(f"{file.name} does not unpack to {size} bytes at {offset}; {_REMAKE}")


def _read(file: BinaryIO, offset: int, size: int) -> Iterator[bytes]:
    file.seek(offset)
    while size:
        chunk = file.read(min(CHUNK_BYTES, size))
        if not chunk:
            raise SystemFailure(f"{file.name} became shorter while it was read; try again")
        size -= len(chunk)
        yield chunk


def _check_made(delta: Delta, folder: Path) -> None:
    """InputError unless the new manifest lists the new files, as they are."""
    try:
        made = open_package(folder)
    except InputError as error:
        raise InputError(f"{delta.path} makes no package of this version ({error})") from None
    if _entries(made) != delta.new:
        raise InputError(f"{delta.path} makes a package whose {MANIFEST} is of other files; {_REMAKE}")
