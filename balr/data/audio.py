"""From an audio file to a mono float32 waveform in [-1, 1] at one rate.

soundfile (libsndfile) reads wav, flac, ogg, opus and mp3; PyAV (FFmpeg) reads what libsndfile does not know, such as
m4a, aac, wma and webm. A file that ends before its header says so is an error: half an utterance is another utterance.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch

from balr.errors import UtteranceError, one_line

if TYPE_CHECKING:
    from av.container import InputContainer

log = logging.getLogger(__name__)

_BLOCK_FRAMES = 1 << 20
_LARGEST_RESAMPLING_KERNEL = 100_000_000
_EXACT_LENGTH = frozenset({"WAV", "WAVEX", "FLAC", "AIFF", "W64", "RF64", "AU", "CAF", "NIST"})

# FFmpeg picks a demuxer by content: without this list, a "wav" that is a playlist would make it open other files.
_FFMPEG_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,aac,asf,matroska,webm,ogg,mp3,wav,flac,w64,aiff,caf,amr,ac3,eac3,wv,ape,tta"


def load_waveform(path: Path, sample_rate_hz: int) -> torch.Tensor:
    """Decode a file to a float32 waveform `(samples,)` in [-1, 1]: channels averaged, resampled.

    Resampling is torchaudio's default, as in WeSpeaker's recipe. Raises UtteranceError with the reason.
    """
    samples, rate_hz = decode(path)
    if samples.size == 0:
        raise UtteranceError("no samples: the file holds no audio")
    if not np.isfinite(samples).all():
        raise UtteranceError("samples that are not numbers (NaN or infinity)")
    waveform = torch.from_numpy(samples)
    if rate_hz == sample_rate_hz:
        return waveform
    resampled: torch.Tensor = _resampler(rate_hz, sample_rate_hz)(waveform)
    return resampled


def decode(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """Decode a file to mono float32 samples `(samples,)` at the file's own rate, returned in Hz."""
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise UtteranceError("empty: the file holds no bytes")
    try:
        # As bytes where file names are bytes: they need not be UTF-8.
        file = soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else path)
    except soundfile.LibsndfileError as refusal:
        log.debug("%s: libsndfile: %s", path, refusal.error_string)
        return _decode_with_ffmpeg(path)
    except OSError as error:
        raise UtteranceError(f"cannot be opened: {error.strerror or error}") from error
    with file:
        try:
            samples = _read_mono(file)
        except soundfile.LibsndfileError as error:
            raise UtteranceError(f"damaged: {error.error_string}") from error
        _check_length(file, samples.size)
        return samples, file.samplerate


def _read_mono(file: soundfile.SoundFile) -> npt.NDArray[np.float32]:
    blocks = []
    while True:  # block by block: a header may claim any length
        block = file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
        blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32))
        if len(block) < _BLOCK_FRAMES:
            return np.concatenate(blocks)


def _check_length(file: soundfile.SoundFile, samples: int) -> None:
    # libsndfile shortens a wav whose data chunk goes past the end of the file and says so only in its log. Sizes of
    # 0 and near 4 GiB are what programs write that stream to a pipe and never learn the length.
    cut = re.search(r"^data : (\d+) \(should be \d+\)", file.extra_info, re.MULTILINE)
    if cut and 0 < int(cut[1]) < 0x7FFFFFFF:
        raise UtteranceError(f"truncated: the header promises {cut[1]} bytes of audio, the file ends before")
    if file.format in _EXACT_LENGTH and samples < file.frames:
        raise UtteranceError(f"truncated: {samples} of {file.frames} samples can be read")


@contextmanager
def open_with_ffmpeg(path: Path) -> "Iterator[InputContainer]":
    """Open a file with FFmpeg, as audio of a known kind and nothing else. Raises av.FFmpegError or OSError."""
    import av

    with path.open("rb") as file, av.open(file, "r", options={"format_whitelist": _FFMPEG_FORMATS}) as container:
        yield container


def _decode_with_ffmpeg(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    import av  # only for formats that libsndfile does not know

    try:
        with open_with_ffmpeg(path) as container:
            if not container.streams.audio:
                raise UtteranceError("no audio stream in the file")
            stream = container.streams.audio[0]
            to_float = av.AudioResampler(format="fltp")
            blocks: list[npt.NDArray[np.float32]] = []
            for frame in container.decode(stream):
                blocks.extend(_mono(planar.to_ndarray()) for planar in to_float.resample(frame))
            rate_hz = stream.rate
            expected = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    except av.FFmpegError as error:
        raise UtteranceError(f"not readable as audio: {one_line(error.strerror)}") from error
    except OSError as error:
        raise UtteranceError(f"cannot be opened: {error.strerror or error}") from error
    samples = np.concatenate(blocks) if blocks else np.empty(0, dtype=np.float32)
    if samples.size < (expected - 0.5) * rate_hz:
        raise UtteranceError(f"truncated: {samples.size / rate_hz:.1f} of {expected:.1f} s can be read")
    return samples, rate_hz


def _mono(planes: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    mixed: npt.NDArray[np.float32] = planes.mean(axis=0, dtype=np.float32)
    return mixed


@lru_cache(maxsize=16)
def _resampler(rate_hz: int, target_hz: int) -> torch.nn.Module:
    from torchaudio.transforms import Resample

    common = gcd(rate_hz, target_hz)
    if (rate_hz // common) * (target_hz // common) > _LARGEST_RESAMPLING_KERNEL:
        raise UtteranceError(f"a sample rate of {rate_hz} Hz cannot be resampled to {target_hz} Hz within memory")
    resampler: torch.nn.Module = Resample(rate_hz, target_hz)
    return resampler
