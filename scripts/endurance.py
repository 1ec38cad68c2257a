"""Measure what bulk runs rest on: flat memory, what flushing to disk costs, how soon a finished corpus is known.

Runs the real command with an untrained tiny network, so that all but the network weighs as much as it can.
"""

import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import soundfile
from untrained_checkpoint import write_checkpoint

from balr.data.corpus import Corpus
from balr.embeddings.pipeline import SAVED_TOGETHER
from balr.main import main as balr
from balr.records import Embedded, Failure
from balr.stores.base import StoredCorpus
from balr.stores.files import FilesStore

RATE_HZ = 16_000
LINKS_OF_A_FILE = 50_000
TINY = {"feat_dim": 80, "embed_dim": 32, "pooling_func": "TSTP", "growth_rate": 4, "init_channels": 16}
SAVES_OF_A_TURN = 8
COMMAND = "import sys; from balr.main import main; sys.exit(main(sys.argv[1:]))"


def main() -> None:
    """Measure all of it, or what is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="an empty folder on the disk that is measured")
    parser.add_argument("--only", choices=("memory", "finished", "flushing"))
    parser.add_argument("--utterances", type=int, default=20_000, help="for the memory")
    parser.add_argument("--finished", type=int, default=100_000, help="for the start on a finished corpus")
    parser.add_argument("--turns", type=int, default=40, help="each way, for the cost of flushing")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    measures: dict[str, Callable[[Path], None]] = {
        "memory": lambda where: memory(where, arguments.utterances),
        "finished": lambda where: finished(where, arguments.finished),
        "flushing": lambda where: flushing(where, arguments.turns),
    }
    for name, measure in measures.items():
        if arguments.only in (None, name):
            with emptied(folder / name) as where:
                measure(where)


def memory(folder: Path, utterances: int) -> None:
    """Print how the resident memory of a run grows with what it has done."""
    corpus = make_corpus(folder / "corpus", utterances, seconds=0.6)
    model = write_checkpoint(folder / "checkpoint", "CAMPPlus", TINY)
    process = subprocess.Popen(command(corpus, folder / "out", model), cwd=folder, stderr=subprocess.DEVNULL)
    at: dict[int, float] = {}
    started, step = time.monotonic(), max(1, utterances // 10)
    while process.poll() is None:
        done = sum(len(files) for _, _, files in os.walk(folder / "out"))
        at.setdefault(done // step * step, resident_mib(process.pid))
        time.sleep(0.5)
    seconds = time.monotonic() - started
    sizes = {done: round(mib) for done, mib in at.items() if done >= step and mib}
    print(f"{utterances:,} utterances of 0.6 s in {seconds:.0f} s, exit code {process.returncode}")
    print(f"  resident MiB by utterances done: {sizes}")
    print(f"  growth after the first {min(sizes):,}: {max(sizes.values()) - sizes[min(sizes)]} MiB")


def finished(folder: Path, utterances: int) -> None:
    """Print how long the command takes on a corpus that is embedded already."""
    corpus = make_corpus(folder / "corpus", utterances, seconds=0.6)
    model = write_checkpoint(folder / "checkpoint", "CAMPPlus", TINY)
    first = sorted(corpus.rglob("*.wav"))[0]
    (folder / "first.csv").write_text(f"id,audio\n{first.relative_to(corpus)},{first}\n", encoding="utf-8")
    subprocess.run(
        [*command(folder / "first.csv", folder / "out", model), f"root_dir={corpus}"],
        cwd=folder,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    listed = Corpus.from_path(corpus)
    store = FilesStore(StoredCorpus(folder / "out", listed.utterances, listed.root_dir), format="npy")
    ((_, embedding),) = store.read()
    with patch("os.fsync"):
        for start in range(0, utterances, 1000):
            store.write([Embedded(one, embedding, 0.6) for one in listed.utterances[start : start + 1000]])
    store.close()
    taken = [timed(command(corpus, folder / "out", model), folder) for _ in range(4)]
    print(f"{utterances:,} utterances that are there: {', '.join(f'{seconds:.1f}' for seconds in taken)} s")


def flushing(folder: Path, turns: int) -> None:
    """Print what flushing takes of a run whose network takes next to nothing, which flushes in every other turn only.

    Both ways within one run, as the time of whole runs scatters by more than what is looked for.
    """
    saves = 2 * turns * SAVES_OF_A_TURN
    corpus = make_corpus(folder / "corpus", saves * SAVED_TOGETHER, seconds=0.6)
    model = write_checkpoint(folder / "checkpoint", "CAMPPlus", TINY)
    with flushing_in_turns() as taken:
        code = balr([*overrides(corpus, folder / "out", model), f"hydra.run.dir={folder / 'hydra'}"])
    if code:
        sys.exit(f"the run ended with {code}")
    pairs = list(zip(taken[True], taken[False], strict=False))[1:]  # the first is of a machine that warms up
    flushed, unflushed = (statistics.mean(one) for one in zip(*pairs, strict=True))
    differences = [with_ - without for with_, without in pairs]
    difference, error = statistics.mean(differences), statistics.stdev(differences) / len(pairs) ** 0.5
    print(f"{len(pairs)} turns each way of {SAVES_OF_A_TURN * SAVED_TOGETHER} utterances of 0.6 s or fewer:")
    print(f"  {flushed * 1e3:.2f} ms for each with flushing, {unflushed * 1e3:.2f} ms without: ", end="")
    print(f"{difference * 1e3:.2f} ms more, standard error {error * 1e3:.2f} ms, ratio {flushed / unflushed:.3f}")


@contextmanager
def flushing_in_turns() -> Iterator[dict[bool, list[float]]]:
    """Switch flushing on and off as a run saves; yield the seconds for each utterance, by turn, with and without."""
    flush, save = os.fsync, FilesStore.write
    taken: dict[bool, list[float]] = {True: [], False: []}
    order: list[bool] = []
    saves, saved, since, is_on = 0, 0, time.monotonic(), True

    def timed_save(self: FilesStore, batch: Sequence[Embedded]) -> list[Failure]:
        nonlocal saves, saved, since, is_on
        if saves % SAVES_OF_A_TURN == 0:
            now = time.monotonic()
            if saves:
                taken[is_on].append((now - since) / saved)
            if not order:
                order.extend(random.sample((True, False), 2))
            saved, since, is_on = 0, now, order.pop()
            os.fsync = flush if is_on else lambda _: None
        failures = save(self, batch)
        saves, saved = saves + 1, saved + len(batch)
        return failures

    FilesStore.write = timed_save  # type: ignore[method-assign]
    try:
        yield taken
    finally:
        os.fsync, FilesStore.write = flush, save  # type: ignore[method-assign]


def command(corpus: Path, out: Path, model: Path) -> list[str]:
    """Return the command that embeds a corpus with a local checkpoint."""
    return [sys.executable, "-c", COMMAND, *overrides(corpus, out, model)]


def overrides(corpus: Path, out: Path, model: Path) -> list[str]:
    """Return what the command is told."""
    names = [f"embeddings.model.model_dir={model}", "embeddings.model.model_name=avg_model.pt"]
    return [f"input={corpus}", f"save_dir={out}", *names]


def make_corpus(folder: Path, utterances: int, *, seconds: float) -> Path:
    """Write one noise per so many utterances as may link to it, in folders of a hundred."""
    source = Path()
    for number in range(utterances):
        path = folder / f"id{number // 100:05}" / f"{number % 100:02}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % LINKS_OF_A_FILE == 0:
            noise = np.random.default_rng(number).standard_normal(int(seconds * RATE_HZ)) * 0.1
            soundfile.write(path, noise, RATE_HZ)
            source = path
        else:
            os.link(source, path)
    return folder


@contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """Give a folder that is not there before and after."""
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder)


def timed(arguments: list[str], folder: Path) -> float:
    """Return the seconds that a command takes from its start to its end."""
    started = time.monotonic()
    subprocess.run(arguments, cwd=folder, stderr=subprocess.DEVNULL, check=True)
    return time.monotonic() - started


def resident_mib(process: int) -> float:
    """Return what a process holds in memory, 0 where it is gone."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * resource.getpagesize() / (1 << 20)


if __name__ == "__main__":
    main()
