"""The GPU's profile, as `bitfleet profile device --device cuda:0` makes it, and what was not timed of it."""

from __future__ import annotations

from dataclasses import replace

from gpu_record import Record

from profiles.cpu import profile_cpu
from profiles.detect import detect
from profiles.gpu_times import FULL, Sizes, timed

TINY_SIZES = Sizes(((256, 512), (512, 256)), (1, 16), 20.0, 3, 256, ((1, 256),), 1 << 20)
BESIDE_S = 20.0  # of the part's time, for what is no product


def run(record: Record) -> None:
    if record.on_gpu:
        profile, sizes = detect(record.device)[0], replace(FULL, seconds=record.left_s - BESIDE_S)
    else:
        profile, sizes = profile_cpu(), TINY_SIZES
    record.add(profile=profile.to_json())
    found, reasons = timed(profile, record.device, sizes, lambda what, share: None)
    record.add(profile=found.to_json(), left_out=reasons)
