"""One run at a time works in a folder."""

from pathlib import Path

import pytest

from balr.errors import OutputError
from balr.stores.folder import locked


def test_a_folder_is_locked_for_one_run_and_leaves_nothing_where_nothing_was_written(tmp_path: Path) -> None:
    with locked(tmp_path / "new" / "out"):
        with pytest.raises(OutputError, match="another run works there"), locked(tmp_path / "new" / "out"):
            pass
        assert (tmp_path / "new" / "out").is_dir()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_a_folder_that_is_another_one_at_the_end_is_an_error(tmp_path: Path, is_made_anew: bool) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="out: was removed or replaced"), locked(out):
        out.rename(tmp_path / "moved")  # which keeps the inode of its lock from being given to the next file
        if is_made_anew:
            with locked(out):
                (out / "metadata.csv").touch()
