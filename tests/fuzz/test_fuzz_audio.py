"""Damaged audio files by the thousand: each is embedded or listed as a failure, and good ones beside them are embedded.

Every case comes from a seed, so the name of a file that a test complains of is enough to make it again.
"""

import io
import random
import re
import struct
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from stat import S_ISDIR

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from conftest import XVECTOR, Command, rows, speechlike, write_wav

EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF)
HEADER_BYTES = 256
SETTINGS = ("data.num_workers=2", "data.decode_timeout_seconds=20", "data.max_audio_seconds=120", "save_dir=out")
IN_PYTHON = re.compile(r"\w+(Error|Exception|Warning)\b")  # a way to fail that nobody has found words for

Mutation = Callable[[random.Random, bytearray, bytes], None]


def bits_flipped(draw: random.Random, content: bytearray, other: bytes) -> None:
    for _ in range(draw.choice((1, 1, 4, 32))):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def bytes_overwritten(draw: random.Random, content: bytearray, other: bytes) -> None:
    start, length = span(draw, content)
    content[start : start + length] = draw.choice((draw.randbytes(length), b"\0" * length, b"\xff" * length))


def header_bits_flipped(draw: random.Random, content: bytearray, other: bytes) -> None:
    for _ in range(draw.choice((1, 2, 8))):
        content[draw.randrange(min(HEADER_BYTES, len(content)))] ^= 1 << draw.randrange(8)


def header_field_extreme(draw: random.Random, content: bytearray, other: bytes) -> None:
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.randrange(min(HEADER_BYTES, len(content)))
        content[at : at + 4] = struct.pack(draw.choice("<>") + "I", draw.choice(EXTREMES))


def box_field_extreme(draw: random.Random, content: bytearray, other: bytes) -> None:
    names = [name for name in BOXES if name in content]
    if names:
        at = content.find(draw.choice(names)) + draw.randrange(-4, 32, 4)
        content[max(0, at) : max(0, at) + 4] = struct.pack(draw.choice("<>") + "I", draw.choice(EXTREMES))


def cut(draw: random.Random, content: bytearray, other: bytes) -> None:
    del content[draw.choice((draw.randrange(len(content)), draw.randrange(min(HEADER_BYTES, len(content))))) :]


def cut_at_the_start(draw: random.Random, content: bytearray, other: bytes) -> None:
    del content[: span(draw, content)[1]]


def inserted(draw: random.Random, content: bytearray, other: bytes) -> None:
    at = draw.randrange(len(content))
    content[at:at] = draw.randbytes(draw.choice((1, 2, 4, 100, 5000)))


def chunk_deleted(draw: random.Random, content: bytearray, other: bytes) -> None:
    start, length = span(draw, content)
    del content[start : start + length]


def chunk_repeated(draw: random.Random, content: bytearray, other: bytes) -> None:
    start, length = span(draw, content)
    content[start:start] = bytes(content[start : start + length]) * draw.choice((1, 1, 3, 20))


def spliced(draw: random.Random, content: bytearray, other: bytes) -> None:
    content[draw.randrange(len(content)) :] = other[draw.randrange(len(other)) :]


def headed_by_another(draw: random.Random, content: bytearray, other: bytes) -> None:
    length = draw.randrange(HEADER_BYTES)
    content[:length] = other[:length]


BOXES = (b"mdhd", b"mvhd", b"stsz", b"stts", b"stsc", b"stco", b"mp4a", b"esds", b"moov", b"trak", b"mdat", b"elst")
BOXES += (b"fmt ", b"data", b"fact", b"RIFF", b"fLaC", b"OggS", b"Xing", b"Info", b"LAME", b"OpusHead", b"vorbis")
MUTATIONS: tuple[Mutation, ...] = (
    bits_flipped,
    bytes_overwritten,
    header_bits_flipped,
    header_field_extreme,
    box_field_extreme,
    cut,
    cut_at_the_start,
    inserted,
    chunk_deleted,
    chunk_repeated,
    spliced,
    headed_by_another,
)


def span(draw: random.Random, content: bytearray) -> tuple[int, int]:
    start = draw.randrange(len(content))
    return start, min(len(content) - start, draw.choice((1, 4, 16, 256, 4096)))


def mutated(draw: random.Random, whole: bytes, other: bytes) -> bytes:
    content = bytearray(whole)
    for mutation in draw.choices(MUTATIONS, k=draw.choice((1, 1, 2, 4))):
        if content:
            mutation(draw, content, other)
    return bytes(content)


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """Return a few short files of each format, as bytes."""
    place = tmp_path_factory.mktemp("seeds") / "seed.m4a"
    fragmented = {"movflags": "frag_keyframe+empty_moov"}
    short, stereo = speechlike(0.4), np.stack([speechlike(0.3, seed=1), speechlike(0.3, seed=2)], axis=1)
    return {
        "wav": [
            written(short, "WAV", "PCM_16"),
            written(stereo, "WAV", "FLOAT", rate_hz=44_100),
            written(short, "WAVEX", "PCM_24"),
            written(short, "WAV", "IMA_ADPCM", rate_hz=8_000),
        ],
        "flac": [written(short, "FLAC", "PCM_16"), written(stereo, "FLAC", "PCM_24", rate_hz=44_100)],
        "mp3": [written(short, "MP3", "MPEG_LAYER_III"), written(stereo, "MP3", "MPEG_LAYER_III", rate_hz=44_100)],
        "m4a": [
            encoded(place, short, "aac"),
            encoded(place, short, "aac", options={"movflags": "faststart"}),
            encoded(place, short, "alac"),
            encoded(place, speechlike(1.0), "aac", options=fragmented),
        ],
        "ogg": [written(short, "OGG", "VORBIS"), written(short, "OGG", "OPUS")],
    }


