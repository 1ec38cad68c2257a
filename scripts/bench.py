"""Measure balr beside its peers in one run, interleaved, and write the table that docs/benchmarks.md shows.

Peers: WeSpeaker's recipe one utterance at a time in eager fp32, the same network in ONNX Runtime where that is
installed (as sherpa-onnx runs it), and the machine's measured matrix product as the ceiling. Each works with all
threads. Machines are shared and noisy: read ratios within a run, not seconds across runs.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle, pairwise
from multiprocessing import get_context
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
from balr.embeddings.exact.precision import checked_precision
from balr.embeddings.fbank import FbankSettings, fbank
from balr.embeddings.wespeaker import WespeakerModel
from balr.errors import ConfigError

SAMPLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "voxceleb2"
RATE_HZ = 16_000
LONG_SECONDS = 1800
SLOW_MODELS_SHARE = 10
RECIPE, ONNX_RUNTIME = "WeSpeaker's recipe, one by one", "ONNX Runtime, one by one"
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

    def recipe(files: Sequence[Path]) -> None:
        with torch.inference_mode():
            for path in files:
                network(recipe_features(path))

    def balr(**settings: str) -> Contestant:
        model = WespeakerModel("", "avg_model.pt", model_dir=checkpoint, **settings)
        return lambda files: model.extract_embeddings(_corpus_of(files), False, DataConfig()) and None

    taking_part = {RECIPE: recipe, "balr": balr()}
    if find_spec("onnxruntime") and find_spec("onnx"):
        taking_part[ONNX_RUNTIME] = _onnx(network, folder / f"{architecture}.onnx")
    if find_spec("openvino") and find_spec("onnx"):
        taking_part["balr, OpenVINO"] = balr(engine="openvino")
    if _has_bf16():
        taking_part["balr, bf16"] = balr(precision="bf16")
        if find_spec("openvino") and find_spec("onnx"):
            taking_part["balr, OpenVINO bf16"] = balr(engine="openvino", precision="bf16")
    if torch.cuda.is_available():
        for precision in ("fp32", "bf16"):
            taking_part[f"balr, GPU {precision}"] = balr(device="cuda", precision=precision)
    return taking_part


def _has_bf16() -> bool:
    try:
        checked_precision("bf16", torch.device("cpu"))
    except ConfigError:
        return False
    return True


def _corpus_of(files: Sequence[Path]) -> AudioDataset:
    kept = set(files)
    return AudioDataset.from_dir(files[0].parent).filter(lambda utterance: utterance.audio in kept)


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


def interleaved(taking_part: dict[str, Contestant], files: Sequence[Path], repeats: int) -> dict[str, float]:
    """Return x real time of each, the median of several turns taken in rotation, after one turn to warm up."""
    times: dict[str, list[float]] = {name: [] for name in taking_part}
    for turn in range(repeats + 1):
        for name, run in taking_part.items():
            started = time.perf_counter()
            run(files if turn else files[:2])
            if turn:
                times[name].append(time.perf_counter() - started)
    seconds = sum(soundfile.info(path).duration for path in files)
    return {name: seconds / statistics.median(taken) for name, taken in times.items()}


def matmul_gflops(dtype: torch.dtype = torch.float32, size: int = 2048, repeats: int = 5) -> float:
    """Measure the processor's matrix product."""
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
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


def stages(corpus: Corpus, checkpoint: Path, repeats: int) -> dict[str, float]:
    """Return the share of each stage in a run on one thread that saves embeddings, and of all that is none of them."""
    model = WespeakerModel("", "avg_model.pt", model_dir=checkpoint)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    shares: dict[str, list[float]] = {name: [] for name in ("decode and resample", "features", "network", "the rest")}
    for _ in range(repeats):
        spent = [0.0, 0.0, 0.0]
        for path in corpus.files:
            moments = [time.perf_counter()]
            waveform = load_waveform(path, RATE_HZ)
            moments.append(time.perf_counter())
            fbank(waveform, FbankSettings())
            moments.append(time.perf_counter())
            model.embed([waveform])
            moments.append(time.perf_counter())
            took = [after - before for before, after in pairwise(moments)]
            spent = [s + t for s, t in zip(spent, (took[0], took[1], took[2] - took[1]), strict=True)]
        with tempfile.TemporaryDirectory() as saved:
            dataset = AudioDataset.from_dir(corpus.folder)
            dataset.set_output_dir(saved)
            started = time.perf_counter()
            model.extract_embeddings(dataset, True, DataConfig(num_workers=0))
            wall = time.perf_counter() - started
        for name, seconds in zip(shares, (*spent, wall - sum(spent)), strict=True):
            shares[name].append(seconds / wall)
    torch.set_num_threads(threads)
    return {name: statistics.median(values) for name, values in shares.items()}


