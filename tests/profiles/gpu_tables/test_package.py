"""Which GPUs the package has tables of, which of its files are read, and where they come from."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from profiles.catalog import load, names
from profiles.gpu_tables import package
from records.errors import InputError

pytest.importorskip("pyarrow")
WITH_TABLES = {
    "a100-sxm-80gb": "a100_sxm", "b200-sxm-180gb": "b200_sxm", "gb200-186gb": "gb200", "h100-sxm-80gb": "h100_sxm",
    "h200-sxm-141gb": "h200_sxm", "l40s-48gb": "l40s",
}  # fmt: skip


@pytest.mark.parametrize("name", names())
def test_a_catalogue_s_gpu_is_known_by_its_model(name: str) -> None:
    assert package.system_of(load(name)) == WITH_TABLES.get(name)


@pytest.mark.parametrize(
    ("model", "system"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100_sxm"),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA A100 80GB PCIe", None),
        ("NVIDIA H100 80GB HBM3", "h100_sxm"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200", "h200_sxm"),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA B200", "b200_sxm"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA B300 SXM6 AC", "b300_sxm"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", None),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx_pro_6000_server"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", None),
    ],
)
def test_a_gpu_is_known_as_its_driver_calls_it(model: str, system: str | None) -> None:
    device = replace(load("h100-sxm-80gb"), model=model)
    assert package.system_of(device) == system
    assert package.system_of(replace(device, kind="cpu")) is None


def test_the_newest_version_is_read(tmp_path: Path) -> None:
    for version in ("0.9.0", "0.24.0", "0.24.0rc2", "0.3.0rc20"):
        (tmp_path / "x" / "gemm" / "vllm" / version).mkdir(parents=True)
        (tmp_path / "x" / "gemm" / "vllm" / version / "gemm_perf.parquet").touch()
    found = package.newest(tmp_path, "x", "gemm", "vllm", "gemm_perf.parquet")
    assert found is not None and found.parent.name.startswith("0.24.0")
    assert package.newest(tmp_path, "y", "gemm", "vllm", "gemm_perf.parquet") is None


def test_rows_are_those_that_say_what_was_asked_and_columns_those_that_are_there(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "gemm" / "vllm" / "0.24.0" / "gemm_perf.parquet"
    path.parent.mkdir(parents=True)
    rows = {"kind": ["a", "b", "a"], "m": [1, 2, 3], "device": ["GPU"] * 3, "version": ["0.14.0"] * 3}
    pyarrow.parquet.write_table(pyarrow.table(rows), path)
    columns, source = package.read(path, ("m", "n"), {"kind": "a", "other": "c"})
    assert columns.keys() == {"m"} and columns["m"].tolist() == [1, 3]
    assert source == package.Source("gemm", "vllm", "0.14.0", "GPU")  # as the rows say, whatever folder they are in
    with pytest.raises(InputError, match="no rows of c"):
        package.read(path, ("m",), {"kind": "c"})


def test_nothing_is_there_where_the_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # what keeps tests from what is installed
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert package.root() is None
