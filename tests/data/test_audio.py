"""Any container, rate, bit depth and channel count becomes the same float32 waveform; damage is an error."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
import torchaudio
from conftest import speechlike, write_wav
from encoding import encode

from balr.data import decoders
from balr.data.audio import load_waveform
from balr.data.decoders import open_audio
from balr.errors import UtteranceError

QUANTISATION = {"PCM_U8": 1 / 128, "PCM_16": 1 / 32768, "PCM_24": 2**-23, "PCM_32": 2**-24, "FLOAT": 0, "DOUBLE": 0}


@pytest.mark.parametrize("subtype", QUANTISATION)
def test_every_bit_depth_of_wav_gives_the_same_waveform_in_minus_one_to_one(tmp_path: Path, subtype: str) -> None:
    samples = speechlike(0.5)
    rate_hz, decoded = decoded_whole(write_wav(tmp_path / "a.wav", samples, subtype=subtype))
    assert rate_hz == 16_000 and decoded.dtype == np.float32
    assert np.abs(decoded - samples).max() <= QUANTISATION[subtype]


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.opus", "a.mp3"])
def test_soundfile_formats_decode_to_the_signal_that_was_encoded(tmp_path: Path, name: str) -> None:
    samples = speechlike(2.0)
    formats = {"opus": ("OGG", "OPUS"), "ogg": ("OGG", "VORBIS"), "mp3": ("MP3", "MPEG_LAYER_III")}
    container, subtype = formats.get(name[2:], ("FLAC", "PCM_16"))
    soundfile.write(tmp_path / name, samples, 16_000, format=container, subtype=subtype)
    assert _similarity(load_waveform(tmp_path / name, 16_000), samples) > 0.9


@pytest.mark.parametrize(
    ("name", "codec", "rate_hz"),
    [("a.m4a", "aac", 16_000), ("a.aac", "aac", 44_100), ("a.wma", "wmav2", 16_000), ("a.webm", "libopus", 48_000)],
)
def test_formats_that_soundfile_refuses_decode_through_ffmpeg(
    tmp_path: Path, name: str, codec: str, rate_hz: int
) -> None:
    samples = speechlike(2.0, rate_hz=rate_hz)
    encode(tmp_path / name, samples, codec=codec, rate_hz=rate_hz)
    expected = torchaudio.transforms.Resample(rate_hz, 16_000)(torch.from_numpy(samples)).numpy()
    waveform = load_waveform(tmp_path / name, 16_000)
    assert waveform.dtype == torch.float32 and waveform.ndim == 1
    assert _similarity(waveform, expected) > 0.9


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = speechlike(0.5, seed=1), speechlike(0.5, seed=2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    _, decoded = decoded_whole(tmp_path / "a.wav")
    np.testing.assert_allclose(decoded, (left + right) / 2, atol=1e-7)


def test_resampling_is_torchaudio_s_default(tmp_path: Path) -> None:
    samples = speechlike(0.5, rate_hz=44_100)
    expected = torchaudio.transforms.Resample(44_100, 16_000)(torch.from_numpy(samples))
    waveform = load_waveform(write_wav(tmp_path / "a.wav", samples, rate_hz=44_100, subtype="FLOAT"), 16_000)
    assert torch.equal(waveform, expected)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("samples", [5_000, 12_000, 12_001, 40_003])
def test_resampling_in_blocks_is_resampling_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate_hz: int, samples: int
) -> None:
    monkeypatch.setattr(decoders, "BLOCK_SAMPLES", 6_000)
    signal = speechlike(samples / rate_hz + 0.01, rate_hz=rate_hz)[:samples]
    expected = torchaudio.transforms.Resample(rate_hz, 16_000)(torch.from_numpy(signal))
    waveform = load_waveform(write_wav(tmp_path / "a.wav", signal, rate_hz=rate_hz, subtype="FLOAT"), 16_000)
    assert waveform.shape == expected.shape
    assert (waveform - expected).abs().max() < 1e-6


def test_a_long_file_is_read_whole_across_blocks(tmp_path: Path) -> None:
    samples = np.tile(speechlike(5.0), 30)
    _, decoded = decoded_whole(write_wav(tmp_path / "a.wav", samples, subtype="FLOAT"))
    assert np.array_equal(decoded, samples)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_a_truncated_file_is_an_error_and_not_a_shorter_utterance(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, speechlike(2.0), 16_000)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UtteranceError, match=r"truncated|damaged"):
        load_waveform(tmp_path / name, 16_000)


def test_a_truncated_m4a_is_an_error(tmp_path: Path) -> None:
    encode(tmp_path / "a.m4a", speechlike(4.0), codec="aac", rate_hz=16_000, options={"movflags": "faststart"})
    whole = (tmp_path / "a.m4a").read_bytes()
    (tmp_path / "a.m4a").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UtteranceError):
        load_waveform(tmp_path / "a.m4a", 16_000)


def test_a_wav_streamed_to_a_pipe_has_no_length_in_its_header_and_is_read(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", speechlike(1.0))
    header = bytearray(path.read_bytes())
    header[4:8] = header[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(header))
    assert load_waveform(path, 16_000).numel() == 16_000


@pytest.mark.parametrize("content", [b"", b"this is text\n" * 100, b"RIFF\x00\x00\x00\x00WAVEfmt "])
def test_what_is_not_audio_is_an_error_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UtteranceError) as error:
        load_waveform(tmp_path / "a.wav", 16_000)
    assert "\n" not in str(error.value)


def test_a_file_without_samples_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UtteranceError, match="no samples"):
        load_waveform(write_wav(tmp_path / "a.wav", np.zeros(0, np.float32)), 16_000)


def test_samples_that_are_not_numbers_are_an_error(tmp_path: Path) -> None:
    samples = speechlike(0.5)
    samples[100] = np.nan
    with pytest.raises(UtteranceError, match="not numbers"):
        load_waveform(write_wav(tmp_path / "a.wav", samples, subtype="FLOAT"), 16_000)


def test_a_playlist_named_wav_does_not_open_the_files_it_lists(tmp_path: Path) -> None:
    secret = write_wav(tmp_path / "secret.wav", speechlike(1.0))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    (tmp_path / "a.wav").write_text(playlist)
    with pytest.raises(UtteranceError, match="not readable"):
        load_waveform(tmp_path / "a.wav", 16_000)


def test_a_rate_that_would_need_a_giant_resampling_kernel_is_an_error(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", speechlike(0.1), rate_hz=15_999)
    with pytest.raises(UtteranceError, match="15999 Hz"):
        load_waveform(path, 16_000)


def decoded_whole(path: Path) -> tuple[int, npt.NDArray[np.float32]]:
    audio = open_audio(path)
    return audio.rate_hz, np.concatenate([block for _, block in audio.blocks]).mean(axis=1, dtype=np.float32)


def _similarity(waveform: torch.Tensor, expected: npt.NDArray[np.float32]) -> float:
    """Return the best normalised correlation within codec delays of up to 0.1 s."""
    ours = waveform.numpy().astype(np.float64)
    size = 1 << (len(ours) + len(expected)).bit_length()
    products = np.fft.irfft(np.fft.rfft(ours, size) * np.conj(np.fft.rfft(expected, size)))
    near = np.concatenate([products[:1600], products[-1600:]])
    return float(near.max() / np.linalg.norm(ours) / np.linalg.norm(expected))
