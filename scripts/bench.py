"""Measure balr beside its peers in one run, interleaved, and write the table that docs/benchmarks.md shows.

Peers: WeSpeaker's recipe one utterance at a time in eager fp32, the same network in ONNX Runtime where that is
installed (as sherpa-onnx runs it), and the machine's measured matrix product as the ceiling. Machines are shared and
noisy: read ratios within a run, not seconds across runs.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from torch.utils.flop_counter import FlopCounterMode
from torchaudio.compliance import kaldi
from untrained_checkpoint import seeded_network, write_checkpoint

from balr.config import DataConfig
from balr.data.audio import load_waveform
from balr.data.dataset import AudioDataset
from balr.embeddings.fbank import FbankSettings, fbank
from balr.embeddings.wespeaker import WespeakerModel

SAMPLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "voxceleb2"
RATE_HZ = 16_000
MODELS = {
    "ResNet34": {"feat_dim": 80, "embed_dim": 256, "pooling_func": "TSTP"},
    "ResNet293": {"feat_dim": 80, "embed_dim": 256, "pooling_func": "TSTP"},
    "ECAPA_TDNN_GLOB_c1024": {"feat_dim": 80, "embed_dim": 192, "pooling_func": "ASTP"},
    "CAMPPlus": {"feat_dim": 80, "embed_dim": 512, "pooling_func": "TSTP"},
}

Contestant = Callable[[Sequence[Path]], None]


@dataclass(frozen=True)
class Corpus:
    """Name a folder of wav files and how much audio is in it."""

    name: str
    folder: Path
    seconds: float

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.wav"))


def make_corpora(folder: Path, seconds: float) -> list[Corpus]:
    """Write utterances of real speech where there is some, else of speech-like noise, and 2 s clips of the same."""
    if SAMPLE.is_dir():
        sources = [soundfile.read(path, dtype="float32") for path in sorted(SAMPLE.glob("*/*.wav"))]
        name = "speech, 4 to 20 s, 24 kHz"
    else:
        generator = np.random.default_rng(0)
        level = np.abs(np.sin(np.arange(8 * RATE_HZ) / 3000)).astype(np.float32)
        noise = [generator.standard_normal(8 * RATE_HZ).astype(np.float32) for _ in range(6)]
        sources = [(0.1 * level * samples, RATE_HZ) for samples in noise]
        name = "speech-like noise, 8 s, 16 kHz"
    return [
        _write(name, folder / "utterances", sources, seconds),
        _write("2 s clips", folder / "clips", [(x[: 2 * rate], rate) for x, rate in sources], seconds),
    ]


def _write(name: str, folder: Path, sources: Sequence[tuple[np.ndarray, int]], seconds: float) -> Corpus:
    folder.mkdir()
    written = 0.0
    for number, (samples, rate) in enumerate(cycle(sources)):
        if written >= seconds:
            break
        soundfile.write(folder / f"{number:04}.wav", samples, rate)
        written += len(samples) / rate
    return Corpus(name, folder, written)


def recipe_features(path: Path) -> torch.Tensor:
    """Do what WeSpeaker's `bin/extract.py` does up to the network, with soundfile to read the file."""
    samples, rate = soundfile.read(path, dtype="float32")
    waveform = torchaudio.transforms.Resample(rate, RATE_HZ)(torch.from_numpy(samples).unsqueeze(0))
    features = kaldi.fbank(
        waveform * (1 << 15), num_mel_bins=80, window_type="hamming", sample_frequency=RATE_HZ, use_energy=False
    )
    return (features - features.mean(dim=0)).unsqueeze(0)


def contestants(architecture: str, folder: Path) -> dict[str, Contestant]:
    """Return who takes part, by name; all run the same weights."""
    checkpoint = write_checkpoint(folder / architecture, architecture, MODELS[architecture])
    network = seeded_network(architecture, MODELS[architecture], {}, 0)
    model = WespeakerModel("", "avg_model.pt", model_dir=checkpoint)

    def recipe(files: Sequence[Path]) -> None:
        with torch.inference_mode():
            for path in files:
                network(recipe_features(path))

    def balr(files: Sequence[Path]) -> None:
        model.extract_embeddings(AudioDataset.from_dir(files[0].parent), False, DataConfig())

    taking_part = {"WeSpeaker's recipe": recipe, "balr": balr}
    if find_spec("onnxruntime") and find_spec("onnx"):
        taking_part["ONNX Runtime"] = _onnx(network, folder / f"{architecture}.onnx")
    return taking_part


def _onnx(network: torch.nn.Module, path: Path) -> Contestant:
    import onnxruntime

    example = torch.randn(1, 300, 80)
    dynamic = {"features": {0: "batch", 1: "frames"}}
    torch.onnx.export(network, example, path, input_names=["features"], dynamic_axes=dynamic, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(files: Sequence[Path]) -> None:
        for file in files:
            session.run(None, {"features": recipe_features(file).numpy()})

    return run


def interleaved(taking_part: dict[str, Contestant], corpus: Corpus, repeats: int) -> dict[str, float]:
    """Return x real time of each, the median of several turns taken in rotation, after one turn to warm up."""
    times: dict[str, list[float]] = {name: [] for name in taking_part}
    for turn in range(repeats + 1):
        for name, run in taking_part.items():
            started = time.perf_counter()
            run(corpus.files if turn else corpus.files[:2])
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: corpus.seconds / statistics.median(taken) for name, taken in times.items()}


