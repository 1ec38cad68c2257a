"""From an audio file to a mono float32 waveform in [-1, 1] at one rate.

soundfile (libsndfile) reads wav, flac, ogg, opus and mp3; PyAV (FFmpeg) reads what libsndfile does not know, such as
m4a, aac, wma and webm. A file that ends before its header says so is an error: half an utterance is another utterance.
"""

import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch

from balr.errors import UtteranceError, one_line

if TYPE_CHECKING:
    from av.container import InputContainer
    from torchaudio.transforms import Resample

log = logging.getLogger(__name__)

_BLOCK_FRAMES = 1 << 20
_LONGEST_BLOCK_SECONDS = 600
_MOST_CLAIMED = 1 << 29  # nine hours at 16 kHz; what is longer grows as it is read
_LARGEST_RESAMPLING_KERNEL = 10_000_000  # usual rates need less than a million numbers
_EXACT_LENGTH = frozenset({"WAV", "WAVEX", "FLAC", "AIFF", "W64", "RF64", "AU", "CAF", "NIST"})

# FFmpeg picks a demuxer by content: without this list, a "wav" that is a playlist would make it open other files.
_FFMPEG_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,aac,asf,matroska,webm,ogg,mp3,wav,flac,w64,aiff,caf,amr,ac3,eac3,wv,ape,tta"


