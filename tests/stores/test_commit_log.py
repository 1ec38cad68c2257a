"""A log that a kill cut anywhere holds its whole rows, and nobody else's csv is taken for one."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balr.errors import OutputError
from balr.stores.commit_log import CommitLog

COLUMNS = ("id", "audio")
_cell = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
_rows = st.lists(st.fixed_dictionaries({"id": _cell, "audio": _cell, "note": _cell}), min_size=1, max_size=5)


def log(folder: Path) -> CommitLog:
    return CommitLog(folder / "log.csv", COLUMNS, more_columns=["note"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=_rows, data=st.data())
def test_a_log_cut_anywhere_gives_the_rows_that_are_whole(
    tmp_path: Path, rows: list[dict[str, str]], data: st.DataObject
) -> None:
    first = log(tmp_path)
    first.write(())
    start = os.path.getsize(first.path)
    ends = []
    for row in rows:
        first.append([row], durably=False)
        ends.append(os.path.getsize(first.path))
    assert list(log(tmp_path).read()) == rows
    cut = data.draw(st.integers(start, ends[-1]))
    os.truncate(first.path, cut)
    assert list(log(tmp_path).read()) == rows[: sum(end <= cut for end in ends)]


def test_a_new_run_begins_with_the_rows_of_the_last_one_and_ends_in_its_own_order(tmp_path: Path) -> None:
    rows = [{"id": str(number), "audio": "x", "note": ""} for number in range(3)]
    first = log(tmp_path)
    first.write(rows[:2])
    first.append(rows[2:], durably=True)
    assert list(log(tmp_path).read()) == rows
    first.write(reversed(rows))
    assert list(log(tmp_path).read()) == list(reversed(rows))


def test_a_log_that_was_read_keeps_its_columns(tmp_path: Path) -> None:
    rows = [{"id": str(number), "audio": "x", "note": "y"} for number in range(2)]
    log(tmp_path).write(rows)
    other = CommitLog(tmp_path / "log.csv", COLUMNS)
    other.write([row for row in other.read() if row["id"] == "1"])
    assert list(log(tmp_path).read()) == rows[1:]


@pytest.mark.parametrize("text", ["", "id\n", "speaker,audio\na,b\n", '"', "\0"])
def test_a_csv_with_other_columns_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(OutputError, match=r"log\.csv"):
        list(log(tmp_path).read())


@pytest.mark.parametrize("line", ["a\n", "a,b,c,d\n", 'a,"b"c,d\n'])
def test_a_damaged_row_between_others_is_an_error_with_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "log.csv").write_text(f"id,audio,note\nx,y,z\n{line}x,y,z\n")
    with pytest.raises(OutputError, match=r"log\.csv:3: damaged"):
        list(log(tmp_path).read())


def test_a_log_that_vanished_takes_no_more_rows(tmp_path: Path) -> None:
    first = log(tmp_path)
    first.write(())
    first.path.unlink()
    with pytest.raises(OutputError, match="No such file"):
        first.append([{"id": "a"}], durably=True)
    assert not first.path.exists()
