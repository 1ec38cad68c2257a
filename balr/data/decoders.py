"""Open an audio file with the decoder that reads it whole, and read its channels block by block.

soundfile (libsndfile) reads wav, flac, ogg, opus and mp3; PyAV (FFmpeg) reads what libsndfile does not know, such as
m4a, aac, wma and webm, or knows only in part. A file that ends before it says so is an error: half an utterance is
another utterance.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import soundfile

from balr.data.truncation import is_cut_ac3, matroska_flaw, mpeg_frames, ogg_pages
from balr.errors import UtteranceError, one_line
from balr.records import WHOLE, Part

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

log = logging.getLogger(__name__)

Channels = npt.NDArray[np.float32]

_BLOCK_SAMPLES = 1 << 20
_UNKNOWN_SAMPLES = 1 << 62
_LENGTH_IS_EXACT = frozenset({"WAV", "WAVEX", "FLAC", "AIFF", "W64", "RF64", "AU", "CAF", "NIST"})
_SEEKING_IS_EXACT = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"})
# Where a program streams a wav to a pipe it never learns the length, and leaves a size close to one of these.
_UNKNOWN_WAV_BYTES = (range(0x7FFFF000, 0x80001000), range(0xFFFFF000, 0x100000000))
_SLACK_SECONDS = 0.1  # recorders round
_ASF_SLACK_SECONDS = 0.5

# FFmpeg picks a demuxer by content: without this list, a "wav" that is a playlist would make it open other files.
_FFMPEG_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,aac,asf,matroska,webm,ogg,mp3,wav,flac,w64,aiff,caf,amr,ac3,eac3,wv,ape,tta"
# These hold frames and nothing else: FFmpeg guesses their length from their bit rate.
_LENGTH_IS_GUESSED = frozenset({"aac", "ac3", "eac3", "mp3", "amr"})


@dataclass(frozen=True)
class OpenAudio:
    """Hold an open file; its blocks are arrays `(samples, channels)` in [-1, 1], each with the sample it starts at.

    `samples` is how many the file claims, 0 where it does not. A file that `seeks` was opened at the part asked for.
    """

    rate_hz: int
    samples: int
    seeks: bool
    blocks: Iterator[tuple[int, Channels]]


def open_audio(path: Path, part: Part = WHOLE) -> OpenAudio:
    """Open a file, at the start of a part where its format can be sought exactly, else at its own.

    Raises UtteranceError, also when blocks are read: that a file is not whole shows at its end.
    """
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise UtteranceError("empty: the file holds no bytes")
    try:
        # As bytes where file names are bytes: they need not be UTF-8.
        file = _Forward(os.fsencode(path) if os.name == "posix" else path)
    except soundfile.LibsndfileError as refusal:
        log.debug("%s: libsndfile: %s", path, refusal.error_string)
        return _open_with_ffmpeg(path)
    except OSError as error:
        raise UtteranceError(f"cannot be opened: {error.strerror or error}") from error
    reads_all, flaw = _contents(file, path)
    if not reads_all:
        file.close()
        return _open_with_ffmpeg(path)
    samples = file.frames if file.frames < _UNKNOWN_SAMPLES else 0
    seeks = can_seek(file)
    start, end = round(part.start_seconds * file.samplerate), None
    if seeks and part.end_seconds is not None:
        end = round(part.end_seconds * file.samplerate)
    blocks = _read_blocks(file, min(start, samples) if seeks else 0, end, flaw)
    return OpenAudio(file.samplerate, samples, seeks, blocks)


def can_seek(file: soundfile.SoundFile) -> bool:
    """Return whether a file gives the same samples from the middle on as when it is read from its start."""
    is_sample_by_sample = file.subtype in _SEEKING_IS_EXACT or file.format == "FLAC"
    return 0 < file.frames < _UNKNOWN_SAMPLES and file.format in _LENGTH_IS_EXACT and is_sample_by_sample


def open_with_ffmpeg(path: Path) -> "InputContainer":
    """Open a file with FFmpeg, as audio of a known kind and nothing else. Raises av.FFmpegError or OSError."""
    import av

    # `file:` takes the rest for a path, whatever it looks like; tags need not be text.
    options = {"format_whitelist": _FFMPEG_FORMATS, "protocol_whitelist": "file"}
    return av.open(f"file:{path}", "r", options=options, metadata_errors="replace")


class _Forward(soundfile.SoundFile):
    """Read on from where the last block ended.

    A SoundFile that can seek does so after each read: mp3 loses its bit reservoir that way, Opus its first samples.
    """

    def seekable(self) -> bool:
        return False


def _contents(file: soundfile.SoundFile, path: Path) -> tuple[bool, Callable[[], str | None]]:
    """Return whether libsndfile reads all of a file, and what says at its end what was missing.

    libsndfile takes the length of an mp3 without a Xing header from its bit rate, and reads no further; of Ogg streams
    that follow one another it reads the first.
    """
    if file.subtype.startswith("MPEG_LAYER"):
        mpeg = mpeg_frames(path)
        if mpeg is None:
            return True, lambda: None
        is_declared = mpeg.declared_frames > 0 and mpeg.frames <= mpeg.declared_frames + 1
        return is_declared or file.frames >= mpeg.samples, lambda: mpeg.flaw
    if file.format == "OGG":
        ogg = ogg_pages(path)
        return not ogg.is_chained, lambda: ogg.flaw
    data = re.search(r"^data : (\d+)(?: \(should be \d+\))?$", file.extra_info, re.MULTILINE)
    if file.format not in ("WAV", "WAVEX") or data is None:
        return True, lambda: None
    # libsndfile shortens a wav whose data chunk goes past the end of the file and says so only in its log.
    declared, is_cut = int(data[1]), data[0].endswith(")")
    is_streamed = any(declared in sizes for sizes in _UNKNOWN_WAV_BYTES)
    missing = f"truncated: the header promises {declared} bytes of audio, the file ends before"
    return declared > 0, lambda: missing if is_cut and not is_streamed else None


def _read_blocks(
    file: soundfile.SoundFile, position: int, end: int | None, flaw: Callable[[], str | None]
) -> Iterator[tuple[int, Channels]]:
    with file:
        try:
            if soundfile.SoundFile.seekable(file):
                file.seek(position)  # also to 0, which puts Opus to where its first sample is
            while end is None or position < end:  # block by block: a header may claim any length
                wanted = max(1, _BLOCK_SAMPLES // file.channels)
                wanted = wanted if end is None else min(wanted, end - position)
                block = file.read(wanted, dtype="float32", always_2d=True)
                yield position, block
                position += len(block)
                if len(block) < wanted:
                    break
            else:
                return
        except soundfile.LibsndfileError as error:
            raise UtteranceError(f"damaged: {error.error_string}") from error
        missing = flaw()
        is_exact = file.format in _LENGTH_IS_EXACT | {"OGG"} and not file.subtype.startswith("MPEG_LAYER")
        if missing is None and is_exact and position < file.frames < _UNKNOWN_SAMPLES:
            missing = f"truncated: {position} of {file.frames} samples can be read"
        if missing is not None:
            raise UtteranceError(missing)


def _open_with_ffmpeg(path: Path) -> OpenAudio:
    with _one_line_errors():
        container = open_with_ffmpeg(path)
        if not container.streams.audio:
            raise UtteranceError("no audio stream in the file")
        stream = container.streams.audio[0]
        rate_hz = getattr(stream, "rate", None)  # there is none where the codec is unknown
        if not rate_hz:
            raise UtteranceError("not readable as audio: an unknown codec, or no sample rate")
        declared_seconds = _declared_seconds(container, stream)
        blocks = _ffmpeg_blocks(container, stream, path, declared_seconds)
        return OpenAudio(rate_hz, round(declared_seconds * rate_hz), seeks=False, blocks=blocks)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    import av  # only for formats that libsndfile does not know

    try:
        yield
    except av.FFmpegError as error:
        raise UtteranceError(f"not readable as audio: {one_line(error.strerror)}") from error
    except OSError as error:
        raise UtteranceError(f"cannot be opened: {error.strerror or error}") from error


def _ffmpeg_blocks(
    container: "InputContainer", stream: "AudioStream", path: Path, declared_seconds: float
) -> Iterator[tuple[int, Channels]]:
    import av

    with _one_line_errors(), container:
        name = container.format.name
        to_float = av.AudioResampler(format="fltp")
        arrays: list[Channels] = []
        position = waiting = 0
        start = end = longest = 0
        last = b""
        for packet in container.demux(stream):
            if packet.is_corrupt and name.startswith("mov"):  # others flag what ends a stream of unknown length, too
                raise UtteranceError("truncated: the file ends within a packet")
            began, length = packet.pts, packet.duration or 0
            if began is not None:
                start, end, longest = min(start, began), max(end, began + length), max(longest, length)
            if packet.size and name in _LENGTH_IS_GUESSED:
                last = bytes(packet)
                if last.startswith(b"ID3"):  # the tag of a file that was put behind another one
                    continue
            for frame in packet.decode():
                arrays += [np.asarray(planar.to_ndarray(), np.float32) for planar in to_float.resample(frame)]
                waiting += frame.samples
            if waiting >= _BLOCK_SAMPLES:
                yield position, np.concatenate(arrays, axis=1).T
                position, waiting, arrays = position + waiting, 0, []
        if arrays:
            yield position, np.concatenate(arrays, axis=1).T
        there_seconds, longest_seconds = (float(ticks * (stream.time_base or 0)) for ticks in (end - start, longest))
        slack_seconds = _ASF_SLACK_SECONDS if name == "asf" else _SLACK_SECONDS + longest_seconds
        if there_seconds < declared_seconds - slack_seconds:
            raise UtteranceError(f"truncated: {there_seconds:.2f} of {declared_seconds:.2f} s can be read")
        flaw = _flaw_of_container(name, path, last)
        if flaw is not None:
            raise UtteranceError(flaw)


def _declared_seconds(container: "InputContainer", stream: "AudioStream") -> float:
    """Return how long a file says it is, 0.0 where it does not, or speaks of more than audio."""
    if container.format.name in _LENGTH_IS_GUESSED:
        return 0.0
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    has_only_audio = len(container.streams) == len(container.streams.audio)
    return (container.duration or 0) / 1_000_000 if has_only_audio else 0.0


def _flaw_of_container(name: str, path: Path, last_packet: bytes) -> str | None:
    if name == "mp3":
        mpeg = mpeg_frames(path)
        return mpeg.flaw if mpeg else None
    if name == "ogg":
        return ogg_pages(path).flaw
    if name.startswith("matroska"):
        return matroska_flaw(path)
    is_cut = name in ("ac3", "eac3") and is_cut_ac3(last_packet)
    return "truncated: its last AC-3 frame is cut" if is_cut else None