def load_waveform(path: Path, sample_rate_hz: int, *, max_seconds: float = math.inf) -> torch.Tensor:
    """Decode a file to a float32 waveform `(samples,)` in [-1, 1]: channels averaged, resampled.

    Resampling is torchaudio's default, as in WeSpeaker's recipe. What is held beside the waveform itself is a block of
    the file. Raises UtteranceError with the reason, such as more than `max_seconds` of audio.
    """
    rate_hz, frames, blocks = decode(path)
    blocks = _limited(blocks, rate_hz, max_seconds)
    if rate_hz != sample_rate_hz:
        blocks, frames = _resampled(blocks, rate_hz, sample_rate_hz), -(-frames * sample_rate_hz // rate_hz)
    waveform = _joined(blocks, frames)
    if waveform.numel() == 0:
        raise UtteranceError("no samples: the file holds no audio")
    return waveform


def decode(path: Path) -> tuple[int, int, Iterator[torch.Tensor]]:
    """Open a file; return its sample rate in Hz, how many samples it claims, and its mono float32 samples in blocks."""
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
    return file.samplerate, file.frames, _read_blocks(file)


def _read_blocks(file: soundfile.SoundFile) -> Iterator[torch.Tensor]:
    samples = 0
    with file:
        try:
            frames = max(1, _BLOCK_FRAMES // file.channels)
            while True:  # block by block: a header may claim any length
                block = file.read(frames, dtype="float32", always_2d=True)
                samples += len(block)
                yield torch.from_numpy(_mono(block, axis=1))
                if len(block) < frames:
                    break
        except soundfile.LibsndfileError as error:
            raise UtteranceError(f"damaged: {error.error_string}") from error
        _check_length(file, samples)


def _mono(channels: npt.NDArray[Any], *, axis: int) -> npt.NDArray[np.float32]:
    if channels.shape[axis] == 1:
        return channels.reshape(-1)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not a number is told of later
        return np.asarray(channels.mean(axis=axis, dtype=np.float32))


def _limited(blocks: Iterator[torch.Tensor], rate_hz: int, max_seconds: float) -> Iterator[torch.Tensor]:
    """Stop at a file that holds more than it should: a few bytes can unpack to days of silence."""
    samples = 0
    for block in blocks:
        samples += block.numel()
        if samples > max_seconds * rate_hz:
            raise UtteranceError(
                f"too long: more than {max_seconds:g} s of audio; cut the file, or raise data.max_audio_seconds"
            )
        # A block that is a moment at a usual rate is an hour at a few Hz, and more than memory holds when resampled.
        yield from block.split(_LONGEST_BLOCK_SECONDS * rate_hz)


def _joined(blocks: Iterator[torch.Tensor], claimed: int) -> torch.Tensor:
    """Put blocks end to end, each in its place at once where the file has as many samples as it claims."""
    waveform = torch.empty(max(0, min(claimed, _MOST_CLAIMED)))  # memory is taken only as it is filled
    filled = 0
    for block in blocks:
        if not block.isfinite().all():  # block by block, as this takes more memory than what it looks at
            raise UtteranceError("samples that are not numbers (NaN or infinity)")
        if filled == 0 and block.numel() == waveform.numel():
            waveform, filled = block, block.numel()
            continue
        if filled + block.numel() > waveform.numel():
            waveform = torch.cat((waveform[:filled], torch.empty(max(filled, block.numel()))))
        waveform[filled : filled + block.numel()] = block
        filled += block.numel()
    return waveform if filled == waveform.numel() else waveform[:filled].clone()


def _resampled(blocks: Iterator[torch.Tensor], rate_hz: int, target_hz: int) -> Iterator[torch.Tensor]:
    """Resample block by block what comes before the last one, with as much around it as the filter sees."""
    resampler = _resampler(rate_hz, target_hz)
    common = math.gcd(rate_hz, target_hz)
    period, made_of_it = rate_hz // common, target_hz // common
    around = -(-resampler.width // period) * period
    held, before = torch.empty(0), 0
    for block in blocks:
        ready = (held.numel() - before - around) // period * period
        if ready >= around:
            made = resampler(held)
            yield made[before // period * made_of_it : (before + ready) // period * made_of_it]
            held, before = held[before + ready - around :], around
        held = torch.cat((held, block))
    if held.numel():
        yield resampler(held)[before // period * made_of_it :]


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

    # `file:` takes the rest for a path, whatever it looks like; tags need not be text.
    options = {"format_whitelist": _FFMPEG_FORMATS, "protocol_whitelist": "file"}
    with av.open(f"file:{path}", "r", options=options, metadata_errors="replace") as container:
        yield container


def _decode_with_ffmpeg(path: Path) -> tuple[int, int, Iterator[torch.Tensor]]:
    blocks = _ffmpeg_blocks(path)
    rate_hz = next(blocks)
    assert isinstance(rate_hz, int)
    return rate_hz, 0, (block for block in blocks if isinstance(block, torch.Tensor))


def _ffmpeg_blocks(path: Path) -> Iterator[int | torch.Tensor]:
    """Yield the sample rate of a file, then its samples."""
    import av  # only for formats that libsndfile does not know

    samples = given = 0
    try:
        with open_with_ffmpeg(path) as container:
            if not container.streams.audio:
                raise UtteranceError("no audio stream in the file")
            stream = container.streams.audio[0]
            rate_hz = getattr(stream, "rate", None)  # there is none where the codec is unknown
            if not rate_hz:
                raise UtteranceError("not readable as audio: an unknown codec, or no sample rate")
            yield rate_hz
            to_float = av.AudioResampler(format="fltp")
            held: list[torch.Tensor] = []
            for frame in container.decode(stream):
                for planar in to_float.resample(frame):
                    held.append(torch.from_numpy(_mono(planar.to_ndarray(), axis=0)))
                    samples += held[-1].numel()
                if samples - given >= _BLOCK_FRAMES:
                    yield torch.cat(held)
                    held, given = [], samples
            if held:
                yield torch.cat(held)
            expected = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    except av.FFmpegError as error:
        raise UtteranceError(f"not readable as audio: {one_line(error.strerror)}") from error
    except OSError as error:
        raise UtteranceError(f"cannot be opened: {error.strerror or error}") from error
    if samples < (expected - 0.5) * rate_hz:
        raise UtteranceError(f"truncated: {samples / rate_hz:.1f} of {expected:.1f} s can be read")


@lru_cache(maxsize=4)
def _resampler(rate_hz: int, target_hz: int) -> "Resample":
    from torchaudio.transforms import Resample

    common = math.gcd(rate_hz, target_hz)
    if (rate_hz // common) * (target_hz // common) > _LARGEST_RESAMPLING_KERNEL:
        raise UtteranceError(f"a sample rate of {rate_hz} Hz cannot be resampled to {target_hz} Hz within memory")
    return Resample(rate_hz, target_hz)
