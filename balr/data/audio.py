"""From an audio file, or a part of it, to a mono float32 waveform in [-1, 1] at one rate."""

import math
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from balr.data.decoders import Channels, OpenAudio, open_audio
from balr.errors import UtteranceError
from balr.records import WHOLE, Part, format_seconds

if TYPE_CHECKING:
    from torchaudio.transforms import Resample

_LONGEST_BLOCK_SECONDS = 600
_MOST_CLAIMED = 1 << 29  # nine hours at 16 kHz; what is longer grows as it is read
_LARGEST_RESAMPLING_KERNEL = 10_000_000  # usual rates need less than a million numbers
_MOST_KEPT_NUMBERS = 1 << 23
_ROUNDING_SECONDS = 0.01  # lists round times: a segment may end so much after its file

_Block = tuple[int, Channels]  # the sample of the file that it starts at, an array (samples, channels)


class Cursor:
    """Read one file after another, each once where segments of it are asked for in the order of their starts.

    Seeking in compressed audio gives other samples than decoding from the start, so it is decoded from there; the
    cursor stays where it is, and keeps what was read last for segments that overlap.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._audio: OpenAudio
        self._kept: deque[_Block] = deque()
        self._error: UtteranceError | None = None

    def open(self, path: Path, part: Part) -> tuple[OpenAudio, Iterator[_Block]]:
        """Return a file and its blocks from the start of a part, or before it. Raises UtteranceError."""
        if not part.is_segment or path != self._path or self._is_past(part.start_seconds):
            audio = open_audio(path, part)
            if audio.seeks or not part.is_segment:
                return audio, audio.blocks
            self._path, self._audio, self._kept, self._error = path, audio, deque(), None
        return self._audio, self._replayed()

    def _is_past(self, seconds: float) -> bool:
        return bool(self._kept) and round(seconds * self._audio.rate_hz) < self._kept[0][0]

    def _replayed(self) -> Iterator[_Block]:
        yield from tuple(self._kept)
        if self._error is not None:
            raise self._error
        try:
            for start, block in self._audio.blocks:
                self._kept.append((start, block))
                while len(self._kept) > 1 and sum(kept.size for _, kept in self._kept) > _MOST_KEPT_NUMBERS:
                    self._kept.popleft()
                yield start, block
        except UtteranceError as error:
            self._error = error
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

    Resampling is torchaudio's default, as in WeSpeaker's recipe. Beside the waveform itself, memory holds a block of
    the file. A `cursor` makes many segments of one file cost one pass. Raises UtteranceError with the reason, such as
    more than `max_seconds` of audio, or a segment that is not in the file.
    """
    _refuse_reversed(part)
    audio, numbered = (cursor or Cursor()).open(path, part)
    first, last = _bounds(part, audio.rate_hz)
    blocks: Iterator[torch.Tensor] = (
        _mono(block, part.channel) for block in _cut(numbered, first, last, audio.rate_hz)
    )
    blocks = _limited(blocks, audio.rate_hz, max_seconds)
    samples = audio.samples if last is None else last - first
    if audio.rate_hz != sample_rate_hz:
        blocks = _resampled(blocks, audio.rate_hz, sample_rate_hz)
        samples = -(-samples * sample_rate_hz // audio.rate_hz)
    waveform = _joined(blocks, samples)
    if waveform.numel() == 0:
        raise UtteranceError("no samples: the file holds no audio")
    return waveform


def as_waveform(samples: npt.ArrayLike | torch.Tensor, rate_hz: int, *, target_hz: int) -> torch.Tensor:
    """Turn samples `(samples,)` or `(channels, samples)` into a float32 waveform `(samples,)` at another rate.

    Floats are in [-1, 1], integers are scaled by what their type holds, channels are averaged. Raises UtteranceError.
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
    if array.dtype.kind == "u":
        scaled = scaled / np.float32(1 << 8 * array.dtype.itemsize - 1) - 1
    elif array.dtype.kind == "i":
        scaled = scaled / np.float32(1 << 8 * array.dtype.itemsize - 1)
    waveform = torch.from_numpy(np.ascontiguousarray(scaled if array.ndim == 1 else scaled.mean(axis=0)))
    if not waveform.isfinite().all():
        raise UtteranceError("samples that are not numbers (NaN or infinity)")
    return waveform if rate_hz == target_hz else _resampler(int(rate_hz), target_hz)(waveform)


def _refuse_reversed(part: Part) -> None:
    start, end = part.start_seconds, part.end_seconds
    if start < 0 or (end is not None and end <= start):
        problem = "starts before the file" if start < 0 else "is empty" if end == start else "ends before it starts"
        raise UtteranceError(f"the segment from {format_seconds(start)} to {format_seconds(end)} s {problem}")


def _bounds(part: Part, rate_hz: int) -> tuple[int, int | None]:
    last = None if part.end_seconds is None else round(part.end_seconds * rate_hz)
    return round(part.start_seconds * rate_hz), last


def _cut(blocks: Iterator[_Block], first: int, last: int | None, rate_hz: int) -> Iterator[Channels]:
    """Yield the samples from `first` to `last` (None: the end), both counted from the start of the file."""
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
    channels = block.shape[1]
    if channel is not None and not 0 <= channel < channels:
        there = "only channel 0" if channels == 1 else f"channels 0 to {channels - 1}"
        raise UtteranceError(f"channel {channel} is not there: the file has {there}")
    if channels == 1:
        return torch.from_numpy(block.reshape(-1))
    if channel is not None:
        return torch.from_numpy(block[:, channel].copy())
    with np.errstate(invalid="ignore", over="ignore"):  # what is not a number is found later
        return torch.from_numpy(np.asarray(block.mean(axis=1, dtype=np.float32)))


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
    # What was never filled takes no memory, but for a claim that is far off.
    return waveform[:filled] if filled > waveform.numel() // 2 else waveform[:filled].clone()


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


@lru_cache(maxsize=4)
def _resampler(rate_hz: int, target_hz: int) -> "Resample":
    from torchaudio.transforms import Resample

    common = math.gcd(rate_hz, target_hz)
    if (rate_hz // common) * (target_hz // common) > _LARGEST_RESAMPLING_KERNEL:
        raise UtteranceError(f"a sample rate of {rate_hz} Hz cannot be resampled to {target_hz} Hz within memory")
    return Resample(rate_hz, target_hz)
