"""Decode an audio file, or a part of it, to a mono float32 waveform `(samples,)` in [-1, 1] at one sample rate."""

import math
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from balr.data.containers import open_member
from balr.data.decoders import Channels, OpenAudio
from balr.errors import UtteranceError
from balr.records import WHOLE, Part, format_seconds

_LONGEST_BLOCK_SECONDS = 600
_MOST_DECLARED_SAMPLES = 1 << 29  # nine hours at 16 kHz; memory for longer audio grows as it is decoded
_LARGEST_RESAMPLING_KERNEL = 10_000_000  # common pairs of rates need less than a million coefficients
MOST_KEPT_NUMBERS = 1 << 23
_ROUNDING_SECONDS = 0.01  # lists round times: a segment may end so much after its file

_Block = tuple[int, Channels]  # its first sample's position in the file, and an array (samples, channels)


class Cursor:
    """Decode a file once for all its segments, if they are asked for in the order of their starts.

    Seeking in compressed audio gives other samples than decoding from the start does. So the cursor keeps its position
    in a file, and the last blocks for segments that overlap.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._audio: OpenAudio
        self._kept: deque[_Block] = deque()
        self._error: UtteranceError | None = None

    def open(self, path: Path, part: Part) -> tuple[OpenAudio, Iterator[_Block]]:
        """Return a file, and its blocks from the start of a part or earlier. Raises UtteranceError."""
        is_open = path == self._path and part.is_segment
        if not is_open or (self._kept and round(part.start_seconds * self._audio.rate_hz) < self._kept[0][0]):
            audio = open_member(path, part)
            if audio.seeks or not part.is_segment:
                return audio, audio.blocks
            self._path, self._audio, self._kept, self._error = path, audio, deque(), None
        return self._audio, self._kept_and_next_blocks()

    def _kept_and_next_blocks(self) -> Iterator[_Block]:
        yield from tuple(self._kept)
        if self._error is not None:
            raise self._error
        try:
            for start, block in self._audio.blocks:
                self._kept.append((start, block))
                while len(self._kept) > 1 and sum(kept.size for _, kept in self._kept) > MOST_KEPT_NUMBERS:
                    self._kept.popleft()
                yield start, block
        except UtteranceError as error:
            self._error = error
            raise
        except Exception:  # such as for want of memory: the next segment opens the file anew
            self._path = None
            raise


def load_waveform(
    path: Path,
    sample_rate_hz: int,
    *,
    part: Part = WHOLE,
    max_seconds: float = math.inf,
    cursor: Cursor | None = None,
) -> torch.Tensor:
    """Decode a file, or a part of it, to a float32 waveform `(samples,)` in [-1, 1]: one channel, resampled.

    Resampling is torchaudio's default, as in WeSpeaker's recipe. Besides the waveform, memory holds one block of the
    file. With a `cursor`, many segments of a file are decoded in one pass. Raises UtteranceError with the reason, such
    as more than `max_seconds` of audio, or a segment that is not in the file.
    """
    audio, file_blocks = (cursor or Cursor()).open(path, part)
    first, last = _sample_range(part, audio.rate_hz)
    cut = _cut(file_blocks, first, last, audio.rate_hz)
    blocks = _limited((_mono(block, part.channel) for block in cut), audio.rate_hz, max_seconds)
    samples = audio.samples if last is None else last - first
    if audio.rate_hz != sample_rate_hz:
        blocks = _resampled(blocks, audio.rate_hz, sample_rate_hz)
        samples = -(-samples * sample_rate_hz // audio.rate_hz)
    waveform = _joined(blocks, samples)
    if waveform.numel() == 0:
        raise UtteranceError("no samples: the file holds no audio")
    return waveform


def as_waveform(samples: npt.ArrayLike | torch.Tensor, rate_hz: int, *, target_hz: int) -> torch.Tensor:
    """Convert samples `(samples,)` or `(channels, samples)` to a float32 waveform `(samples,)` at another rate.

    Floats are in [-1, 1], integers are scaled by the range of their type, channels are averaged. Raises UtteranceError.
    """
    array = samples.detach().cpu().numpy() if isinstance(samples, torch.Tensor) else np.asarray(samples)
    if array.dtype.kind not in "fiu":
        raise UtteranceError(f"samples of type {array.dtype}: floats in [-1, 1] or integers are expected")
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[0] > array.shape[1]):
        raise UtteranceError(f"samples of shape {array.shape}: (samples,) or (channels, samples) is expected")
    if array.size == 0:
        raise UtteranceError("no samples: the waveform is empty")
    if isinstance(rate_hz, bool) or not isinstance(rate_hz, int | np.integer) or rate_hz < 1:
        raise UtteranceError(f"sample_rate_hz={rate_hz}: a whole number of Hz is expected")
    scaled = array.astype(np.float32)
    if array.dtype.kind != "f":
        scaled = scaled / np.float32(1 << 8 * array.dtype.itemsize - 1) - (array.dtype.kind == "u")
    waveform = torch.from_numpy(np.ascontiguousarray(scaled if array.ndim == 1 else scaled.mean(axis=0)))
    if not waveform.isfinite().all():
        raise UtteranceError("samples that are not numbers (NaN or infinity)")
    return waveform if rate_hz == target_hz else _resampler(int(rate_hz), target_hz)(waveform)


def _sample_range(part: Part, rate_hz: int) -> tuple[int, int | None]:
    """Return the first sample of a part and the one after its last (None: the end). Raises UtteranceError."""
    start, end = part.start_seconds, part.end_seconds
    if start < 0 or (end is not None and end <= start):
        problem = "starts before the file" if start < 0 else "is empty" if end == start else "ends before it starts"
        raise UtteranceError(f"the segment from {format_seconds(start)} to {format_seconds(end)} s {problem}")
    return round(start * rate_hz), None if end is None else round(end * rate_hz)


def _cut(blocks: Iterator[_Block], first: int, last: int | None, rate_hz: int) -> Iterator[Channels]:
    """Yield arrays `(samples, channels)` of the samples from `first` to `last`, None for the end of the file."""
    end = 0
    for start, block in blocks:
        end = start + len(block)
        yield block[max(0, first - start) : None if last is None else max(0, last - start)]
        if last is not None and end >= last:
            return
    seconds = end / rate_hz
    if first > 0 and end <= first:
        raise UtteranceError(f"the segment starts at {first / rate_hz:g} s, and the file ends at {seconds:g} s")
    if last is not None and end < last - _ROUNDING_SECONDS * rate_hz:
        raise UtteranceError(f"the segment ends at {last / rate_hz:g} s, and the file at {seconds:g} s")


def _mono(block: Channels, channel: int | None) -> torch.Tensor:
    """Return one channel `(samples,)` of a block `(samples, channels)`, or the mean of all if `channel` is None."""
    channels = block.shape[1]
    if channel is not None and not 0 <= channel < channels:
        available = "only channel 0" if channels == 1 else f"channels 0 to {channels - 1}"
        raise UtteranceError(f"channel {channel} does not exist: the file has {available}")
    if channels == 1:
        return torch.from_numpy(block.reshape(-1))
    if channel is not None:
        return torch.from_numpy(block[:, channel].copy())
    with np.errstate(invalid="ignore", over="ignore"):  # infinite samples are refused later
        return torch.from_numpy(np.asarray(block.mean(axis=1, dtype=np.float32)))


def _limited(blocks: Iterator[torch.Tensor], rate_hz: int, max_seconds: float) -> Iterator[torch.Tensor]:
    """Refuse audio that is longer than `max_seconds`: a few bytes can unpack to days of silence."""
    samples = 0
    for block in blocks:
        samples += block.numel()
        if samples > max_seconds * rate_hz:
            raise UtteranceError(
                f"too long: more than {max_seconds:g} s of audio; cut the file, or raise data.max_audio_seconds"
            )
        # At a few Hz one block lasts hours, and would not fit in memory when resampled.
        yield from block.split(_LONGEST_BLOCK_SECONDS * rate_hz)


def _joined(blocks: Iterator[torch.Tensor], declared: int) -> torch.Tensor:
    """Join blocks `(samples,)` in a tensor of the declared length, which grows if there are more samples."""
    waveform = torch.empty(max(0, min(declared, _MOST_DECLARED_SAMPLES)))  # pages that are never filled take no memory
    filled = 0
    for block in blocks:
        if not block.isfinite().all():  # per block, as the check takes more memory than the samples
            raise UtteranceError("samples that are not numbers (NaN or infinity)")
        if filled == 0 and block.numel() == waveform.numel():
            waveform, filled = block, block.numel()
            continue
        if filled + block.numel() > waveform.numel():
            waveform = torch.cat((waveform[:filled], torch.empty(max(filled, block.numel()))))
        waveform[filled : filled + block.numel()] = block
        filled += block.numel()
    # A copy only if most of the tensor is unused.
    return waveform[:filled] if filled > waveform.numel() // 2 else waveform[:filled].clone()


def _resampled(blocks: Iterator[torch.Tensor], rate_hz: int, target_hz: int) -> Iterator[torch.Tensor]:
    """Resample blocks `(samples,)`, each with as many samples around it as the filter sees."""
    resampler = _resampler(rate_hz, target_hz)
    common = math.gcd(rate_hz, target_hz)
    period_in, period_out = rate_hz // common, target_hz // common
    around = -(-resampler.width // period_in) * period_in
    waiting, before = torch.empty(0), 0
    for block in blocks:
        ready = (waiting.numel() - before - around) // period_in * period_in
        if ready >= around:
            resampled = resampler(waiting)
            yield resampled[before // period_in * period_out : (before + ready) // period_in * period_out]
            waiting, before = waiting[before + ready - around :], around
        waiting = torch.cat((waiting, block))
    if waiting.numel():
        yield resampler(waiting)[before // period_in * period_out :]


@lru_cache(maxsize=4)
def _resampler(rate_hz: int, target_hz: int) -> Any:
    from torchaudio.transforms import Resample

    common = math.gcd(rate_hz, target_hz)
    if (rate_hz // common) * (target_hz // common) > _LARGEST_RESAMPLING_KERNEL:
        raise UtteranceError(f"a sample rate of {rate_hz} Hz cannot be resampled to {target_hz} Hz within memory")
    return Resample(rate_hz, target_hz)
