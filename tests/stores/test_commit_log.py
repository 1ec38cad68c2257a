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
    first.begin(())
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
    first.begin(rows[:2])
    first.append(rows[2:], durably=True)
    first.finish(reversed(rows))
    assert list(log(tmp_path).read()) == list(reversed(rows)) and not first.has_begun


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


@pytest.mark.parametrize("is_begun_by_another", [False, True])
def test_a_log_that_vanished_takes_no_more_rows(tmp_path: Path, is_begun_by_another: bool) -> None:
    first = log(tmp_path)
    first.begin(())
    first.path.rename(tmp_path / "moved")  # which keeps its inode from being given to the next file
    if is_begun_by_another:
        log(tmp_path).begin(())
    with pytest.raises(OutputError, match="was removed or replaced"):
        first.append([{"id": "a"}], durably=True)
