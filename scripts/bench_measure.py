"""What the benchmark measures: contestants in processes of their own, whole commands, one long file, the machine."""

import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from bench_contestant import RATE_HZ, peak_mib
from torch.utils.flop_counter import FlopCounterMode
from untrained_checkpoint import seeded_network, write_checkpoint

from balr.data.audio import load_waveform
from balr.embeddings.exact.precision import checked_precision
from balr.embeddings.wespeaker import WespeakerModel
from balr.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT.parent / "shared" / "data" / "voxceleb2"
LONG_SECONDS = 1800
RECIPE, ONNX_RUNTIME = "WeSpeaker's recipe, one by one", "ONNX Runtime, one by one"
OTHER_LIBRARIES = {
    "pyannote.audio": "ResNet34",
    "sherpa-onnx": "ResNet34",
    "speechbrain": "ECAPA_TDNN_GLOB_c1024",
}
MODELS = {
    "ResNet34": {"feat_dim": 80, "embed_dim": 256, "pooling_func": "TSTP"},
    "ResNet293": {"feat_dim": 80, "embed_dim": 256, "pooling_func": "TSTP"},
    "ECAPA_TDNN_GLOB_c1024": {"feat_dim": 80, "embed_dim": 192, "pooling_func": "ASTP"},
    "CAMPPlus": {"feat_dim": 80, "embed_dim": 512, "pooling_func": "TSTP"},
}


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
        name = "speech, 4 to 49 s, 24 kHz"
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


@dataclass(frozen=True)
class Turns:
    """Hold what a contestant took in each turn: seconds by corpus, of the whole process, and the most memory."""

    seconds: tuple[list[float], ...]
    whole_seconds: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    version: str = ""

    def pace(self, corpus: Corpus, number: int) -> tuple[float, float, float]:
        """Return x real time in the median, the slowest and the fastest turn."""
        taken = self.seconds[number]
        return corpus.seconds / statistics.median(taken), corpus.seconds / max(taken), corpus.seconds / min(taken)


def in_rotation(
    names: Sequence[str], folder: Path, corpora: Sequence[Corpus], *, repeats: int, peers: Path
) -> dict[str, Turns]:
    """Let each contestant embed the corpora in a process of its own, one after another, for several turns."""
    found = {name: Turns(tuple([] for _ in corpora)) for name in names}
    for _ in range(repeats):
        for name in names:
            started = time.perf_counter()
            printed = run_contestant(name, folder, [corpus.folder for corpus in corpora], peers)
            found[name].whole_seconds.append(time.perf_counter() - started)
            for taken, seconds in zip(found[name].seconds, printed["seconds"], strict=True):
                taken.append(seconds)
            found[name].peak_mib.append(printed["peak_mib"])
            found[name] = replace(found[name], version=printed["version"])
    return found


def run_contestant(name: str, folder: Path, corpora: Sequence[Path], peers: Path) -> dict[str, Any]:
    """Run one process, with the Python of the peer's environment or with ours, and return what it prints."""
    command = [
        str(_python(name, peers)),
        str(ROOT / "scripts" / "bench_contestant.py"),
        name,
        str(folder),
        *map(str, corpora),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


def _python(name: str, peers: Path) -> Path:
    folder = "onnxruntime" if name == ONNX_RUNTIME else name
    return peers / folder / "bin" / "python" if name in (ONNX_RUNTIME, *OTHER_LIBRARIES) else Path(sys.executable)


def contestants(peers: Path) -> list[str]:
    """Name who takes part in the tables of networks."""
    names = [RECIPE, "balr", "balr, torch"]
    if _python(ONNX_RUNTIME, peers).is_file():
        names.insert(1, ONNX_RUNTIME)
    if has_bf16():
        names += ["balr, bf16", "balr, torch bf16"]
    return names + ["balr, GPU fp32", "balr, GPU bf16"] * torch.cuda.is_available()


def write_model(architecture: str, folder: Path) -> Path:
    """Write a checkpoint and the same network as ONNX, with the metadata that sherpa-onnx asks for."""
    import onnx

    write_checkpoint(folder, architecture, MODELS[architecture])
    network = seeded_network(architecture, MODELS[architecture], {}, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the older exporter
        torch.onnx.export(
            network,
            (torch.randn(1, 300, 80),),
            folder / "network.onnx",
            input_names=["feats"],
            dynamic_axes={"feats": {0: "batch", 1: "frames"}},
            dynamo=False,
        )
    model = onnx.load(folder / "network.onnx")
    facts = {"framework": "wespeaker", "language": "any", "url": "-", "comment": "-", "sample_rate": RATE_HZ}
    facts |= {
        "output_dim": MODELS[architecture]["embed_dim"],
        "normalize_samples": 0,
        "feature_normalize_type": "global-mean",
    }
    onnx.helper.set_model_props(model, {name: str(value) for name, value in facts.items()})
    del model.graph.output[:-1]  # some networks return more than the embedding
    onnx.save(model, folder / "network.onnx")
    return folder


def has_bf16() -> bool:
    """Return whether the processor computes in bf16."""
    try:
        checked_precision("bf16", torch.device("cpu"))
    except ConfigError:
        return False
    return True


def gflop_per_second_of_audio(architecture: str) -> float:
    network = seeded_network(architecture, MODELS[architecture], {}, 0)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.randn(1, 800, 80))
    return counter.get_total_flops() / 8 / 1e9


def long_file(path: Path, checkpoint: Path) -> tuple[float, float, list[float]]:
    """Embed one long file; return x real time, the memory above the idle process in MiB, and the embedding."""
    model = WespeakerModel("", "avg_model.pt", model_dir=checkpoint)
    model.embed([torch.randn(3 * RATE_HZ) * 0.1])
    idle = peak_mib()
    started = time.perf_counter()
    ((_, embedding),) = model.extract_embeddings(path)
    pace = soundfile.info(path).duration / (time.perf_counter() - started)
    return pace, peak_mib() - idle, embedding.tolist()


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


def whole_process(argv: Sequence[str], folder: Path) -> tuple[float, float]:
    """Return the seconds of a command from start to end, and the peak memory of its largest process in MiB."""
    # Measured by a small process in between: a child's peak counts what its parent held when it was forked.
    small = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True); "
    small += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", small, *argv], cwd=folder, check=True, capture_output=True, text=True)
    return time.perf_counter() - started, int(done.stdout) / 1024


def balr_command(corpus: Path, checkpoint: Path) -> list[str]:
    """Return the command that embeds and saves a folder with a checkpoint."""
    settings = [f"embeddings.model.model_dir={checkpoint}", "embeddings.model.model_name=avg_model.pt"]
    return [str(Path(sys.executable).with_name("balr")), "extract", str(corpus), "--force", *settings]
