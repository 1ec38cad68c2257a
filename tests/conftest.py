"""What tests share: synthetic audio, a tiny corpus, tiny checkpoints of real architectures, the command in-process."""

import csv
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
from hydra._internal.hydra import Hydra
from untrained_checkpoint import write_checkpoint

from balr.embeddings.wespeaker import WespeakerModel
from balr.errors import OutputError
from balr.main import main
from balr.records import Embedded, Failure
from balr.stores.files import FilesStore

if "PYTEST_XDIST_WORKER" in os.environ:  # threads of processes side by side would wait for one another
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # also in processes of their own

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLE = REPOSITORY.parent / "shared" / "data" / "voxceleb2"

# Both classes are WeSpeaker's own: an x-vector network of few layers, and a CAM++ of about 0.1 million parameters.
XVECTOR = {"feat_dim": 80, "hid_dim": 16, "stats_dim": 16, "embed_dim": 32}
TINY = {"feat_dim": 80, "embed_dim": 32, "pooling_func": "TSTP", "growth_rate": 4, "init_channels": 16}

Command = Callable[..., int]

HAS_BF16 = any(torch.cpu.get_capabilities().get(unit) for unit in ("amx_bf16", "avx512_bf16"))
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this processor has no bf16 units")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cache = tmp_path_factory.getbasetemp() / "cache"  # for all tests, as many load the same checkpoint
    cache.mkdir(exist_ok=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="session")
def sample() -> Path:
    """Return the folder of real speech: 18 utterances of 6 speakers, 24 kHz."""
    if not SAMPLE.is_dir():
        pytest.skip("the sample of real speech (../shared/data/voxceleb2) is not on this machine")
    return SAMPLE


@pytest.fixture(scope="session")
def bundled_once() -> Iterator[None]:
    """Bundle the JavaScript of pages, always the same, at the first page alone: it takes seconds."""
    vl_convert = pytest.importorskip("vl_convert", reason="pip install 'balr[report]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vl_convert, "javascript_bundle", cache(vl_convert.javascript_bundle))
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint that takes half the time of `tiny_campplus`, for all that goes alike with any network."""
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", "XVEC", XVECTOR)
    weights = torch.load(folder / "avg_model.pt", weights_only=True)
    for weight in weights.values():
        if weight.dim() > 1:
            weight.mul_(6**0.5)  # He's gain: with that of torch, all utterances have nearly the same embedding
    torch.save(weights, folder / "avg_model.pt")
    return folder


@pytest.fixture(scope="session")
def tiny_campplus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "campplus", "CAMPPlus", TINY)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a folder of six short wav files of two speakers, at two rates."""
    folder = tmp_path / "corpus"
    for number in range(6):
        write_wav(folder / f"spk{number % 2}" / f"utt{number}.wav", speechlike(1.0 + 0.2 * number, seed=number))
    return folder


@pytest.fixture
def balr(tiny_checkpoint: Path) -> Command:
    """Return a function that runs `python -m balr.main` in this process with the tiny checkpoint.

    Hydra composes twice, at first to see whether a config asks for a sweep; that one is left out where none could.
    """

    def run(*overrides: str) -> int:
        with pytest.MonkeyPatch.context() as patch:
            if not re.search(r"experiment|hydra|config", " ".join(overrides)):  # which may ask for a sweep
                patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
            return main([*overrides, f"embeddings.model.model_dir={tiny_checkpoint}", "data=serial", *_MODEL_NAME])

    return run


_MODEL_NAME = ("embeddings.model.model_name=avg_model.pt",)


@pytest.fixture
def one_error_line(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Return a function that gives the one ERROR line printed, and fails on a traceback or a second line."""

    def read() -> str:
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert not any("Traceback" in line for line in lines), lines
        errors = [line for line in lines if not line.startswith(("INFO ", "WARNING "))]
        assert len(errors) == 1 and errors[0].startswith("ERROR "), lines
        return errors[0]

    return read


def speechlike(seconds: float, *, seed: int = 0, rate_hz: int = 16_000) -> npt.NDArray[np.float32]:
    """Make noise with a moving pitch and level, in [-1, 1]: no two frames are alike."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate_hz)) / rate_hz
    pitch = 120 + 60 * np.sin(2 * np.pi * (0.7 + 0.1 * seed) * time)
    tone = sum(np.sin(2 * np.pi * k * np.cumsum(pitch) / rate_hz) / k for k in range(1, 12))
    level = 0.15 + 0.1 * np.sin(2 * np.pi * 2.3 * time)
    return ((tone * 0.4 + generator.standard_normal(time.size) * 0.3) * level).clip(-1, 1).astype(np.float32)


def write_wav(path: Path, samples: npt.NDArray[np.float32], *, rate_hz: int = 16_000, subtype: str = "PCM_16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate_hz, subtype=subtype, format="WAV")
    return path


def run_command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment in a process of its own, such as `balr` or `python`."""
    program = Path(sys.executable).parent / arguments[0]
    return subprocess.run(
        [str(program), *arguments[1:]],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def embeddings(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*_emb.*"))}


def interrupt_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[object]:
    """Send this process SIGINT as it embeds the batch of this number, and return the batches that are embedded."""
    whole, seen = WespeakerModel.embed, []

    def interrupted(self: WespeakerModel, waveforms: list[torch.Tensor], **settings: float) -> torch.Tensor:
        seen.append(waveforms)
        if len(seen) == number:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # until the main thread has taken it
        return whole(self, waveforms, **settings)

    monkeypatch.setattr(WespeakerModel, "embed", interrupted)
    return seen


def break_off_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """End a run, as an error of the disk does, at the first batch after so many embeddings are listed."""
    whole = FilesStore.write

    def breaking(self: FilesStore, batch: Sequence[Embedded]) -> list[Failure]:
        if len(self.completed()) >= count:
            raise OutputError(f"{self.folder}: cannot be written: {os.strerror(errno.EIO)}.")
        room = count - len(self.completed())
        return whole(self, batch[:room]) + (self.write(batch[room:]) if batch[room:] else [])

    monkeypatch.setattr(FilesStore, "write", breaking)


def alive_in_group(leader: int) -> list[str]:
    """Return the processes of a group that are not dead yet."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = path.read_text().rpartition(")")
            state, _, group = rest.split()[:3]
            if int(group) == leader and state != "Z":
                found.append(name)
    return found


def wait_until(condition: Callable[[], bool], *, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come to pass"
        time.sleep(0.01)
