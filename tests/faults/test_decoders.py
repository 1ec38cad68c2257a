"""Decoders that crash, hang, exit or run out of memory cost the utterance that they were at, and no other."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import embeddings, rows, run_command, speechlike, write_wav

from balr.main import main

# Read by every Python that starts, so that the processes of a fork server misbehave, too; none in a resource tracker.
SITECUSTOMIZE = """
import ctypes, functools, os, signal, sys, time

faults = {
    "segfault": lambda: ctypes.string_at(0),
    "hang": lambda: time.sleep(3600),
    "oom-killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(7),
    "memory": lambda: bytearray(1 << 60),
}

def with_faults(whole, prefix):
    @functools.wraps(whole)
    def faulty(path, *arguments, **settings):
        if path.stem.startswith(prefix):
            faults.get(path.stem.removeprefix(prefix), lambda: None)()
        return whole(path, *arguments, **settings)
    return faulty

if "resource_tracker" not in str(sys.orig_argv):
    from balr.data import decoding, headers

    decoding.load_waveform = with_faults(decoding.load_waveform, "")
    headers.read_header = with_faults(headers.read_header, "header-")
"""
REASONS = {
    "exit": "exit code 7",
    "hang": "reading it took over 2 s (data.decode_timeout_seconds)",
    "memory": "MemoryError",
    "oom-killed": "SIGKILL (out of memory?)",
    "segfault": "SIGSEGV: the file crashes its decoder",
}


@pytest.fixture
def faulty(tmp_path: Path, tiny_checkpoint: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Return a function that runs the command, where the named files do to their decoder what their names say."""
    for number in range(8):
        write_wav(tmp_path / "corpus" / f"{number}.wav", speechlike(1.0 + 0.1 * number, seed=number))
    for number, name in enumerate(REASONS):
        write_wav(tmp_path / "corpus" / f"{name}.wav", speechlike(1.05 + 0.2 * number, seed=number))
    for name in ("segfault", "hang"):
        write_wav(tmp_path / "corpus" / f"header-{name}.wav", speechlike(1.0))
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "sitecustomize.py").write_text(SITECUSTOMIZE)

    def run(*overrides: str) -> "subprocess.CompletedProcess[str]":
        model = [f"embeddings.model.model_dir={tiny_checkpoint}", "embeddings.model.model_name=avg_model.pt"]
        settings = ["input=corpus", "data.decode_timeout_seconds=2", *model, *overrides]
        return run_command("python", "-m", "balr.main", *settings, cwd=tmp_path, PYTHONPATH="faults")

    return run


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("batch", [1, pytest.param(64, marks=pytest.mark.slow)])
def test_each_costs_its_own_utterance_and_the_run_goes_on(
    faulty: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path, workers: int, batch: int
) -> None:
    done = faulty("save_dir=out", f"data.num_workers={workers}", f"data.batch_size={batch}")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    failed = {row["id"]: row["reason"] for row in rows(tmp_path / "out" / "failures.csv")}
    assert failed.keys() == {f"{name}.wav" for name in REASONS}
    assert all(reason in failed[f"{name}.wav"] for name, reason in REASONS.items()), failed
    assert len(embeddings(tmp_path / "out")) == 10

    assert main([*done.args[3:]]) == 0, "the same command, without the faults"
    assert len(embeddings(tmp_path / "out")) == 15 and not (tmp_path / "out" / "failures.csv").exists()


@pytest.mark.usefixtures("faulty")
def test_a_script_without_a_guard_around_its_work_is_not_run_again_by_a_new_decoder(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    (tmp_path / "script.py").write_text(f"""
from balr import DataConfig, load_model

print("started")
config = DataConfig(num_workers=1, decode_timeout_seconds=2)
pairs = load_model({str(tiny_checkpoint)!r}).extract_embeddings("corpus", data_config=config)
print(len(pairs), "embedded,", len(pairs.failures), "failed")
""")
    done = run_command("python", "script.py", cwd=tmp_path, PYTHONPATH="faults")
    assert done.stdout.splitlines() == ["started", "10 embedded, 5 failed"], done.stderr


@pytest.mark.usefixtures("faulty")
def test_a_header_that_ends_or_hangs_its_reader_costs_no_other_file_its_length(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("""
from pathlib import Path
from balr.data.headers import HeaderCache, headers

files = sorted(Path("corpus").iterdir())
cache = HeaderCache(Path("durations.csv"))
found = headers(files, cache=cache, isolated=True, timeout_seconds=2.0)
print(len(files), *(file.stem for file, header in zip(files, found) if header.seconds is None))
print(headers(files, cache=HeaderCache(Path("durations.csv"))) == found)
""")
    done = run_command("python", "script.py", cwd=tmp_path, PYTHONPATH="faults")
    assert done.stdout.split() == ["15", "header-hang", "header-segfault", "True"], done.stderr
