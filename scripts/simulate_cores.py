"""Predict how fast a CPU with many cores embeds a corpus, from times measured on this one.

The pipeline is a queue of stages. An utterance is decoded by one of several processes, received by the main thread,
embedded by one of several threads, and its embedding is saved by one more. Python's lock serves one thread at a time,
so what an embedding thread does in Python is a stage of its own, shared by all threads. `simulate` follows every
utterance through the stages; docs/scaling.md shows what comes out, and which of it was measured.
"""

import argparse
import heapq
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from bench_measure import MODELS, Corpus, make_corpora, write_model

from balr.config import DataConfig
from balr.data.audio import load_waveform
from balr.data.audio_budget import AudioBudget
from balr.data.dataset import AudioDataset
from balr.data.decoder_pool import DecoderPool
from balr.data.decoding import decoded_batches, waveform_reader
from balr.embeddings.devices import resolve_loading, shared_threads
from balr.embeddings.exact import openvino
from balr.embeddings.wespeaker import WespeakerModel
from balr.shutdown import Stop

RATE_HZ = 16_000
MEAN_SECONDS, SHORTEST_SECONDS = 7.8, 4.0  # of VoxCeleb2
SLOW_STORAGE_SECONDS = 0.02  # to open a file on a network file system
FFMPEG = 5  # times as long as a wav takes an m4a
PREFETCH = 4
AUDIO_SECONDS = (200.0, 800.0)  # the difference leaves out what a run takes to start
REPEATS = 3


@dataclass(frozen=True)
class Costs:
    """Hold what was measured: seconds of work for each second of audio, and `python` and `save` for each utterance.

    `serial` is the share of a network's work that a second thread does not speed up (Amdahl).
    """

    decode: float
    receive: float
    python: float
    embed: float
    save: float
    serial: float


@dataclass(frozen=True)
class Layout:
    """Hold how many processes decode, how many batches are computed at a time, and the threads of each."""

    decoders: int
    concurrent: int
    threads: int


