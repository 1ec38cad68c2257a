"""The front end: from a waveform to what the network reads, by the settings that the checkpoint was trained with."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch

from balr.config import FeaturesConfig
from balr.errors import CheckpointError, ConfigError, UtteranceError

_INT16_SCALE = 32768.0

# As torchaudio.compliance.kaldi names them.
_WINDOWS = ("hamming", "hanning", "povey", "rectangular", "blackman")

_UNSUPPORTED = MappingProxyType(
    {"s3prl": "WavLM and other s3prl models", "w2vbert": "W2V-BERT", "whisper_encoder": "Whisper"}
)


@dataclass(frozen=True)
class FbankSettings:
    """Fix everything that a log-mel filter bank depends on; dither is always 0."""

    sample_rate_hz: int = 16_000
    num_mel_bins: int = 80
    frame_length_ms: float = 25.0
    frame_shift_ms: float = 10.0
    window_type: str = "hamming"
    int16_scale: bool = True
    mean_norm: bool = True

    def __post_init__(self) -> None:
        if self.window_type not in _WINDOWS:
            raise ConfigError(f"features.window_type={self.window_type}: must be one of {', '.join(_WINDOWS)}.")
        for name in ("sample_rate_hz", "num_mel_bins", "frame_length_ms", "frame_shift_ms"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and value > 0):
                raise ConfigError(f"features.{name}={value}: must be a number over 0.")

    @property
    def shortest_samples(self) -> int:
        """Return the length of one frame in samples."""
        return int(self.sample_rate_hz * self.frame_length_ms * 0.001)


def fbank_settings(dataset_args: Mapping[str, Any], overrides: FeaturesConfig) -> FbankSettings:
    """Take the settings from a checkpoint's `dataset_args`, then what the user overrides.

    Defaults are those of WeSpeaker's `dataset/processor.py`. Raises CheckpointError for a normalisation that is not
    supported.
    """
    fbank_args = dataset_args.get("fbank_args") or {}
    cmvn_args = dataset_args.get("cmvn_args") or {}
    if cmvn_args.get("norm_var"):
        raise CheckpointError("cmvn_args.norm_var: variance normalisation is not supported.")
    trained = FbankSettings(
        sample_rate_hz=dataset_args.get("resample_rate", 16_000),
        num_mel_bins=fbank_args.get("num_mel_bins", 80),
        frame_length_ms=fbank_args.get("frame_length", 25),
        frame_shift_ms=fbank_args.get("frame_shift", 10),
        mean_norm=bool(dataset_args.get("cmvn", True) and cmvn_args.get("norm_mean", True)),
    )
    return replace(trained, **{name: value for name, value in vars(overrides).items() if value is not None})


def fbank(waveform: torch.Tensor, settings: FbankSettings) -> torch.Tensor:
    """Compute log-mel features `(frames, mels)` of a waveform `(samples,)` in [-1, 1], as WeSpeaker's recipe does.

    Raises UtteranceError where the waveform is shorter than a frame.
    """
    from torchaudio.compliance import kaldi

    if waveform.numel() < settings.shortest_samples:
        raise UtteranceError(f"too short: {waveform.numel()} samples, one frame takes {settings.shortest_samples}")
    features: torch.Tensor = kaldi.fbank(
        (waveform * _INT16_SCALE if settings.int16_scale else waveform).unsqueeze(0),
        num_mel_bins=settings.num_mel_bins,
        frame_length=settings.frame_length_ms,
        frame_shift=settings.frame_shift_ms,
        sample_frequency=settings.sample_rate_hz,
        window_type=settings.window_type,
        use_energy=False,
        dither=0.0,
    )
    return features - features.mean(dim=0) if settings.mean_norm else features


def frontend_name(dataset_args: Mapping[str, Any]) -> str:
    """Return the front end of a checkpoint, `fbank` or `tfmel`. Raises CheckpointError for those not supported."""
    name = str(dataset_args.get("frontend", "fbank"))
    if name not in ("fbank", "tfmel"):
        kind = f"{name} ({_UNSUPPORTED[name]})" if name in _UNSUPPORTED else name
        raise CheckpointError(f"the front end {kind} is not supported; balr runs fbank and tfmel checkpoints.")
    return name
