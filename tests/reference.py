"""WeSpeaker's own answer, one utterance at a time, written apart from balr: no line of `balr` runs here.

Audio is read with the standard library, features come from `torchaudio.compliance.kaldi.fbank` (int16 scale, Hamming,
no dither, mean subtracted) or WeSpeaker's `TFMelFrontend`, the network from WeSpeaker's own module.
"""

import importlib
import sys
import types
import warnings
import wave
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
import yaml
from torchaudio.compliance import kaldi


class Reference:
    """Embed files with a checkpoint folder as WeSpeaker's `bin/extract.py` does."""

    def __init__(self, folder: Path, module: str, *, scale: int = 1 << 15) -> None:
        self.scale = scale
        config = yaml.safe_load((folder / "config.yaml").read_text())
        self.dataset_args = config["dataset_args"]
        network = getattr(_module(f"models.{module}"), config["model"])(**config["model_args"])
        weights = torch.load(folder / "avg_model.pt", weights_only=True)
        missing, _ = network.load_state_dict(weights, strict=False)
        assert not missing
        self.network = network.eval()
        self.frontend = None
        if self.dataset_args.get("frontend") == "tfmel":
            self.frontend = _module("frontend.tfmel").TFMelFrontend(**self.dataset_args["tfmel_args"]).eval()

    def embed(self, path: Path) -> np.ndarray:
        """Return the embedding `(dim,)` of a 16-bit mono wav of any rate."""
        with wave.open(str(path)) as file:
            assert file.getsampwidth() == 2 and file.getnchannels() == 1
            rate = file.getframerate()
            samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
        waveform = torch.from_numpy(samples.astype(np.float32) / 32768.0).unsqueeze(0)
        if rate != 16_000:
            waveform = torchaudio.transforms.Resample(orig_freq=rate, new_freq=16_000)(waveform)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output: Any = self.network(self._features(waveform))
        return (output[-1] if isinstance(output, tuple) else output)[0].numpy()

    def _features(self, waveform: torch.Tensor) -> torch.Tensor:
        if self.frontend is not None:
            return self.frontend(waveform)[0]
        fbank_args = self.dataset_args["fbank_args"]
        features = kaldi.fbank(
            waveform * self.scale,
            num_mel_bins=fbank_args["num_mel_bins"],
            frame_length=fbank_args["frame_length"],
            frame_shift=fbank_args["frame_shift"],
            dither=0.0,
            sample_frequency=16_000,
            window_type="hamming",
            use_energy=False,
        )
        return (features - torch.mean(features, dim=0)).unsqueeze(0)


def _module(name: str) -> types.ModuleType:
    """Import one module of WeSpeaker past its package's `__init__`, which pulls in packages that do not import."""
    spec = PathFinder.find_spec("wespeaker")
    assert spec is not None and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    for package in ("wespeaker", "wespeaker.frontend"):
        if package not in sys.modules:
            stand_in = types.ModuleType(package)
            stand_in.__path__ = [str(root.parent.joinpath(*package.split(".")))]
            sys.modules[package] = stand_in
    return importlib.import_module(f"wespeaker.{name}")


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return float(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs))