def default_layout(cores: int, most_concurrent: int) -> Layout:
    """Return what `resolve_loading` chooses for a number of cores."""
    concurrent = cores // -(-cores // most_concurrent)
    return Layout(max(1, concurrent // 2), concurrent, max(1, cores // concurrent))


def simulate(lengths: Sequence[float], costs: Costs, layout: Layout, *, open_seconds: float = 0.0) -> float:
    """Return x real time of a corpus whose utterances of `lengths` seconds pass through the stages in order."""
    speedup = 1 / (costs.serial + (1 - costs.serial) / layout.threads)
    decoders, slots = [0.0] * layout.decoders, [0.0] * layout.concurrent
    received = python = saved = 0.0
    begun: deque[float] = deque(
        [0.0] * (PREFETCH * layout.decoders)
    )  # a decoder is so far ahead of the network at most
    for seconds in lengths:
        decoded = max(heapq.heappop(decoders), begun.popleft()) + open_seconds + costs.decode * seconds
        heapq.heappush(decoders, decoded)
        received = max(received, decoded) + costs.receive * seconds
        start = max(received, heapq.heappop(slots))
        begun.append(start)
        python = max(python, start) + costs.python
        embedded = python + costs.embed * seconds / speedup
        heapq.heappush(slots, embedded)
        saved = max(saved, embedded) + costs.save
    return sum(lengths) / max(saved, *slots)


def voxceleb_like(count: int) -> list[float]:
    """Return lengths in seconds, longest first, with the mean and the minimum of VoxCeleb2."""
    spread = np.random.default_rng(0).exponential(MEAN_SECONDS - SHORTEST_SECONDS, count)
    return sorted((SHORTEST_SECONDS + spread).tolist(), reverse=True)


def measure(architecture: str, folder: Path) -> tuple[Costs, float]:
    """Measure the stages one by one, and x real time of the whole pipeline on this machine once it runs."""
    checkpoint = write_model(architecture, folder / "models" / architecture)
    corpus, longer = (_corpus(folder / f"{architecture}-{seconds:.0f}", seconds) for seconds in AUDIO_SECONDS)
    waveforms = [load_waveform(file, RATE_HZ) for file in corpus.files]
    cores = torch.get_num_threads()
    model = WespeakerModel("", "avg_model.pt", model_dir=checkpoint, engine="auto")
    one_batch = replace(resolve_loading(DataConfig(), model.device), concurrent_batches=1)
    with patch.object(openvino, "resolve_loading", return_value=one_batch):
        on_all_cores = WespeakerModel("", "avg_model.pt", model_dir=checkpoint, engine="auto")
    with shared_threads(cores, model.device):
        embed = _best(lambda: [model.embed([waveform]) for waveform in waveforms])
        nothing = torch.zeros(1, model.embedding_dim or 0)
        with patch.object(model, "_forward", lambda _: nothing):  # what is left is mostly Python and its calls
            python = _best(lambda: [model.embed([waveforms[0][: RATE_HZ // 5]]) for _ in waveforms])
        shared = _best(lambda: [on_all_cores.embed([waveform]) for waveform in waveforms])
    short_run, save = _run_and_save(model, corpus)
    long_run, _ = _run_and_save(model, longer)
    costs = Costs(
        decode=_best(lambda: [load_waveform(file, RATE_HZ) for file in corpus.files]) / corpus.seconds,
        receive=_seconds_to_receive(AudioDataset.from_dir(corpus.folder)) / corpus.seconds,
        python=python / len(waveforms),
        embed=(embed - python) / corpus.seconds,
        save=save,
        serial=min(1.0, max(0.0, (shared / embed * cores - 1) / (cores - 1))),
    )
    return costs, (longer.seconds - corpus.seconds) / (long_run - short_run)


def _corpus(folder: Path, seconds: float) -> Corpus:
    folder.mkdir()
    return make_corpora(folder, seconds)[0]


def _run_and_save(model: WespeakerModel, corpus: Corpus) -> tuple[float, float]:
    """Return the seconds of a run, and those that saving an embedding takes."""
    dataset = AudioDataset.from_dir(corpus.folder)
    before = model.stages.seconds().get("write", 0.0)
    with tempfile.TemporaryDirectory() as saved:
        dataset.set_output_dir(saved)
        taken = _best(lambda: model.extract_embeddings(dataset, True))
    return taken, (model.stages.seconds()["write"] - before) / (REPEATS * len(corpus.files))


def _seconds_to_receive(dataset: AudioDataset) -> float:
    """Return the main thread's own seconds to take all waveforms from one process that decodes."""
    reader = waveform_reader(RATE_HZ, 3600.0)
    plan = [[index] for index in range(len(dataset))]
    with DecoderPool(reader, processes=1, timeout_seconds=60.0) as pool:
        settings = {"seconds": [0.0] * len(dataset), "read_ahead": AudioBudget(1.0)}
        started = time.thread_time()
        for _ in decoded_batches(dataset, plan, reader, pool=pool, ahead=PREFETCH, stop=Stop(), **settings):
            pass
        return time.thread_time() - started


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Print the measured costs, the prediction for this machine beside what it does, and those for more cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["ResNet34", "CAMPPlus"], choices=list(MODELS))
    lengths = voxceleb_like(20_000)
    with tempfile.TemporaryDirectory() as folder:
        for architecture in parser.parse_args().models:
            costs, measured = measure(architecture, Path(folder))
            print(architecture, {name: float(f"{value:.3g}") for name, value in vars(costs).items()})
            slow = replace(costs, decode=FFMPEG * costs.decode)
            print("| cores | batches x threads, decoders | x real time | from slow files | share of all cores |")
            for cores in (torch.get_num_threads(), 8, 32, 128):
                for layout in dict.fromkeys(default_layout(cores, most) for most in (8, 32, cores)):
                    pace = simulate(lengths, costs, layout)
                    with_slow_files = simulate(lengths, slow, layout, open_seconds=SLOW_STORAGE_SECONDS)
                    share = pace * costs.embed / cores
                    print(
                        f"| {cores} | {layout.concurrent} x {layout.threads}, {layout.decoders} | {pace:,.0f} "
                        f"| {with_slow_files:,.0f} | {share:.0%} |"
                    )
            print(f"measured with {torch.get_num_threads()} cores: {measured:.0f}")


if __name__ == "__main__":
    main()
