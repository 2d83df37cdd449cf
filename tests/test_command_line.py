"""The command line as a plan keeps it: whole, but for the user and the password of a storage's address."""

from __future__ import annotations

import pytest

from commands.command_line import command_line, repeating

ADDRESSES = {
    "postgresql://me:my-secret@db:5432/studies": "postgresql://db:5432/studies",
    "postgresql+psycopg2://me@db/studies": "postgresql+psycopg2://db/studies",
    "mysql://me:my-sec/r?e:t#@1@db/studies?ssl=true": "mysql://db/studies?ssl=true",
    "redis://:my-secret@db:6379/0": "redis://db:6379/0",
    "postgresql://db/studies?user=me&ssl=1&password=my-secret": "postgresql://db/studies?ssl=1",
    "postgresql://db/studies?Password=my-secret": "postgresql://db/studies",
    "sqlite:///me@home/studies.db": "sqlite:///me@home/studies.db",
    "sqlite:////srv/studies.db": "sqlite:////srv/studies.db",
}


@pytest.mark.parametrize(("address", "kept"), ADDRESSES.items())
def test_a_storage_is_kept_without_user_and_password(address: str, kept: str) -> None:
    for given, shown in (
        (["--storage", address], f"--storage {kept}"),
        ([f"--storage={address}"], f"--storage={kept}"),
    ):
        line = ["plan", "net", *given, "--seed", "1"]
        assert command_line(line).replace("'", "") == f"bitfleet plan net {shown} --seed 1"
        assert repeating(line, 44).replace("'", "") == f"bitfleet plan net {shown} --seed 1 --tune-steps 44"


def test_all_else_is_kept_as_it_was_given() -> None:
    assert command_line(["plan", "a net@home", "--text", "b://c@d"]) == "bitfleet plan 'a net@home' --text b://c@d"
    assert command_line(["plan", "net", "--storage"]) == "bitfleet plan net --storage"


def test_steps_of_tuning_take_the_place_of_minutes() -> None:
    assert repeating(["plan", "my net", "--tune", "3", "--tune=3", "--seed", "1"], 44) == (
        "bitfleet plan 'my net' --seed 1 --tune-steps 44"
    )
