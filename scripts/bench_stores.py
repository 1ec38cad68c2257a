"""Measure the stores: write, resume and read synthetic embeddings, each store in a process of its own.

    python scripts/bench_stores.py /tmp/stores --rows 1000000

Prints a table: rows written per second, bytes, files, seconds to resume and to read all, peak memory of each.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from balr.records import Embedded, Utterance
from balr.stores.base import Store, StoredCorpus
from balr.stores.files import FilesStore
from balr.stores.kaldi import KaldiStore
from balr.stores.parquet import ParquetStore
from balr.stores.reading import load_embeddings

DIM = 256
BATCH = 64
LARGEST_FOR_FILES = 100_000
ROOT = Path("/corpus")
STORES: dict[str, Callable[..., Store]] = {"files": FilesStore, "parquet": ParquetStore, "kaldi": KaldiStore}
SETTINGS: dict[str, dict[str, Any]] = {
    "files": {"format": "npy"},
    "parquet": {"rows_per_part": 8192},
    "kaldi": {},
}


def main() -> None:
    """Measure all stores, or one step of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder on the disk that is measured; it is emptied")
    parser.add_argument("--rows", type=int, default=1_000_000, help="embeddings; of files at most 100,000")
    parser.add_argument("--step", nargs=2, metavar=("STORE", "STEP"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(measure(options.folder, *options.step, options.rows)))
        return
    print(
        f"{'store':8} {'rows':>9} {'written/s':>10} {'close s':>8} {'MB':>8} {'files':>7} {'resume s':>9} "
        f"{'read s':>7} {'peak MiB: write':>16} {'resume':>7} {'read':>6}"
    )
    for name in STORES:
        rows = min(options.rows, LARGEST_FOR_FILES) if name == "files" else options.rows
        folder = options.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        found = {step: run_step(folder, name, step, rows) for step in ("write", "resume", "read")}
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        print(
            f"{name:8} {rows:9,} {rows / found['write']['seconds']:10,.0f} {found['write']['close']:8.1f} "
            f"{size / 1e6:8,.0f} {len(files):7,} {found['resume']['seconds']:9.1f} {found['read']['seconds']:7.1f} "
            f"{found['write']['peak']:16,.0f} {found['resume']['peak']:7,.0f} {found['read']['peak']:6,.0f}",
            flush=True,
        )
        shutil.rmtree(folder)


def run_step(folder: Path, name: str, step: str, rows: int) -> dict[str, float]:
    """Measure in a new process, whose peak memory is that of the step."""
    command = [sys.executable, __file__, str(folder), "--rows", str(rows), "--step", name, step]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def measure(folder: Path, name: str, step: str, rows: int) -> dict[str, float]:
    """Return the seconds of a step, those of closing the store where it writes, and the peak memory in MiB."""
    if step == "read":
        began = time.monotonic()
        ids, matrix, _ = load_embeddings(folder)
        assert len(ids) == rows and matrix.shape == (rows, DIM)
        return {"seconds": time.monotonic() - began, "peak": peak_mib()}
    folder.mkdir(parents=True, exist_ok=True)
    utterances = [
        Utterance(f"id{n // 200:05}/{n:07}", ROOT / f"id{n // 200:05}" / f"{n:07}.wav", f"id{n // 200:05}")
        for n in range(rows)
    ]
    began = time.monotonic()
    store = STORES[name](StoredCorpus(folder, utterances, ROOT, embedding_dim=DIM), **SETTINGS[name])
    done = len(store.completed())
    if step == "resume":
        assert done == rows
        return {"seconds": time.monotonic() - began, "peak": peak_mib()}
    generator = np.random.default_rng(0)
    for start in range(0, rows, BATCH):
        matrix = generator.standard_normal((BATCH, DIM), dtype=np.float32)
        batch = [Embedded(one, row, 8.0) for one, row in zip(utterances[start : start + BATCH], matrix, strict=False)]
        assert not store.write(batch)
    written = time.monotonic()
    store.close()
    return {"seconds": written - began, "close": time.monotonic() - written, "peak": peak_mib()}


def peak_mib() -> float:
    """Return the most memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
