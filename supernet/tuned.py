"""Numbers that were trained for one subnet alone, in a file of their own beside the supernet, which stays as it is.

    tuned/HASH.safetensors            what a grid keeps beside its codes, by `linear|choice|part`, where it differs
    tuned/windows-SEED.safetensors    the text that trained, where the full model wrote it
    tuned/tunings.json                what tunings came to, by what was asked

The file is named by what is in it, so one that is there is whole and is the one that is meant. A plan names it by its
SHA-256, and whoever opens the supernet for that plan (`with_tuned`) reads these parts in place of the supernet's own.
Where the supernet may only be read, it is kept in the cache, as what else planning leaves is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from records.atomic import replacing
from records.errors import InputError, MissingError
from supernet.checkpoint import CODES, TUNED, SupernetFiles, TunedFile
from supernet.formats import CODES as CODES_PART
from supernet.space import Subnet

if TYPE_CHECKING:
    from torch import Tensor

_AGAIN = "plan again with --tune"


def write_tuned(files: SupernetFiles, subnet: Subnet, tensors: Mapping[str, Tensor]) -> SupernetFiles:
    """Keep the `tensors` that were trained for `subnet`, and open the supernet with them."""
    from supernet.files import tensor_bytes

    found = tensor_bytes(dict(sorted(tensors.items())), {"supernet": files.fingerprint, "subnet": subnet.digest})
    digest = hashlib.sha256(found).hexdigest()
    with replacing(files.place(_name(digest), writing=True)) as temporary:
        temporary.write_bytes(found)
    return with_tuned(files, digest, subnet)


def with_tuned(files: SupernetFiles, digest: str, subnet: Subnet) -> SupernetFiles:
    """The supernet with the numbers of the file with this SHA-256, which were trained for `subnet`.

    MissingError where the file is nowhere, InputError where it is damaged or of another supernet or subnet.
    """
    path = tuned_path(files, digest)
    if not path.is_file():
        raise MissingError(
            f"the plan was tuned, and its numbers are not at {files.path / _name(digest)}; copy that file from "
            f"the supernet it was planned with, or {_AGAIN}"
        )
    tuned = replace(files, tuned=TunedFile(path, digest), _open={})
    tuned.check_tuned()
    tensors, about = tuned.own
    if about != {"supernet": files.fingerprint, "subnet": subnet.digest} or not _fit(files, tensors):
        raise InputError(f"{path} was tuned for another plan or supernet than {files.path}; {_AGAIN}")
    return tuned


def tuned_path(files: SupernetFiles, digest: str) -> Path:
    """Where the file with this SHA-256 is, or would be."""
    return files.place(_name(digest))


def _fit(files: SupernetFiles, tensors: Mapping[str, Tensor]) -> bool:
    """Whether each takes the place of numbers of the supernet's that are no codes."""
    known = files.tensors(CODES)
    names = {name for name in known.keys() if not name.endswith(f"|{CODES_PART}")}  # noqa: SIM118
    return all(name in names and known.get_tensor(name).shape == tensor.shape for name, tensor in tensors.items())


def _name(digest: str) -> str:
    return f"{TUNED}/{digest[:16]}.safetensors"
