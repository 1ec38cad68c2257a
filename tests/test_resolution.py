"""torch and torchaudio fit together, with the lock and without it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchaudio
from conftest import REPOSITORY


def versions(listing: str) -> dict[str, tuple[str, ...]]:
    pinned = re.findall(r"^(torch|torchaudio)==(\d+)\.(\d+)", listing, re.MULTILINE)
    return {name: minor for name, *minor in ((n, a, b) for n, a, b in pinned)}


def test_the_installed_pair_imports_together_and_has_one_minor_version() -> None:
    assert torch.__version__.split(".")[:2] == torchaudio.__version__.split(".")[:2]


def test_the_lock_has_one_minor_version_for_both() -> None:
    found = versions((REPOSITORY / "requirements.lock").read_text())
    assert found["torch"] == found["torchaudio"]


@pytest.mark.network
@pytest.mark.parametrize("resolution", ["highest", "lowest-direct"])
def test_an_install_without_the_lock_resolves_to_one_minor_version_for_both(resolution: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "uv", "pip", "compile", "--quiet", "--resolution", resolution, "pyproject.toml"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = versions(done.stdout)
    assert found["torch"] == found["torchaudio"]
