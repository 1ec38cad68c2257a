"""Files are whole or absent, one by one and together, whichever step is refused."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from balr import atomic
from balr.atomic import whole_file, write_together
from balr.errors import OutputError, PlaceError

COUNT = 5


def contents(folder: Path) -> list[tuple[Path, bytes]]:
    return [(folder / str(number % 2) / f"{number}.npy", bytes([number]) * 1000) for number in range(COUNT)]


def left(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, int], None]:
    """Return a function after which the system refuses one call of a step."""

    def at(step: str, number: int, code: int) -> None:
        whole, calls = getattr(atomic._Written, step), []

        def refusing(self: object) -> None:
            calls.append(self)
            if len(calls) == number + 1:
                raise OSError(code, os.strerror(code), "a name")
            whole(self)

        monkeypatch.setattr(atomic._Written, step, refusing)

    return at


@pytest.mark.parametrize("step", ["write", "flush", "take_place"])
@pytest.mark.parametrize("number", range(COUNT))
def test_an_error_leaves_what_comes_before_it_whole_and_nothing_else(
    tmp_path: Path, refused: Callable[[str, int, int], None], step: str, number: int
) -> None:
    refused(step, number, errno.ENOSPC)
    errors = write_together(contents(tmp_path))
    assert errors[:number] == [None] * number
    assert all(
        error is errors[number] and f"{number}.npy: cannot be written: No space" in str(error)
        for error in errors[number:]
    )
    assert left(tmp_path) == dict(contents(tmp_path)[:number])


@pytest.mark.parametrize("step", ["write", "take_place"])
@pytest.mark.parametrize("code", [errno.ENAMETOOLONG, errno.EISDIR, errno.EINVAL])
def test_an_error_of_a_path_costs_its_file_alone(
    tmp_path: Path, refused: Callable[[str, int, int], None], step: str, code: int
) -> None:
    refused(step, 2, code)
    errors = write_together(contents(tmp_path))
    assert [type(error) for error in errors] == [type(None), type(None), PlaceError, type(None), type(None)]
    assert left(tmp_path) == {path: content for path, content in contents(tmp_path) if path.name != "2.npy"}


def test_an_error_of_a_path_stays_its_own_where_the_disk_fails_too(
    tmp_path: Path, refused: Callable[[str, int, int], None]
) -> None:
    refused("write", 3, errno.ENAMETOOLONG)
    refused("flush", 1, errno.EIO)
    errors = write_together(contents(tmp_path))
    assert [type(error) for error in errors] == [type(None), OutputError, OutputError, PlaceError, OutputError]
    assert left(tmp_path) == dict(contents(tmp_path)[:1])


def test_an_interrupt_leaves_no_file_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_together(contents(tmp_path))
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "list") as file:
        file.write(b"a line")
    assert left(tmp_path) == {}


def test_files_take_the_place_of_those_before(tmp_path: Path) -> None:
    for content in (b"before", b"after"):
        assert write_together((path, content) for path, _ in contents(tmp_path)) == [None] * COUNT
        assert left(tmp_path) == {path: content for path, _ in contents(tmp_path)}
    assert write_together([]) == []
