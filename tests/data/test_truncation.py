"""A file that ends too early is an error in every format that can show it; the same file whole is none."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from encoding import encode, speech, streamed

from balr.data.audio import load_waveform
from balr.errors import UtteranceError

SECONDS = 6.0
Make = Callable[[Path, int], Path]


def encoded(suffix: str, codec: str, **settings: object) -> Make:
    def make(folder: Path, rate_hz: int) -> Path:
        return encode(folder / f"whole.{suffix}", speech(SECONDS, rate_hz), codec=codec, rate_hz=rate_hz, **settings)

    return make


def piped(suffix: str, codec: str, format: str) -> Make:
    def make(folder: Path, rate_hz: int) -> Path:
        path = folder / f"whole.{suffix}"
        path.write_bytes(streamed(speech(SECONDS, rate_hz), codec=codec, rate_hz=rate_hz, format=format))
        return path

    return make


NO_XING = {"write_xing": "0"}
TAGS = {"title": "t" * 3000, "artist": "ÿ" * 200}
FORMATS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "mp3 with Xing": (encoded("mp3", "libmp3lame"), (8_000, 16_000, 24_000, 44_100)),
    "mp3 with VBR": (encoded("mp3", "libmp3lame", encoder_options={"q": "5"}), (16_000, 44_100)),
    "mp3 without Xing": (encoded("mp3", "libmp3lame", options=NO_XING), (8_000, 16_000, 44_100)),
    "mp3 with both tags": (encoded("mp3", "libmp3lame", options={"write_id3v1": "1"}, tags=TAGS), (44_100,)),
    "mp2": (encoded("mp2", "mp2"), (16_000, 24_000, 44_100)),
    "mp3 in wav": (encoded("wav", "libmp3lame"), (44_100,)),
    "vorbis": (encoded("ogg", "vorbis"), (8_000, 16_000, 44_100)),
    "opus": (encoded("opus", "libopus"), (8_000, 16_000, 48_000)),
    "opus with tags": (encoded("opus", "libopus", tags=TAGS), (48_000,)),
    "webm": (encoded("webm", "libopus"), (16_000, 48_000)),
    "webm from a recorder": (piped("webm", "libopus", "webm"), (48_000,)),
    "mp3 in matroska": (encoded("mka", "libmp3lame"), (44_100,)),
    "aac": (encoded("aac", "aac"), (16_000, 44_100)),
    "ac3": (encoded("ac3", "ac3"), (32_000, 44_100, 48_000)),
    "eac3": (encoded("eac3", "eac3"), (44_100, 48_000)),
    "m4a": (encoded("m4a", "aac"), (8_000, 16_000, 44_100)),
    "m4a, index first": (encoded("m4a", "aac", options={"movflags": "faststart"}), (8_000, 16_000, 44_100)),
    "alac": (encoded("m4a", "alac", options={"movflags": "faststart"}), (44_100,)),
    "wma": (encoded("wma", "wmav2"), (16_000, 44_100)),
    "flac": (encoded("flac", "flac"), (16_000,)),
    "flac from a pipe": (piped("flac", "flac", "flac"), (16_000,)),
    "wav from a pipe": (piped("wav", "pcm_s16le", "wav"), (16_000,)),
    "wavpack": (encoded("wv", "wavpack"), (44_100,)),
    "tta": (encoded("tta", "tta"), (44_100,)),
}
CASES = [(name, rate_hz) for name, (_, rates) in FORMATS.items() for rate_hz in rates]
# These hold frames of known length and nothing else: one that ends with a frame looks whole.
BY_FRAMES = {"mp3 without Xing", "mp2", "aac", "ac3", "eac3", "wav from a pipe"}


@pytest.mark.parametrize(("name", "rate_hz"), CASES)
def test_a_whole_file_is_read_whole_and_a_truncated_one_is_an_error(tmp_path: Path, name: str, rate_hz: int) -> None:
    path = FORMATS[name][0](tmp_path, rate_hz)
    whole = load_waveform(path, 16_000)
    assert SECONDS - 0.1 < whole.numel() / 16_000 < SECONDS + 0.3
    if name == "wav from a pipe":
        return  # it has no length, and any number of samples is a whole number
    content = path.read_bytes()
    for share in (0.999, 0.97, 0.8, 0.5, 0.15):
        cut = tmp_path / f"cut{path.suffix}"
        size = int(len(content) * share)
        cut.write_bytes(content[: size + (20 if name in BY_FRAMES and ends_with_a_frame(content, size) else 0)])
        try:
            there = load_waveform(cut, 16_000)
        except UtteranceError as error:
            assert "\n" not in str(error)
        else:  # what was cut held no audio, such as an index or padding at the end
            assert share > 0.95 and torch.equal(there, whole), (share, there.numel())


def ends_with_a_frame(content: bytes, size: int) -> bool:
    return content[size] in (0xFF, 0x0B)


def test_an_mp3_that_lacks_frames_its_header_declares_is_truncated_though_no_frame_is_cut(tmp_path: Path) -> None:
    whole = encode(tmp_path / "a.mp3", speech(4.0, 44_100), codec="libmp3lame", rate_hz=44_100, kbps=64).read_bytes()
    starts = [at for at in range(len(whole) - 1) if whole[at] == 0xFF and whole[at + 1] in (0xFA, 0xFB)]
    (tmp_path / "a.mp3").write_bytes(whole[: starts[len(starts) // 2]])
    with pytest.raises(UtteranceError, match=r"declares \d+ MPEG frames"):
        load_waveform(tmp_path / "a.mp3", 16_000)


def test_an_mp3_with_a_varying_bit_rate_and_no_header_is_read_to_its_end(tmp_path: Path) -> None:
    silence = np.zeros(44_100 * 8, np.float32)
    samples = np.concatenate([speech(2.0, 44_100), silence, speech(2.0, 44_100, seed=1)])
    options: dict[str, object] = {"options": NO_XING, "encoder_options": {"q": "1"}}
    encode(tmp_path / "a.mp3", samples, codec="libmp3lame", rate_hz=44_100, kbps=0, **options)
    waveform = load_waveform(tmp_path / "a.mp3", 16_000)
    assert 12.0 <= waveform.numel() / 16_000 < 12.3
    assert waveform[-16_000:].abs().max() > 0.05, "the speech at its end is there"


@pytest.mark.parametrize(("suffix", "codec", "rate_hz"), [("mp3", "libmp3lame", 44_100), ("ogg", "vorbis", 44_100)])
def test_files_put_end_to_end_are_read_to_the_end_of_the_last(
    tmp_path: Path, suffix: str, codec: str, rate_hz: int
) -> None:
    parts = [
        encode(tmp_path / f"{seed}.{suffix}", speech(3.0, rate_hz, seed=seed), codec=codec, rate_hz=rate_hz)
        for seed in range(2)
    ]
    (tmp_path / f"both.{suffix}").write_bytes(b"".join(part.read_bytes() for part in parts))
    assert 5.9 < load_waveform(tmp_path / f"both.{suffix}", 16_000).numel() / 16_000 < 6.3


@pytest.mark.parametrize("rates", [(16_000, 44_100), (48_000, 32_000), (32_000, 48_000, 32_000)])
@pytest.mark.parametrize("name", ["mp3 with Xing", "mp3 without Xing", "mp2", "aac", "ac3"])
def test_files_of_different_rates_put_end_to_end_are_an_error_and_never_read_in_part_or_at_one_rate(
    tmp_path: Path, name: str, rates: tuple[int, ...]
) -> None:
    rates = tuple(32_000 if name == "ac3" and rate_hz == 16_000 else rate_hz for rate_hz in rates)
    contents = [FORMATS[name][0](tmp_path, rate_hz).read_bytes() for rate_hz in rates]
    path = tmp_path / f"both.{name[:3]}"
    path.write_bytes(b"".join(contents))
    with pytest.raises(UtteranceError, match=r"its sample rate .*changes"):
        load_waveform(path, 16_000)


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x7FFFFFDB, 0x80000000, 0xFFFFFFDB, 0xFFFFFFFF])
def test_a_wav_whose_length_was_never_filled_in_is_read_to_its_end(tmp_path: Path, size: int) -> None:
    path = encode(tmp_path / "a.wav", speech(1.0, 16_000), codec="pcm_s16le", rate_hz=16_000)
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[4:8], content[at : at + 4] = (min(size + 36, 0xFFFFFFFF)).to_bytes(4, "little"), size.to_bytes(4, "little")
    whole = load_waveform(path, 16_000)
    path.write_bytes(bytes(content))
    assert np.array_equal(load_waveform(path, 16_000).numpy(), whole.numpy())


def test_a_wav_of_over_two_gigabytes_that_ends_early_is_truncated(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.wav", speech(1.0, 16_000), codec="pcm_s16le", rate_hz=16_000)
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = (0x90000000).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    with pytest.raises(UtteranceError, match="truncated"):
        load_waveform(path, 16_000)


@pytest.mark.parametrize("codec", ["libmp3lame", "aac"])
def test_a_cover_picture_and_a_longer_video_are_no_truncation(tmp_path: Path, codec: str) -> None:
    path = tmp_path / ("a.mp3" if codec == "libmp3lame" else "a.mp4")
    samples = speech(2.0, 44_100)
    with av.open(str(path), "w") as container:
        audio = container.add_stream(codec, rate=44_100, layout="mono")
        picture = container.add_stream("png" if codec == "libmp3lame" else "mpeg4", rate=25)
        picture.width = picture.height = 64
        picture.pix_fmt = "rgb24" if codec == "libmp3lame" else "yuv420p"
        for number in range(1 if codec == "libmp3lame" else 100):
            image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number, np.uint8), format="rgb24")
            container.mux(picture.encode(image))
        container.mux(picture.encode(None))
        frame = av.AudioFrame.from_ndarray(samples[None, :], format="flt", layout="mono")
        frame.sample_rate = 44_100
        for packet in (*audio.encode(frame), *audio.encode(None)):
            container.mux(packet)
    assert 1.9 < load_waveform(path, 16_000).numel() / 16_000 < 2.2