def long_file(path: Path, checkpoint: Path) -> tuple[float, float, list[float]]:
    """Embed one long file; return x real time, the memory above the idle process in MiB, and the embedding."""
    model = WespeakerModel("", "avg_model.pt", model_dir=checkpoint)
    model.embed([torch.randn(3 * RATE_HZ) * 0.1])
    idle = _peak_mib()
    started = time.perf_counter()
    ((_, embedding),) = model.extract_embeddings(path)
    pace = soundfile.info(path).duration / (time.perf_counter() - started)
    return pace, _peak_mib() - idle, embedding.tolist()


def _peak_mib() -> float:
    """Return the most memory that this process held; what `resource` says counts its parent's, too."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def on_a_long_file(corpus: Corpus, checkpoint: Path, folder: Path) -> str:
    """Embed 30 minutes in a process of its own and compare with the embedding of the whole at once."""
    (folder / "long").mkdir()
    sources = [soundfile.read(path, dtype="float32") for path in corpus.files]
    path = folder / "long" / "0000.wav"
    with soundfile.SoundFile(path, "w", sources[0][1], 1, subtype="PCM_16") as file:
        for samples, rate in cycle(sources):
            if file.frames >= LONG_SECONDS * rate:
                break
            file.write(samples)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pace, mib, vector = pool.submit(long_file, path, checkpoint).result()
    whole = WespeakerModel("", "avg_model.pt", model_dir=checkpoint).embed([load_waveform(path, RATE_HZ)])[0]
    moved = float((torch.tensor(vector) - whole).abs().max() / whole.abs().max())
    return (
        f"{checkpoint.name}, one file of {soundfile.info(path).duration / 60:.0f} minutes: {pace:.1f} x real time, "
        f"{mib:.0f} MiB above the idle process; relative difference to the whole at once {moved:.1e}."
    )


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
        lines = [
            f"{_machine()}; {seconds:.0f} s of audio a turn ({seconds / SLOW_MODELS_SHARE:.0f} s for ResNet293),",
            f"median of {repeats} turns in rotation; untrained weights. Figures are x real time, in brackets the ratio",
            "to WeSpeaker's recipe in the same run.",
        ]
        corpora = make_corpora(folder, seconds)
        for architecture in models:
            lines += ["", *_table(architecture, corpora, folder, repeats)]
        checkpoint = folder / models[0]
        torch_seconds, balr_seconds, peak_mb = whole_process(corpora[0], checkpoint, folder, repeats)
        shares = ", ".join(f"{name} {share:.1%}" for name, share in stages(corpora[0], checkpoint, repeats).items())
        lines += [
            "",
            f"{models[0]}, whole command `balr extract` on {corpora[0].seconds:.0f} s of audio: {balr_seconds:.1f} s, "
            f"of which `import torch` alone takes {torch_seconds:.1f} s; peak memory {peak_mb:.0f} MB.",
            f"Shares of the wall time on one thread: {shares}.",
        ]
        if models[0].startswith("ResNet"):  # others see an utterance whole
            lines.append(on_a_long_file(corpora[0], checkpoint, folder))
        return "\n".join(lines) + "\n"


def _table(architecture: str, corpora: Sequence[Corpus], folder: Path, repeats: int) -> list[str]:
    taking_part = contestants(architecture, folder)
    lines = [f"| {architecture} | {' | '.join(corpus.name for corpus in corpora)} |", "|---|---|---|"]
    paces = []
    for corpus in corpora:
        share = SLOW_MODELS_SHARE if architecture == "ResNet293" else 1
        part = corpus.files[: max(3, len(corpus.files) // share)]
        paces.append(interleaved(taking_part, part, repeats))
    for name in taking_part:
        cells = [f"{pace[name]:.1f} ({pace[name] / pace[RECIPE]:.2f})" for pace in paces]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    gflop = gflop_per_second_of_audio(architecture)
    ceilings = {"fp32": matmul_gflops() / gflop, "bf16": matmul_gflops(torch.bfloat16) / gflop}
    lines.append("| matrix product alone, fp32 / bf16 |" + f" {ceilings['fp32']:.1f} / {ceilings['bf16']:.1f} |" * 2)
    print("\n".join(lines), flush=True)
    return lines


def _machine() -> str:
    name = str(torch.cpu.get_capabilities().get("cpu_name", platform.machine()))
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{name}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"


def main() -> None:
    """Print the page and, with --write, put it below the first line of rules of a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seconds", type=float, default=600, help="audio a turn")
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