def matmul_gflops(size: int = 2048, repeats: int = 5) -> float:
    """Measure the machine's fp32 matrix product."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        torch.mm(left, right)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times[1:]) / 1e9


def gflop_per_second_of_audio(architecture: str) -> float:
    network = seeded_network(architecture, MODELS[architecture], {}, 0)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.randn(1, 800, 80))
    return counter.get_total_flops() / 8 / 1e9


def stages(corpus: Corpus, checkpoint: Path) -> dict[str, float]:
    """Return the share of decoding with resampling, features and the whole embedding, one after another."""
    model = WespeakerModel("", "avg_model.pt", model_dir=checkpoint)
    spent = dict.fromkeys(("decode and resample", "features", "network"), 0.0)
    for path in corpus.files:
        started = time.perf_counter()
        waveform = load_waveform(path, RATE_HZ)
        decoded = time.perf_counter()
        fbank(waveform, FbankSettings())
        featured = time.perf_counter()
        model.embed([waveform])
        embedded = time.perf_counter()
        features = featured - decoded
        for name, seconds in zip(spent, (decoded - started, features, embedded - featured - features), strict=True):
            spent[name] += seconds
    return {name: seconds / sum(spent.values()) for name, seconds in spent.items()}


def whole_process(corpus: Corpus, checkpoint: Path, folder: Path, repeats: int) -> tuple[float, float, float]:
    """Return the seconds of `import torch`, of the whole command on the corpus, and its peak memory in MB."""
    command = [str(Path(sys.executable).with_name("balr")), "extract", str(corpus.folder), "--force"]
    command += [f"embeddings.model.model_dir={checkpoint}", "embeddings.model.model_name=avg_model.pt"]
    # Measured by a small process in between: a child's peak counts what its parent held when it was forked.
    small = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True); "
    small += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    peaks = []
    times: dict[str, list[float]] = {"torch": [], "balr": []}
    for _ in range(repeats):
        for name, argv in (("torch", [sys.executable, "-c", "import torch"]), ("balr", command)):
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", small, *argv], cwd=folder, check=True, capture_output=True, text=True
            )
            times[name].append(time.perf_counter() - started)
            peaks.append(int(done.stdout) / 1024)
    return statistics.median(times["torch"]), statistics.median(times["balr"]), max(peaks)


def report(models: Sequence[str], seconds: float, repeats: int) -> str:
    """Run everything and return the page as Markdown."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpora = make_corpora(folder, seconds)
        lines = [
            f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch "
            f"{torch.__version__}; {seconds:.0f} s of audio a turn, median of {repeats} turns in rotation; untrained",
            "weights. Figures are x real time, ratios to WeSpeaker's recipe in brackets.",
            "",
            "| model | corpus | WeSpeaker's recipe | balr | ONNX Runtime | ceiling | balr / ceiling |",
            "|---|---|---|---|---|---|---|",
        ]
        for architecture in models:
            taking_part = contestants(architecture, folder)
            for corpus in corpora:
                ceiling = matmul_gflops() / gflop_per_second_of_audio(architecture)
                pace = interleaved(taking_part, corpus, repeats)
                base = pace["WeSpeaker's recipe"]
                cells = [f"{base:.1f}"]
                cells += [
                    f"{pace[name]:.1f} ({pace[name] / base:.2f})" if name in pace else "not installed"
                    for name in ("balr", "ONNX Runtime")
                ]
                cells += [f"{ceiling:.1f}", f"{pace['balr'] / ceiling:.0%}"]
                lines.append(f"| {architecture} | {corpus.name} | {' | '.join(cells)} |")
                print(lines[-1], flush=True)
        checkpoint = folder / models[0]
        torch_seconds, balr_seconds, peak_mb = whole_process(corpora[0], checkpoint, folder, repeats)
        shares = ", ".join(f"{name} {share:.1%}" for name, share in stages(corpora[0], checkpoint).items())
        lines += [
            "",
            f"{models[0]}, whole command `balr extract` on {corpora[0].seconds:.0f} s of audio: {balr_seconds:.1f} s, "
            f"of which `import torch` alone takes {torch_seconds:.1f} s; peak memory {peak_mb:.0f} MB.",
            f"Shares of the work: {shares}.",
        ]
        return "\n".join(lines) + "\n"


def main() -> None:
    """Print the page and, with --write, put it below the first line of rules of a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seconds", type=float, default=60, help="audio a turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--write", type=Path, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    page = report(options.models, options.seconds, options.repeats)
    print(page)
    if options.write:
        kept = options.write.read_text(encoding="utf-8").partition("\n---\n")[0] if options.write.is_file() else ""
        options.write.write_text(f"{kept}\n---\n\n{page}", encoding="utf-8")


if __name__ == "__main__":
    main()
