"""The configuration: where its tree is, and the schema of a run.

Imports no torch: `--help`, `--cfg job` and `balr models` rest on this module alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from omegaconf import MISSING

from balr.errors import ConfigError

WINDOWS = ("hamming", "hanning", "povey", "rectangular", "blackman")  # as torchaudio.compliance.kaldi names them
_RANGES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "sample_rate_hz": (4_000, 384_000),
        "num_mel_bins": (4, 512),
        "frame_length_ms": (1, 1_000),
        "frame_shift_ms": (1, 1_000),
        "samples": (1, 4_096),
    }
)


@dataclass
class RunConfig:
    """Name and type every run-level key; values and explanations are in `conf/config.yaml`.

    Not frozen: OmegaConf takes a frozen schema as read-only and would refuse every override.
    """

    input: str = MISSING
    root_dir: str | None = MISSING
    audio_formats: list[str] = MISSING
    channel: int | None = MISSING
    device: str = MISSING
    precision: str = MISSING
    force: bool = MISSING
    max_failures: Any = MISSING
    fail_fast: bool = MISSING
    save_output: bool = MISSING
    save_dir: str | None = MISSING
    vector_format: str = MISSING
    sweep_over: list[str] = MISSING
    embeddings: Any = MISSING
    data: Any = MISSING


@dataclass(frozen=True)
class DataConfig:
    """Say how utterances are loaded and put into batches; None leaves a choice to the device and the cores there are.

    `batch_size` utterances at most, of nearly equal length, go through the network at once, and `max_batch_seconds` of
    audio, padding included; `concurrent_batches` batches are computed at a time. `num_workers` processes decode ahead
    (0: none), each at most `prefetch_factor` batches. `shuffle` takes batches in a drawn order, not the longest first.
    Audio longer than `chunk_seconds` goes through the network in parts of half that, where it does not change the
    embedding; where it would, audio longer than `max_whole_seconds` is refused. At most `max_ahead_seconds` of audio
    are decoded and not embedded yet, or one batch that is longer. A file that holds more than `max_audio_seconds`, or
    that takes a process more than
    `decode_timeout_seconds`, is a failure. No choice here changes an embedding.
    """

    batch_size: int | None = None
    max_batch_seconds: float | None = None
    shuffle: bool = False
    concurrent_batches: int | None = None
    num_workers: int | None = None
    prefetch_factor: int | None = None
    chunk_seconds: float = 20.0
    max_whole_seconds: float = 600.0
    max_audio_seconds: float = 14_400.0
    max_ahead_seconds: float = 14_400.0
    decode_timeout_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("concurrent_batches", 1), ("num_workers", 0), ("prefetch_factor", 1)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise ConfigError(f"data.{name}={value}: must be a whole number, {least} or more.")
        seconds = (option.name for option in fields(self) if option.name.endswith("_seconds"))
        for name in seconds:
            value = getattr(self, name)
            if (value is not None or name != "max_batch_seconds") and (
                type(value) not in (int, float) or not value >= 1
            ):
                raise ConfigError(f"data.{name}={value}: must be a number, 1 or more.")
        if type(self.shuffle) is not bool:
            raise ConfigError(f"data.shuffle={self.shuffle}: must be true or false.")


@dataclass(frozen=True)
class FeaturesConfig:
    """Override feature settings of a checkpoint; None keeps what its own config.yaml says.

    `int16_scale`: multiply the waveform by 32768 first, as WeSpeaker's models expect; models of 3D-Speaker want
    `int16_scale=False` and `window_type="povey"`. `mean_norm`: subtract the mean over the utterance's own frames.
    """

    sample_rate_hz: int | None = None
    num_mel_bins: int | None = None
    frame_length_ms: float | None = None
    frame_shift_ms: float | None = None
    window_type: str | None = None
    int16_scale: bool | None = None
    mean_norm: bool | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and (legal := legal_feature(name, value)):
                raise ConfigError(f"features.{name}={value}: must be {legal}.")


def legal_feature(name: str, value: object) -> str | None:
    """Say what a setting of the features must be, where a value is not that."""
    if name == "window_type":
        return None if value in WINDOWS else f"one of {', '.join(WINDOWS)}"
    if name not in _RANGES:
        return None if type(value) is bool else "true or false"
    least, most = _RANGES[name]
    whole = not name.endswith("_ms")
    if isinstance(value, int if whole else int | float) and type(value) is not bool and least <= value <= most:
        return None
    return f"a {'whole ' if whole else ''}number from {least:,} to {most:,}"


def config_dir() -> Path:
    """Return the absolute path of the config tree: inside the package (wheel) or beside it (checkout)."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"
