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
