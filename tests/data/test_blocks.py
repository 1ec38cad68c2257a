"""Reading block by block gives the bits of reading a file whole, for every format, rate, bit rate and block size."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from encoding import encode, speech

from balr.data import decoders
from balr.data.decoders import open_audio

BLOCKS = (1 << 20, 44_100, 5_000)


def assert_blocks_are_the_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    for samples in BLOCKS:
        monkeypatch.setattr(decoders, "BLOCK_SAMPLES", samples)
        audio = open_audio(path)
        blocks = list(audio.blocks)
        assert [start for start, _ in blocks] == list(np.cumsum([0, *(len(block) for _, block in blocks[:-1])]))
        assert audio.rate_hz == rate_hz
        assert np.array_equal(np.concatenate([block for _, block in blocks]), whole), (path.name, samples)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_000, 44_100])
@pytest.mark.parametrize("kbps", [24, 32, 48, 128])
def test_mp3_of_any_bit_rate_is_the_same_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate_hz: int, kbps: int
) -> None:
    for seconds in (0.4, 7.3):
        encode(tmp_path / "a.mp3", speech(seconds, rate_hz), codec="libmp3lame", rate_hz=rate_hz, kbps=kbps)
        assert_blocks_are_the_whole(tmp_path / "a.mp3", monkeypatch)


@pytest.mark.parametrize("kbps", [12, 32, 96])
def test_opus_is_the_same_in_blocks_and_so_is_webm_copied_into_ogg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kbps: int
) -> None:
    for seconds in (0.4, 7.3):
        encode(tmp_path / "a.opus", speech(seconds, 48_000), codec="libopus", rate_hz=48_000, kbps=kbps)
        assert_blocks_are_the_whole(tmp_path / "a.opus", monkeypatch)
        encode(tmp_path / "a.webm", speech(seconds, 48_000), codec="libopus", rate_hz=48_000, kbps=kbps)
        copy_into_ogg(tmp_path / "a.webm", tmp_path / "copied.opus")
        assert_blocks_are_the_whole(tmp_path / "copied.opus", monkeypatch)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8", "FLOAT", "ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610"])
def test_wav_of_any_subtype_is_the_same_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subtype: str
) -> None:
    soundfile.write(tmp_path / "a.wav", speech(7.3, 16_000), 16_000, subtype=subtype)
    assert_blocks_are_the_whole(tmp_path / "a.wav", monkeypatch)


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.aiff", "a.w64", "a.caf", "a.au"])
@pytest.mark.parametrize("channels", [1, 2])
def test_other_formats_are_the_same_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, channels: int
) -> None:
    samples = np.stack([speech(7.3, 22_050, seed=seed) for seed in range(channels)], axis=1)
    soundfile.write(tmp_path / name, samples, 22_050)
    assert_blocks_are_the_whole(tmp_path / name, monkeypatch)


def copy_into_ogg(source: Path, target: Path) -> None:
    import av

    with av.open(str(source)) as read, av.open(str(target), "w", format="ogg") as written:
        stream = written.add_stream_from_template(read.streams.audio[0])
        for packet in read.demux(read.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                written.mux(packet)