def written(samples: npt.NDArray[np.float32], container: str, subtype: str, *, rate_hz: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=container, subtype=subtype)
    return file.getvalue()


def encoded(
    place: Path, samples: npt.NDArray[np.float32], codec: str, *, options: dict[str, str] | None = None, title: str = ""
) -> bytes:
    with av.open(str(place), "w", format="ipod", options=options or {}) as output:
        output.metadata["title"] = title
        stream = output.add_stream(codec, rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None, :], format="flt", layout="mono")
        frame.sample_rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            output.mux(packet)
    return place.read_bytes()


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "m4a", "ogg"])
@pytest.mark.parametrize(
    ("seed", "cases"), [(0, 40), *(pytest.param(seed, 250, marks=pytest.mark.slow) for seed in range(1, 6))]
)
def test_every_damaged_file_is_embedded_or_listed_and_the_good_ones_are_embedded(
    balr: Command,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    seeds: dict[str, list[bytes]],
    kind: str,
    seed: int,
    cases: int,
) -> None:
    draw = random.Random(f"{kind} {seed}")
    folder = tmp_path / "corpus"
    good = {write_wav(folder / f"good{n}.wav", speechlike(0.5, seed=n)).name for n in range(3)}
    everything = list(chain(*seeds.values()))
    for number in range(cases):
        content = mutated(draw, draw.choice(seeds[kind]), draw.choice(everything))
        (folder / f"{number:04}.{kind}").write_bytes(content)
    before = tree(tmp_path)

    code = balr("input=corpus", *SETTINGS)

    told = capfd.readouterr().err
    assert code in (0, 1), told
    assert "Traceback" not in told and "unexpected" not in told, told
    listed = rows(tmp_path / "out" / "metadata.csv")
    failures = rows(tmp_path / "out" / "failures.csv") if code else []
    assert sorted(row["id"] for row in (*listed, *failures)) == sorted(path.name for path in folder.iterdir())
    assert good <= {row["id"] for row in listed}
    for row in listed:
        vector = np.load(tmp_path / "out" / row["embedding"])
        assert vector.shape == (XVECTOR["embed_dim"],) and np.isfinite(vector).all(), row
    assert len(list((tmp_path / "out").rglob("*_emb.npy"))) == len(listed)
    for row in failures:
        assert len(row["reason"].splitlines()) == 1 and not IN_PYTHON.match(row["reason"]), row
    assert {path: state for path, state in tree(tmp_path).items() if path.parts[0] not in ("out", "outputs")} == before


def test_an_mp3_without_bytes_is_one_line(balr: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.mp3").touch()
    assert balr("input=corpus", "save_dir=out") == 1
    told = capfd.readouterr().err
    assert "Traceback" not in told and "dropped" not in told, told


def test_a_tag_that_is_not_utf_8_costs_nothing(balr: Command, tmp_path: Path) -> None:
    title = "\u00e9" * 4
    whole = encoded(tmp_path / "a.m4a", speechlike(0.5), "aac", title=title)
    (tmp_path / "a.m4a").write_bytes(whole.replace(title.encode(), (title * 2).encode("latin-1")))
    assert balr("input=a.m4a", "save_dir=out") == 0


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("empty.wav", lambda: written(speechlike(0.5)[:0], "WAV", "PCM_16", rate_hz=44_100)),
        ("infinite.wav", lambda: written(np.array([[np.inf, -np.inf]] * 8_000), "WAV", "FLOAT")),
        ("unknown-codec.wav", lambda: replaced(written(speechlike(0.5), "WAV", "PCM_16"), 20, b"\x34\x12")),
        ("headless.flac", lambda: written(speechlike(0.5), "FLAC", "PCM_16")[8:300]),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_words(
    balr: Command, tmp_path: Path, name: str, make: Callable[[], bytes]
) -> None:
    (tmp_path / name).write_bytes(make())
    assert balr(f"input={name}", "save_dir=out") == 1
    (failure,) = rows(tmp_path / "out" / "failures.csv")
    assert not IN_PYTHON.match(failure["reason"]), failure


def replaced(content: bytes, at: int, by: bytes) -> bytes:
    return content[:at] + by + content[at + len(by) :]


def tree(folder: Path) -> dict[Path, tuple[int, int] | None]:
    """Return everything below a folder, files with their size and time of change."""
    found = {path.relative_to(folder): path.stat() for path in folder.rglob("*")}
    return {
        path: None if S_ISDIR(state.st_mode) else (state.st_size, state.st_mtime_ns) for path, state in found.items()
    }
