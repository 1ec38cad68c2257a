"""Open an audio file with the decoder that reads all of it, and decode its channels block by block.

soundfile (libsndfile) reads wav, flac, ogg, opus and mp3; PyAV (FFmpeg) reads m4a, aac, wma, webm and the like, and
files that libsndfile reads only in part. A truncated file is an error: half an utterance is another utterance.
"""

import logging
import os
import re
from collections.abc import Iterator
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

BLOCK_SAMPLES = 1 << 20
_UNKNOWN_SAMPLES = 1 << 62
_LENGTH_IS_EXACT = frozenset({"WAV", "WAVEX", "FLAC", "AIFF", "W64", "RF64", "AU", "CAF", "NIST"})
_SEEKING_IS_EXACT = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"})
# A program that streams a wav to a pipe does not know its length, and writes a size close to one of these.
_UNKNOWN_WAV_BYTES = (range(0x7FFFF000, 0x80001000), range(0xFFFFF000, 0x100000000))

# FFmpeg chooses a demuxer by content: without this list, a playlist named `.wav` would make it open other files.
_FFMPEG_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,aac,asf,matroska,webm,ogg,mp3,wav,flac,w64,aiff,caf,amr,ac3,eac3,wv,ape,tta"
# These consist of frames only, and FFmpeg guesses their length from their bit rate.
_LENGTH_IS_GUESSED = frozenset({"aac", "ac3", "eac3", "mp3", "amr"})


@dataclass(frozen=True)
class OpenAudio:
    """Hold an open file; its blocks are positions in samples and arrays `(samples, channels)` in [-1, 1].

    `samples` is the number that the file declares, 0 if it does not, and `seconds` may also be guessed. A file that
    `seeks` was opened at its part: decoding from the middle of it gives the same samples as decoding from its start.
    """

    rate_hz: int
    channels: int
    samples: int
    seconds: float | None
    seeks: bool
    blocks: Iterator[tuple[int, Channels]]


def open_audio(path: Path, part: Part = WHOLE, *, scan: bool = True) -> OpenAudio:
    """Open a file at the start of a part if its format can be sought exactly, else at the start of the file.

    Without `scan` only its header is read, which may not show which decoder reads all of it. Raises UtteranceError,
    also while blocks are read: a truncated file shows only at its end.
    """
    try:
        # As bytes on POSIX, where a file name need not be UTF-8.
        file = _Forward(os.fsencode(path) if os.name == "posix" else path)
    except soundfile.LibsndfileError as refusal:
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            raise UtteranceError("empty: the file holds no bytes") from refusal
        log.debug("%s: libsndfile: %s", path, refusal.error_string)
        return _open_with_ffmpeg(path)
    except OSError as error:
        raise UtteranceError(f"cannot be opened: {error.strerror or error}") from error
    reads_all, flaw = _contents(file, path) if scan else (True, None)
    if not reads_all:
        file.close()
        return _open_with_ffmpeg(path)
    samples = file.frames if file.frames < _UNKNOWN_SAMPLES else 0
    start, end = 0, None
    is_sample_by_sample = file.subtype in _SEEKING_IS_EXACT or file.format == "FLAC"
    seeks = samples > 0 and file.format in _LENGTH_IS_EXACT and is_sample_by_sample
    if seeks:
        start = min(round(part.start_seconds * file.samplerate), samples)
        end = None if part.end_seconds is None else round(part.end_seconds * file.samplerate)
    seconds = samples / file.samplerate if samples else None
    blocks = _read_blocks(file, start, end, flaw)
    return OpenAudio(file.samplerate, file.channels, samples, seconds, seeks, blocks)


class _Forward(soundfile.SoundFile):
    """Read without seeking.

    A SoundFile that can seek does so after each read, by which mp3 loses its bit reservoir and Opus its first samples.
    """

    def seekable(self) -> bool:
        return False


def _contents(file: soundfile.SoundFile, path: Path) -> tuple[bool, str | None]:
    """Return whether libsndfile reads all of a file, and what is missing in the file.

    libsndfile estimates the length of an mp3 without a Xing header from its bit rate and reads no further; of several
    Ogg streams in a row it reads the first.
    """
    if file.subtype.startswith("MPEG_LAYER"):
        frames, samples, declared, flaw = mpeg_frames(path)
        is_declared = declared > 0 and frames <= declared + 1
        return is_declared or file.frames >= samples, flaw
    if file.format == "OGG":
        is_chained, flaw = ogg_pages(path)
        return not is_chained, flaw
    data = re.search(r"^data : (\d+)(?: \(should be \d+\))?$", file.extra_info, re.MULTILINE)
    if file.format not in ("WAV", "WAVEX") or data is None:
        return True, None
    # If a wav's data chunk goes past the end of the file, libsndfile shortens it and says so only in its log.
    declared, is_cut = int(data[1]), data[0].endswith(")")
    is_streamed = any(declared in sizes for sizes in _UNKNOWN_WAV_BYTES)
    cut = f"truncated: the header declares {declared} bytes of audio, and the file ends before"
    return declared > 0, cut if is_cut and not is_streamed else None


