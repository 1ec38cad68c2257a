"""Measure balr on a GPU beside WeSpeaker's recipe on the same one, and print the figures as tables.

The recipe reads a file, computes its features on the processor and embeds it on the GPU, one utterance after another.
balr is measured twice: from waveforms in memory by batch size, and from files to embeddings with its default settings,
which is what a user waits for. All take turns in one process; weights are untrained, speech is noise of
the lengths of VoxCeleb2.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from bench_contestant import RATE_HZ, recipe_features
from bench_measure import MODELS, gflop_per_second_of_audio
from untrained_checkpoint import seeded_network, write_checkpoint

from balr.data.batching import plan_batches
from balr.data.dataset import AudioDataset
from balr.embeddings.wespeaker import WespeakerModel

PRECISIONS = ("fp32", "bf16")
BATCH_SIZES = (1, 16, 64, 256, 1024)
MOST_SECONDS = 2400.0
RECIPE_FILES = 10
COPIES = 20  # of each file, as lengths repeat in a large corpus
RECIPE = "WeSpeaker's recipe, one by one"

Run = Callable[[], object]


def in_turn(contestants: dict[str, Run], repeats: int) -> dict[str, list[float]]:
    """Return the seconds that each took in each turn, after one that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            torch.cuda.synchronize()
            if turn:
                taken[name].append(time.perf_counter() - started)
    return taken


def pace(seconds: float, taken: Sequence[float]) -> str:
    """Show x real time in the median turn, with the slowest and the fastest."""
    median, slowest, fastest = statistics.median(taken), max(taken), min(taken)
    return f"{seconds / median:,.0f} ({seconds / slowest:,.0f} to {seconds / fastest:,.0f})"


def ceilings(repeats: int, size: int = 8192) -> dict[str, float]:
    """Return the TFLOP/s of a matrix product in each type, without tf32."""
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
        taken = in_turn({name: lambda left=left, right=right: left @ right}, repeats)[name]
        found[name] = 2 * size**3 / statistics.median(taken) / 1e12
    return found


def speech_lengths(count: int) -> np.ndarray:
    """Draw lengths in seconds that are distributed like VoxCeleb2's: 4 s at least, 7.8 s on average."""
    drawn = np.random.default_rng(0).lognormal(np.log(6.7), 0.5, count)
    return np.clip(drawn, 4.0, 60.0)


def waveforms(seconds: Sequence[float]) -> list[torch.Tensor]:
    """Return noise `(samples,)` of these lengths in memory that a GPU copies from."""
    return [(torch.randn(round(length * RATE_HZ)) * 0.1).pin_memory() for length in seconds]


