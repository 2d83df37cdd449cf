"""When something was made, as files say it."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from records.errors import InputError

EPOCH = "SOURCE_DATE_EPOCH"


def made_now() -> str:
    """UTC to the second, ISO 8601: now, or what SOURCE_DATE_EPOCH says, seconds since 1970, where files must come out
    the same another day (reproducible-builds.org/specs/source-date-epoch). InputError where it says anything else."""
    said = os.environ.get(EPOCH)
    try:
        date = datetime.now(UTC) if said is None else datetime.fromtimestamp(int(said), UTC)
    except (ValueError, OverflowError, OSError):
        raise InputError(f"{EPOCH} is a number of seconds since 1970, got {said!r:.80}; unset it") from None
    return date.isoformat(timespec="seconds")
