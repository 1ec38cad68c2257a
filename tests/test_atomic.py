"""Files are whole or absent, one by one and together, at whatever moment the system refuses."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from balr.atomic import whole_file, write_together
from balr.errors import OutputError, PlaceError

COUNT = 5


def contents(folder: Path) -> list[tuple[str, bytes]]:
    return [(str(folder / str(number % 2) / f"{number}.npy"), bytes([number]) * 1000) for number in range(COUNT)]


def left(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, int], None]:
    """Return a function after which the system refuses a step, `fsync` or `replace`, for the file of a number."""

    def at(step: str, number: int, code: int) -> None:
        whole = getattr(os, step)

        def refusing(file: int | str, *arguments: str) -> None:
            path = str(Path(f"/proc/self/fd/{file}").readlink()) if isinstance(file, int) else file
            if f"{number}.npy" in path:
                raise OSError(code, os.strerror(code), *([] if step == "fsync" else [path]))
            whole(file, *arguments)

        monkeypatch.setattr(os, step, refusing)

    return at


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("number", range(COUNT))
def test_an_error_of_the_disk_leaves_whole_files_and_nothing_else(
    tmp_path: Path, refuse: Callable[[str, int, int], None], step: str, number: int
) -> None:
    refuse(step, number, errno.ENOSPC)
    with pytest.raises(OutputError, match=rf"{number}\.npy: cannot be written: No space"):
        write_together(contents(tmp_path))
    assert left(tmp_path) == dict(contents(tmp_path)[:number])


@pytest.mark.parametrize("code", [errno.ENAMETOOLONG, errno.EISDIR, errno.EINVAL])
def test_an_error_of_a_path_costs_its_file_alone(
    tmp_path: Path, refuse: Callable[[str, int, int], None], code: int
) -> None:
    refuse("replace", 2, code)
    errors = write_together(contents(tmp_path))
    assert [type(error) for error in errors] == [type(None), type(None), PlaceError, type(None), type(None)]
    assert left(tmp_path) == {path: content for path, content in contents(tmp_path) if "2.npy" not in path}


def test_a_folder_or_a_name_that_cannot_be_costs_its_file_alone(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("a file")
    (tmp_path / "1" / "3.npy").mkdir(parents=True)
    errors = write_together([*contents(tmp_path), (str(tmp_path / ("x" * 300)), b"")])
    assert [error is None for error in errors] == [False, True, False, False, False, False]
    assert left(tmp_path).keys() == {str(tmp_path / "0"), str(tmp_path / "1" / "1.npy")}


def test_an_interrupt_leaves_no_file_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_together(contents(tmp_path))
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "list") as file:
        file.write(b"a line")
    assert left(tmp_path) == {}


def test_files_replace_those_before(tmp_path: Path) -> None:
    for content in (b"before", b"after"):
        assert write_together((path, content) for path, _ in contents(tmp_path)) == [None] * COUNT
        assert left(tmp_path) == {path: content for path, _ in contents(tmp_path)}
    assert write_together([]) == []
