"""The documentation site builds without a warning, and its pages load nothing from another host."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import REPOSITORY

LOADED = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""")


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="pip install 'balr[docs]'")
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.stem: path.read_text() for path in (tmp_path / "site").glob("*.html")}
    assert {path.stem for path in (REPOSITORY / "docs").glob("*.md")} <= pages.keys()
    assert not {name: LOADED.findall(text) for name, text in pages.items() if LOADED.findall(text)}
    assert "extract_embeddings" in pages["python"] and "max_batch_seconds" in pages["python"]