def batches(size: int) -> dict[str, list[torch.Tensor]]:
    """Return a batch of 2 s clips, and one of speech as a plan of a large corpus has it in the middle."""
    lengths = speech_lengths(20_000)
    plan = plan_batches(list(lengths), batch_size=size, max_batch_seconds=MOST_SECONDS)
    middle = plan[len(plan) // 2]
    return {"2 s clips": waveforms([2.0] * size), "speech": waveforms([lengths[index] for index in middle])}


def recipe(architecture: str, files: Sequence[Path]) -> Run:
    """Return the recipe on the GPU, one file after another."""
    network = seeded_network(architecture, MODELS[architecture], {}, 0).cuda()

    @torch.inference_mode()
    def run() -> None:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for file in files:
                output = network(recipe_features(file).cuda())
                (output[-1] if isinstance(output, tuple) else output).cpu()

    return run


def write_files(folder: Path, seconds: Sequence[float], *, copies: int) -> list[Path]:
    """Write noise of these lengths, link each file so many times, and return all of them."""
    folder.mkdir()
    noise = (np.random.default_rng(0).standard_normal(70 * RATE_HZ) * 3000).astype(np.int16)
    for number, length in enumerate(seconds):
        start = 40 * (number % 5000)
        file = folder / f"000-{number:05}.wav"
        soundfile.write(file, noise[start : start + round(length * RATE_HZ)], RATE_HZ)
        for copy in range(1, copies):
            os.link(file, folder / f"{copy:03}-{number:05}.wav")
    return sorted(folder.glob("*.wav"))


def by_batch_size(
    architecture: str, place: Path, *, repeats: int, sizes: Sequence[int], ceiling: dict[str, float]
) -> list[str]:
    """Measure waveforms in memory to embeddings in memory, by batch size, and their share of a matrix product."""
    gflop = gflop_per_second_of_audio(architecture)
    lines = [f"| {architecture}, {gflop:.2f} GFLOP per second of audio | 2 s clips | speech |", "|---|---|---|"]
    models = load(architecture, place)
    for size in sizes:
        cells: dict[str, list[str]] = {precision: [] for precision in models}
        for batch in batches(size).values():
            calls = max(1, 32 // size)
            seconds = calls * sum(map(len, batch)) / RATE_HZ
            contestants = {
                precision: lambda model=model, batch=batch, calls=calls: [model.embed(batch) for _ in range(calls)]
                for precision, model in models.items()
            }
            for precision, taken in in_turn(contestants, repeats).items():
                share = gflop * seconds / statistics.median(taken) / 1000 / ceiling[precision]
                cells[precision].append(f"{pace(seconds, taken)}, {share:.0%}, {len(batch)} together")
        lines += [f"| {name}, batches of up to {size} | {' | '.join(found)} |" for name, found in cells.items()]
    return lines


def load(architecture: str, place: Path) -> dict[str, WespeakerModel]:
    """Return a network with the same weights in each precision."""
    if not (place / architecture).is_dir():
        write_checkpoint(place / architecture, architecture, MODELS[architecture])
    settings = {"model_dir": place / architecture, "device": "cuda"}
    return {name: WespeakerModel("", "avg_model.pt", precision=name, **settings) for name in PRECISIONS}


def from_files(architecture: str, place: Path, *, repeats: int, counts: dict[str, int]) -> list[str]:
    """Measure files to embeddings: the recipe one by one, and balr with its default settings."""
    different = {kind: max(1, count // COPIES) for kind, count in counts.items()}
    lengths = {"2 s clips": [2.0] * different["2 s clips"], "speech": list(speech_lengths(different["speech"]))}
    table: dict[str, list[str]] = {RECIPE: []} | {f"balr, {name}": [] for name in PRECISIONS}
    models = load(architecture, place)
    for kind, seconds in lengths.items():
        folder = place / kind.replace(" ", "-")
        files = sorted(folder.glob("*.wav")) if folder.is_dir() else write_files(folder, seconds, copies=COPIES)
        corpus = AudioDataset.from_dir(folder)
        contestants: dict[str, Run] = {RECIPE: recipe(architecture, files[:RECIPE_FILES])}
        for name, model in models.items():
            contestants[f"balr, {name}"] = lambda model=model, corpus=corpus: model.extract_embeddings(corpus)
        taken = in_turn(contestants, repeats)
        few = sum(seconds[:RECIPE_FILES])
        recipe_pace = few / statistics.median(taken[RECIPE])
        for name, turns in taken.items():
            audio = few if name == RECIPE else COPIES * sum(seconds)
            table[name].append(f"{pace(audio, turns)}, {audio / statistics.median(turns) / recipe_pace:.1f} x")
    shown = (f"{kind} ({COPIES} times {different[kind]} files)" for kind in lengths)
    header = f"| {architecture}, from files | {' | '.join(shown)} |"
    return [header, "|---|---|---|", *(f"| {name} | {' | '.join(cells)} |" for name, cells in table.items())]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=BATCH_SIZES)
    parser.add_argument("--clips", type=int, default=20_000, help="files of 2 s")
    parser.add_argument("--speech", type=int, default=10_000, help="files of 4 s or more")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    ceiling = ceilings(options.repeats)
    rates = ", ".join(f"{name} {rate:.0f} TFLOP/s" for name, rate in ceiling.items())
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; matrix product {rates}", flush=True)
    counts = {"2 s clips": options.clips, "speech": options.speech}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        for architecture in options.models:
            settings = {"repeats": options.repeats, "sizes": options.batch_sizes, "ceiling": ceiling}
            print("\n".join(["", *by_batch_size(architecture, place, **settings)]), flush=True)
            print("\n".join(["", *from_files(architecture, place, repeats=options.repeats, counts=counts)]), flush=True)


if __name__ == "__main__":
    main()
