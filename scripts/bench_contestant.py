"""One contestant of the benchmark, in a process of its own: embed folders of wav files and print as JSON what it took.

`scripts/bench.py` runs this with the Python of the environment that the contestant is installed in:
`bench_contestant.py NAME FOLDER CORPUS...`, where FOLDER holds the checkpoint and `network.onnx`. Everybody reads files
with soundfile and has as many threads as the machine has cores.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE_HZ = 16_000
THREADS = len(os.sched_getaffinity(0))

Embed = Callable[[Sequence[Path]], Any]


def recipe(folder: Path) -> Embed:
    """Do what WeSpeaker's `bin/extract.py` does: eager fp32, one utterance after another."""
    import torch
    import yaml
    from untrained_checkpoint import seeded_network

    config = yaml.safe_load((folder / "config.yaml").read_text())
    network = seeded_network(config["model"], config["model_args"], {}, 0)

    def run(files: Sequence[Path]) -> None:
        with torch.inference_mode():
            for path in files:
                network(recipe_features(path))

    return run


def recipe_features(path: Path) -> Any:
    """Return WeSpeaker's features `(1, frames, 80)`."""
    import torch
    import torchaudio
    from torchaudio.compliance import kaldi

    samples, rate = soundfile.read(path, dtype="float32")
    waveform = torchaudio.transforms.Resample(rate, RATE_HZ)(torch.from_numpy(samples).unsqueeze(0))
    features = kaldi.fbank(
        waveform * (1 << 15), num_mel_bins=80, window_type="hamming", sample_frequency=RATE_HZ, use_energy=False
    )
    return (features - features.mean(dim=0)).unsqueeze(0)


def onnx_runtime(folder: Path) -> Embed:
    """Run the network in ONNX Runtime on WeSpeaker's features, one utterance after another."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(folder / "network.onnx", options, providers=["CPUExecutionProvider"])
    return lambda files: [session.run(None, {"feats": recipe_features(file).numpy()}) for file in files]


def balr(folder: Path, **settings: str) -> Embed:
    """Run a corpus through balr's pipeline with its default settings."""
    from balr import AudioDataset, WespeakerModel

    model = WespeakerModel("", "avg_model.pt", model_dir=folder, **settings)

    def run(files: Sequence[Path]) -> None:
        kept = set(files)
        corpus = AudioDataset.from_dir(files[0].parent).filter(lambda utterance: utterance.audio in kept)
        pairs = model.extract_embeddings(corpus)
        assert len(pairs) == len(files)

    return run


def pyannote(folder: Path) -> Embed:
    """Run pyannote.audio's own copy of WeSpeaker's ResNet34, with the same weights, one utterance after another."""
    import torch
    from pyannote.audio import Inference
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.embedding import WeSpeakerResNet34

    weights = torch.load(folder / "avg_model.pt", weights_only=True)
    model = WeSpeakerResNet34()
    own = {f"resnet.{name}": tensor for name, tensor in weights.items() if not name.startswith("projection.")}
    model.load_state_dict(own)
    model.specifications = Specifications(Problem.REPRESENTATION, Resolution.CHUNK, duration=5.0)
    inference = Inference(model.eval(), window="whole")

    def run(files: Sequence[Path]) -> None:
        for file in files:
            samples, rate = soundfile.read(file, dtype="float32")
            inference({"waveform": torch.from_numpy(samples).unsqueeze(0), "sample_rate": rate})

    return run


def speechbrain(_: Path) -> Embed:
    """Run SpeechBrain's ECAPA-TDNN with the sizes of `spkrec-ecapa-voxceleb`, untrained, one utterance at a time."""
    import torch
    import torchaudio
    from speechbrain.inference.speaker import EncoderClassifier
    from speechbrain.lobes.features import Fbank
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
    from speechbrain.processing.features import InputNormalization

    network = ECAPA_TDNN(
        80,
        channels=[1024, 1024, 1024, 1024, 3072],
        kernel_sizes=[5, 3, 3, 3, 1],
        dilations=[1, 2, 3, 4, 1],
        attention_channels=128,
        lin_neurons=192,
    )
    modules = {
        "compute_features": Fbank(n_mels=80),
        "mean_var_norm": InputNormalization(norm_type="sentence", std_norm=False),
        "embedding_model": network,
        "classifier": torch.nn.Identity(),
    }
    classifier = EncoderClassifier(modules=modules, hparams={"label_encoder": None, "sample_rate": RATE_HZ})

    def run(files: Sequence[Path]) -> None:
        with torch.inference_mode():
            for file in files:
                samples, rate = soundfile.read(file, dtype="float32")
                waveform = torchaudio.functional.resample(torch.from_numpy(samples), rate, RATE_HZ)
                classifier.encode_batch(waveform)

    return run


def sherpa_onnx(folder: Path) -> Embed:
    """Run sherpa-onnx, which resamples, computes features and runs ONNX Runtime in C++, one utterance at a time."""
    import sherpa_onnx as sherpa

    config = sherpa.SpeakerEmbeddingExtractorConfig(model=str(folder / "network.onnx"), num_threads=THREADS)
    extractor = sherpa.SpeakerEmbeddingExtractor(config)

    def run(files: Sequence[Path]) -> None:
        for file in files:
            samples, rate = soundfile.read(file, dtype="float32")
            stream = extractor.create_stream()
            stream.accept_waveform(rate, samples)
            stream.input_finished()
            assert np.isfinite(extractor.compute(stream)).all()

    return run


CONTESTANTS: dict[str, Callable[[Path], Embed]] = {
    "WeSpeaker's recipe, one by one": recipe,
    "ONNX Runtime, one by one": onnx_runtime,
    "balr": lambda folder: balr(folder, engine="auto"),
    "balr, torch": lambda folder: balr(folder, engine="torch"),
    "balr, bf16": lambda folder: balr(folder, engine="auto", precision="bf16"),
    "balr, torch bf16": lambda folder: balr(folder, engine="torch", precision="bf16"),
    "balr, GPU fp32": lambda folder: balr(folder, device="cuda"),
    "balr, GPU bf16": lambda folder: balr(folder, device="cuda", precision="bf16"),
    "pyannote.audio": pyannote,
    "speechbrain": speechbrain,
    "sherpa-onnx": sherpa_onnx,
}


def peak_mib() -> float:
    """Return the most memory that this process held."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def main() -> None:
    """Embed each corpus once it is warm, and print the seconds of each, the peak memory and the version."""
    name, folder, *corpora = sys.argv[1:]
    started = time.perf_counter()
    embed = CONTESTANTS[name](Path(folder))
    ready = time.perf_counter() - started
    seconds = []
    for corpus in corpora:
        files = sorted(Path(corpus).glob("*.wav"))
        embed(files[:2])
        started = time.perf_counter()
        embed(files)
        seconds.append(time.perf_counter() - started)
    installed = version(name) if name in ("pyannote.audio", "speechbrain", "sherpa-onnx") else ""
    print(json.dumps({"seconds": seconds, "ready": ready, "peak_mib": peak_mib(), "version": installed}))


if __name__ == "__main__":
    main()