def _read_blocks(
    file: soundfile.SoundFile, position: int, end: int | None, flaw: str | None
) -> Iterator[tuple[int, Channels]]:
    """Yield blocks from a position to `end`, or to the end of the file, where a flaw is raised."""
    with file:
        try:
            if soundfile.SoundFile.seekable(file):
                file.seek(position)  # also to 0, as Opus starts later than that
            while end is None or position < end:  # in blocks, as a header may declare any length
                wanted = max(1, BLOCK_SAMPLES // file.channels)
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
        is_exact = file.format in _LENGTH_IS_EXACT | {"OGG"} and not file.subtype.startswith("MPEG_LAYER")
        if flaw is None and is_exact and position < file.frames < _UNKNOWN_SAMPLES:
            flaw = f"truncated: {position} of {file.frames} samples can be read"
        if flaw is not None:
            raise UtteranceError(flaw)


def _open_with_ffmpeg(path: Path) -> OpenAudio:
    import av  # only for files that libsndfile does not read, or not to their end

    with _one_line_errors():
        # After `file:` anything is a path. Tags need not be valid text.
        options = {"format_whitelist": _FFMPEG_FORMATS, "protocol_whitelist": "file"}
        container = av.open(f"file:{path}", "r", options=options, metadata_errors="replace")
        if not container.streams.audio:
            raise UtteranceError("no audio stream in the file")
        stream = container.streams.audio[0]
        rate_hz = getattr(stream, "rate", None)  # a stream of an unknown codec has none
        if not rate_hz:
            raise UtteranceError("not readable as audio: an unknown codec, or no sample rate")
        declared_seconds = _declared_seconds(container, stream)
        samples, seconds = round(declared_seconds * rate_hz), max(0, container.duration or 0) / 1_000_000 or None
        blocks = _read_ffmpeg_blocks(container, stream, path, declared_seconds)
        return OpenAudio(rate_hz, stream.codec_context.channels, samples, seconds, seeks=False, blocks=blocks)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    import av

    try:
        yield
    except av.FFmpegError as error:
        raise UtteranceError(f"not readable as audio: {one_line(error.strerror)}") from error
    except OSError as error:
        raise UtteranceError(f"cannot be opened: {error.strerror or error}") from error


def _read_ffmpeg_blocks(
    container: "InputContainer", stream: "AudioStream", path: Path, declared_seconds: float
) -> Iterator[tuple[int, Channels]]:
    """Yield the blocks of a file, then raise what is missing at its end."""
    import av

    with _one_line_errors(), container:
        name, rate_hz = container.format.name, stream.rate
        to_float = av.AudioResampler(format="fltp")
        arrays: list[Channels] = []
        position = waiting = 0
        start = end = longest = 0
        last = b""
        for packet in container.demux(stream):
            if packet.is_corrupt and name.startswith("mov"):  # other demuxers also flag whole last packets
                raise UtteranceError("truncated: the file ends within a packet")
            if packet.pts is not None:
                length = packet.duration or 0
                start, end, longest = min(start, packet.pts), max(end, packet.pts + length), max(longest, length)
            if packet.size and name in _LENGTH_IS_GUESSED:
                last = bytes(packet)
                if last.startswith(b"ID3"):  # the tag of a second file, appended to the first
                    continue
            for frame in packet.decode():
                if frame.sample_rate != rate_hz:
                    raise UtteranceError(f"its sample rate changes from {rate_hz} to {frame.sample_rate} Hz")
                arrays += [np.asarray(planar.to_ndarray(), np.float32) for planar in to_float.resample(frame)]
                waiting += frame.samples
            if waiting >= BLOCK_SAMPLES:
                yield position, np.concatenate(arrays, axis=1).T
                position, waiting, arrays = position + waiting, 0, []
        if arrays:
            yield position, np.concatenate(arrays, axis=1).T
        seconds, longest_seconds = (float(ticks * (stream.time_base or 0)) for ticks in (end - start, longest))
        slack_seconds = 0.5 if name == "asf" else 0.1 + longest_seconds  # recorders round durations
        flaw = _container_flaw(name, path, last)
        if seconds < declared_seconds - slack_seconds:
            flaw = f"truncated: {seconds:.2f} of {declared_seconds:.2f} s can be read"
        if flaw is not None:
            raise UtteranceError(flaw)


def _declared_seconds(container: "InputContainer", stream: "AudioStream") -> float:
    """Return the duration that a file declares for its audio, 0.0 if it does not."""
    if container.format.name in _LENGTH_IS_GUESSED:
        return 0.0
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    has_only_audio = len(container.streams) == len(container.streams.audio)
    return (container.duration or 0) / 1_000_000 if has_only_audio else 0.0


def _container_flaw(name: str, path: Path, last_packet: bytes) -> str | None:
    """Return what is missing at the end of a file by the structure of its format, None if nothing is."""
    if name == "mp3":
        return mpeg_frames(path)[3]
    if name == "ogg":
        return ogg_pages(path)[1]
    if name.startswith("matroska"):
        return matroska_flaw(path)
    is_cut = name in ("ac3", "eac3") and is_cut_ac3(last_packet)
    return "truncated: its last AC-3 frame is cut" if is_cut else None
