"""A fleet in a file: the example works, and what is wrong is said with its line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from planner.fleet.fleetfile import EXAMPLE, MOST_DEVICES, Fleet, in_keys, read_fleet
from planner.request import Asked, Budget, ContextRange
from profiles.catalog import load
from profiles.device import DeviceProfile
from records.errors import InputError, MissingError


def written(folder: Path, text: str) -> Path:
    (folder / "fleet.toml").write_text(text, encoding="utf-8")
    return folder / "fleet.toml"


def read(folder: Path, text: str, own: Callable[[str], DeviceProfile] | None = None) -> Fleet:
    return read_fleet(written(folder, text), own)


def test_the_example_works_as_it_is(tmp_path: Path) -> None:
    fleet = read(tmp_path, EXAMPLE)
    assert (fleet.supernet, fleet.max_loss) == (None, 0.05)
    by_name = {device.name: device for device in fleet.devices}
    assert list(by_name) == ["raspberry-pi-5-8gb", "kiosk", "desk", "graviton3-128gb", "small-pi", "thin-client"]
    assert by_name["kiosk"].budget == Budget(320_000_000, disk_bytes=150_000_000)
    assert by_name["desk"].budget == Budget(600_000_000, ttft_ms=500.0)
    assert by_name["raspberry-pi-5-8gb"].budget.tpot_ms == 50.0
    assert [device.asked.context for device in fleet.devices] == [2048, 2048, 4096, 2048, 2048, 2048]
    graviton = by_name["graviton3-128gb"]
    assert (graviton.asked.batch, graviton.budget.memory_bytes) == (4, load("graviton3-128gb").memory_bytes)
    pi = by_name["small-pi"].profile
    assert (pi.name, pi.memory_bytes, pi.clock_hz) == ("small-pi", 4 * 10**9, load("raspberry-pi-5-8gb").clock_hz)
    client = by_name["thin-client"].profile
    assert (client.bandwidth_bytes_per_s, client.clock_hz, client.threads) == (38.4e9, 2e9, 4)
    assert not client.measured


def test_what_the_example_has_in_comments_works_too(tmp_path: Path) -> None:
    keys = ("[[", "name", "device", "mem", "host", "gpu", "batch", "prompt", "kv", "runtime", "supernet")
    lines = [line[2:] if line.startswith(tuple(f"# {key}" for key in keys)) else line for line in EXAMPLE.split("\n")]
    load("l4-24gb").save(tmp_path / "board.json")
    path = written(tmp_path, "\n".join(lines))
    fleet = read_fleet(path, own=lambda runtime: load("steam-deck-16gb"))
    assert fleet.supernet == str(tmp_path / "supernet")
    gaming, server = fleet.devices[-4:-2]
    assert gaming.profile == replace(load("rtx-4060-8gb"), host=load("desktop-ryzen-5600-16gb"))
    assert gaming.budget == Budget(7 * 10**9, host_memory_bytes=8 * 10**9) and gaming.asked.gpu_layers == 31
    assert (server.runtime, server.asked.gpus, server.asked.batch) == ("vllm", 4, 16)
    assert [(d.name, d.profile.name) for d in fleet.devices[-2:]] == [
        ("board", "l4-24gb"),
        ("this-machine", "steam-deck-16gb"),
    ]
    assert fleet.devices[0].asked == Asked(2048, 1, 128, "auto")


def test_tokens_a_second_are_a_time_per_token(tmp_path: Path) -> None:
    """A device's own limit of time takes the place of the defaults', in whichever way they are given."""
    device = '\n[[device]]\ndevice = "l4-24gb"\n'
    named = [f'{device}name = "{name}"\n' for name in "abc"]
    fleet = read(tmp_path, f"[defaults]\ntarget-tps = 20{named[0]}{named[1]}latency = '8ms'{named[2]}target-tps = 2.5")
    assert [one.budget.tpot_ms for one in fleet.devices] == [50.0, 8.0, 400.0]


def test_a_device_that_names_no_runtime_is_planned_for_each(tmp_path: Path) -> None:
    devices = f"{GOOD}[[device]]\ndevice = 'h200-sxm-141gb'\nruntime = 'vllm'"
    assert [one.runtime for one in read(tmp_path, devices).devices] == ["auto", "vllm"]
    (first, _) = read(tmp_path, f"[defaults]\nruntime = 'llamacpp'\n{devices}").devices
    assert first.runtime == "llamacpp"


def test_a_context_may_be_left_open(tmp_path: Path) -> None:
    text = "".join(f'[[device]]\ndevice = "l4-24gb"\nname = "{n}"\ncontext = {n}\n' for n in ("64", "'9..99'", "'max'"))
    contexts = [one.asked.context for one in read(tmp_path, text).devices]
    assert contexts == [64, ContextRange(9, 99), ContextRange(1, 10**9, open=True)]


def test_hosts_and_numbers_of_gpus_of_the_defaults_are_those_of_gpus_that_have_none(tmp_path: Path) -> None:
    pc, own, board = load("desktop-ryzen-5600-16gb"), load("xeon-8480-256gb"), load("jetson-orin-nano-8gb")
    replace(load("l4-24gb"), host=own).save(tmp_path / "known.json")
    own.save(tmp_path / "own.json")
    fleet = read(
        tmp_path,
        f"""
        defaults = {{ host = "{pc.name}", host-mem = "9GB", gpu-layers = 7, gpus = 2, mem = "2GB" }}
        device = [
            {{ device = "l4-24gb" }},
            {{ device = "rtx-4060-8gb", host = "own.json", host-mem = "1GB", gpu-layers = 3 }},
            {{ device = "known.json" }}, {{ device = "raspberry-pi-5-8gb" }}, {{ device = "{board.name}" }},
            {{ name = "half", device = {{ like = "l4-24gb", memory = "12GB" }} }}, {{ device = "this-machine" }},
        ]
        """,
        own=lambda runtime: replace(load("rtx-3060-12gb"), host=own),
    )
    found = [(one.profile.host, one.budget.host_memory_bytes, one.asked.gpu_layers) for one in fleet.devices]
    assert [one.asked.gpus for one in fleet.devices] == [2, 2, 2, 1, 1, 2, 2]
    gb = 10**9
    assert found == [
        (pc, 9 * gb, 7), (own, gb, 3), (own, 9 * gb, 7), (None, None, None), (None, None, None), (pc, 9 * gb, 7),
        (own, 9 * gb, 7),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "in_a_file"),
    [
        (
            "use --mem 168.3MB --latency 5.61ms, or a smaller --batch",
            'use mem = "168.3MB" latency = "5.61ms", or a smaller batch',
        ),
        ("1 to 31, got --gpu-layers 32", "1 to 31, got gpu-layers = 32"),
        ("all 31; name the others' --host, got --gpu-layers 4", "all 31; name the others' host, got gpu-layers = 4"),
        (
            "(--kv-cache q8_0,q4_0 would keep it); use --host-mem 3GB",
            '(kv-cache = "q8_0,q4_0" would keep it); use host-mem = "3GB"',
        ),
        ("train with --adapter scales or --memory", "train with --adapter scales or --memory"),
    ],
)
def test_flags_are_keys_in_a_file(line: str, in_a_file: str) -> None:
    assert in_keys(line) == in_a_file


def test_a_profile_file_lies_beside_the_fleet(tmp_path: Path) -> None:
    load("l4-24gb").save(tmp_path / "p.json")
    fleet = read(tmp_path, '[[device]]\ndevice = "./p.json"\nname = "a b"\nmem = "1GB"')
    assert fleet.devices[0].profile == DeviceProfile.load(tmp_path / "p.json")
    assert fleet.devices[0].device == "./p.json"


PC = "desktop-ryzen-5600-16gb"
GOOD = '[[device]]\ndevice = "l4-24gb"\n'
PI = '[[device]]\ndevice = "raspberry-pi-5-8gb"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "latancy = '1ms'", "3: no key 'latancy' for a device; did you mean 'latency'?"),
        (GOOD + "prompt_tokens = 3", "3: no key 'prompt_tokens' for a device; did you mean 'prompt-tokens'?"),
        (GOOD + "zzz = 3", "3: no key 'zzz' for a device; there are name, device, runtime, mem"),
        ("max_loss = '5%'\n" + GOOD, "1: no key 'max_loss' for a fleet; did you mean 'max-loss'?"),
        ("[default]\n" + GOOD, "1: no key 'default' for a fleet; did you mean 'defaults'?"),
        ("[defaults]\n\nname = 'a'\n" + GOOD, "3: no key 'name' for the defaults"),
        ("[[devices]]", "1: no key 'devices' for a fleet; did you mean 'device'?"),
        (GOOD + "\nmem = 8", '4: mem: must be text such as "8GB", got 8'),
        (GOOD + "mem = '8 bananas'", "3: mem: a size is a number and a unit like 8GB"),
        (GOOD + "latency = '8GB'", "3: latency: a time is a number and a unit like 20ms"),
        (GOOD + "target-tps = '20'", "3: target-tps: must be a number of tokens a second such as 20, got '20'"),
        (GOOD + "target-tps = 0", "3: target-tps: it is 0.001 to 1,000,000 tokens a second, such as 20, got 0"),
        (GOOD + "latency = '20ms'\ntarget-tps = 20", "1: target-tps 20 is 50 ms a token, latency says 20 ms; give one"),
        (GOOD + "context = 4096.0", "3: context: must be a whole number of at least 1, got 4096.0"),
        (GOOD + "context = '4k'", "3: context: a context is tokens such as 4096, a range 2048..8192, or max, got '4k'"),
        (GOOD + "context = '8192..2048'", "3: context: a range of contexts is like 2048..8192, got 8192..2048"),
        (GOOD + "context = '64..99'\nprompt-tokens = 64", "1: prompt-tokens must be below the context of 64, got 64"),
        (GOOD + "hosts = 'a'", "3: no key 'hosts' for a device; did you mean 'host'?"),
        (GOOD + "hostmem = '8GB'", "3: no key 'hostmem' for a device; did you mean 'host-mem'?"),
        (GOOD + "gpu_layers = 3", "3: no key 'gpu_layers' for a device; did you mean 'gpu-layers'?"),
        (GOOD + "\nhost = 'rtx-4060-8gb'", "4: a host is a machine of kind cpu, rtx-4060-8gb is cuda"),
        (GOOD + "host = 'desktop'", "3: no device is called 'desktop' in the catalogue"),
        (GOOD + "host = 'my.json'", "3: no device profile at my.json"),
        (GOOD + "host = { like = 'l4-24gb' }", "3: host: must be text"),
        (GOOD + "host-mem = '8GB'", "3: host-mem limits what the machine of a GPU gives: name that with host"),
        (GOOD + f"host = '{PC}'\nhost-mem = '0GB'", "4: host-mem: a size is a number and a unit like 8GB"),
        (GOOD + f"host = '{PC}'\ngpu-layers = 0", "4: gpu-layers: must be a whole number of at least 1, got 0"),
        (PI + f"host = '{PC}'", "3: a host is the machine that a GPU is in, raspberry-pi-5-8gb is a cpu"),
        (PI + "host-mem = '2GB'", "3: host-mem limits what the machine of a GPU gives: name that with host"),
        (PI + "gpu-layers = 3", "3: gpu-layers counts layers on a GPU, raspberry-pi-5-8gb is of kind cpu"),
        (PI + "gpus = 2", "3: gpus divides a model over GPUs, raspberry-pi-5-8gb is of kind cpu"),
        (
            f"[[device]]\ndevice = 'jetson-orin-nano-8gb'\nhost = '{PC}'",
            "3: jetson-orin-nano-8gb shares its memory with its own processor, it is in no other machine",
        ),
        (
            f"[[device]]\ndevice = 'this-machine'\nhost = '{PC}'",
            "3: a host is the machine that a GPU is in; name the GPU as the device, got 'this-machine'",
        ),
        ("[defaults]\nhost = 'desk'\n" + PI, "2: no device is called 'desk' in the catalogue"),
        ("[defaults]\nhost = 'l4-24gb'\n" + GOOD, "3: a host is a machine of kind cpu, l4-24gb is cuda"),
        (GOOD + "batch = true", "3: batch: must be a whole number"),
        (GOOD + f"batch = {2**31}", "3: batch: must be a whole number"),
        (GOOD + "context = 64\nprompt-tokens = 64", "1: prompt-tokens must be below the context of 64, got 64"),
        (GOOD + "runtime = 'onxruntime'", "got 'onxruntime'; did you mean 'onnxruntime'?"),
        (GOOD + "kv-cache = 'q8'\nkv_cache = 'q8'", "4: no key 'kv_cache' for a device; did you mean 'kv-cache'?"),
        (
            GOOD + "kv-cache = 'q8-0'",
            "must be one of auto, f32, int8, f16, q8_0, q4_0, fp8, q8, q4, got 'q8-0'",
        ),
        (GOOD + 'name = "a\\nb"', "3: name: must be text of 1 to 200 printable characters"),
        ("max-loss = 0.05\n" + GOOD, '1: max-loss: must be text such as "5%", got 0.05'),
        ("max-loss = '-5%'\n" + GOOD, '1: max-loss: must be text such as "5%"'),
        ("[[device]]\ndevice = 'l4-24g'", "2: no device is called 'l4-24g' in the catalogue; did you mean l4-24gb"),
        ("[[device]]\ndevice = 'a.json'", "2: no device profile at "),
        ("[[device]]\ndevice = 'this-machine'", "2: this machine is no device here"),
        ("[[device]]\nname = 'a'", "1: a device needs the key 'device'"),
        ("[[device]]\ndevice = 4", "2: device: must be text"),
        ("[[device]]\ndevice = {kind = 'cpu'}", "1: a device of fields needs a `name`"),
        ("[[device]]\nname='a'\ndevice = {kind = 'cpu'}", "3: a device's fields need memory, or `like` another device"),
        (
            "[[device]]\nname='a'\n[device.device]\nlike = 'l4'",
            "4: like: no device is called 'l4' in the catalogue; did",
        ),
        ("[[device]]\nname='a'\n[device.device]\nkind = 'gpu'\nmemory = '1GB'", "3: kind must be one of cpu, cuda"),
        (
            "[[device]]\nname='a'\ndevice = {mem = '1GB'}",
            "3: no key 'mem' for a device's fields; did you mean 'memory'?",
        ),
        (GOOD + GOOD, "3: 'l4-24gb' names a device twice, first on line 1"),
        (GOOD + "name = 'a'\n" + GOOD + "\nname = 'a'", "7: 'a' names a device twice, first on line 1"),
        ("", "1: a fleet has at least one device"),
        ("device = []", "1: a fleet has at least one device"),
        ("[device]\nname = 'a'", "1: a fleet has at least one device"),
        ("device = [1]", "1: a device must be a table, got 1"),
        ("defaults = 1\n" + GOOD, "1: the defaults must be a table, got 1"),
        (GOOD * (MOST_DEVICES + 1), f"a fleet has at most {MOST_DEVICES} devices"),
        (GOOD + "mem = ", "3: no TOML: Invalid value"),
    ],
    ids=range(63),
)
def test_what_is_wrong_is_one_line_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_fleet(Path("fleet.toml"))
    line = str(error.value)
    assert line.startswith("fleet.toml:") and "\n" not in line
    assert said in line, line


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no fleet at .*fleet --example"):
        read_fleet(tmp_path / "fleet.toml")
