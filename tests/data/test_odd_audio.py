"""Audio that is odd is embedded or refused with its reason; audio that is hostile is bounded in memory and time."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
from conftest import Command, embeddings, rows, speechlike, write_wav

from balr.data.audio import load_waveform
from balr.data.truncation import mpeg_frames
from balr.errors import UtteranceError
from balr.stores.embedding_files import read_embedding

Samples = npt.NDArray[np.float32]


def odd(samples: Samples) -> dict[str, Samples]:
    holes = samples.copy()
    holes[4000:9000] = 0
    return {
        "clipped": (samples * 20).clip(-1, 1),
        "dc": (samples * 0.5 + 0.4).astype(np.float32),
        "holes": holes,
        "faint": samples * 1e-4,
        "over": samples * 30,
    }


def test_clipping_dc_pauses_and_odd_levels_are_embedded(balr: Command, tmp_path: Path) -> None:
    for name, samples in odd(speechlike(1.0)).items():
        write_wav(tmp_path / "corpus" / f"{name}.wav", samples, subtype="FLOAT")
    assert balr("input=corpus", "save_dir=out") == 0
    found = [read_embedding(path) for path in (tmp_path / "out").rglob("*_emb.npy")]
    assert len(found) == 5 and all(np.isfinite(vector).all() and vector.any() for vector in found)


def test_silence_is_embedded_or_fails_with_its_reason_but_is_never_nan(balr: Command, tmp_path: Path) -> None:
    write_wav(tmp_path / "corpus" / "silence.wav", np.zeros(16_000, np.float32))
    code = balr("input=corpus", "save_dir=out")
    if code:
        (failure,) = rows(tmp_path / "out" / "failures.csv")
        assert "digital silence" in failure["reason"]
    assert all(np.isfinite(read_embedding(path)).all() for path in (tmp_path / "out").rglob("*_emb.npy"))


def test_nan_samples_are_a_failure_of_their_file(balr: Command, tmp_path: Path) -> None:
    broken = speechlike(1.0)
    broken[500] = np.inf
    write_wav(tmp_path / "corpus" / "a.wav", broken, subtype="FLOAT")
    write_wav(tmp_path / "corpus" / "b.wav", speechlike(1.0), subtype="FLOAT")
    assert balr("input=corpus", "save_dir=out") == 1
    (failure,) = rows(tmp_path / "out" / "failures.csv")
    assert failure["id"] == "a.wav" and "NaN or infinity" in failure["reason"]


def test_seven_point_one_channels_are_averaged(tmp_path: Path) -> None:
    channels = np.stack([speechlike(0.5, seed=seed) for seed in range(8)], axis=1)
    soundfile.write(tmp_path / "a.wav", channels, 16_000, subtype="FLOAT")
    assert np.allclose(load_waveform(tmp_path / "a.wav", 16_000).numpy(), channels.mean(axis=1), atol=1e-7)


def test_telephone_speech_is_warned_of_once_with_its_count(
    balr: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        rate_hz = 8_000 if number < 3 else 24_000
        samples = speechlike(0.6, seed=number, rate_hz=rate_hz)
        write_wav(tmp_path / "corpus" / f"{number}.wav", samples, rate_hz=rate_hz)
    assert balr("input=corpus", "save_dir=out") == 0
    told = capsys.readouterr().err
    assert told.count("3 of 5 utterances have a lower rate than the model's 16000 Hz") == 1
    assert len(embeddings(tmp_path / "out")) == 5
    assert balr("input=corpus", "save_dir=out", "force=true") == 0, "rates are remembered with lengths"
    assert capsys.readouterr().err.count("3 of 5 utterances") == 1


def bounded(work: Callable[[], object], *, mib: float, seconds: float) -> object:
    """Return what a function returns or what it raised, and hold it to the memory it adds and the time it takes."""
    ours, theirs = multiprocessing.get_context("fork").Pipe()

    def measured() -> None:
        torch.set_num_threads(1)  # those of the parent are not here
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        try:
            made = work()
        except UtteranceError as error:
            made = error
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        theirs.send((made, grown / 1024, time.monotonic() - started))

    process = multiprocessing.get_context("fork").Process(target=measured, daemon=True)
    process.start()
    try:
        assert ours.poll(60), "it hangs"
        made, grown_mib, took_seconds = ours.recv()
    finally:
        process.kill()
        process.join()
    assert grown_mib < mib and took_seconds < seconds
    return made


def test_a_header_that_claims_four_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", speechlike(0.5))
    for claimed in (0xFFFFFFF0, 0x7FFFFFF0, 0x80000000):
        content = bytearray(path.read_bytes())
        content[4:8] = content[40:44] = claimed.to_bytes(4, "little")
        (tmp_path / "b.wav").write_bytes(bytes(content))
        made = bounded(lambda: load_waveform(tmp_path / "b.wav", 16_000).numel(), mib=60, seconds=5)
        assert made == 8_000 or "truncated" in str(made)


def test_days_of_silence_in_a_small_flac_end_at_the_limit(tmp_path: Path) -> None:
    hour = np.zeros(1_000 * 3600, np.int16)  # at a low rate, as it is encoded in every test run
    with soundfile.SoundFile(tmp_path / "bomb.flac", "w", 1_000, 1) as file:
        for _ in range(12):
            file.write(hour)
    assert (tmp_path / "bomb.flac").stat().st_size < 3_000_000
    made = bounded(lambda: load_waveform(tmp_path / "bomb.flac", 1_000, max_seconds=600), mib=100, seconds=5)
    assert "more than 600 s of audio; cut the file, or raise data.max_audio_seconds" in str(made)


def test_a_file_of_one_sample_a_second_does_not_burst_when_resampled(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", speechlike(0.25), rate_hz=1)
    made = bounded(lambda: load_waveform(path, 16_000, max_seconds=600), mib=300, seconds=10)
    assert "more than 600 s" in str(made)
    made = bounded(lambda: load_waveform(path, 16_000, max_seconds=4_000).numel(), mib=1_200, seconds=30)
    assert made == 4_000 * 16_000


def test_frames_between_which_others_lie_are_looked_for_in_time_that_grows_with_the_file(tmp_path: Path) -> None:
    frame = bytes.fromhex("fff348c4") + bytes(140)  # MPEG-2, layer III, 32 kbit/s at 16 kHz
    (tmp_path / "a.mp3").write_bytes((2 * frame + bytes(50)) * 8_000)
    assert bounded(lambda: mpeg_frames(tmp_path / "a.mp3")[0], mib=60, seconds=15) == 16_000


def test_a_thousand_channels_are_read_in_blocks(tmp_path: Path) -> None:
    with soundfile.SoundFile(tmp_path / "a.wav", "w", 16_000, 1024) as file:
        for _ in range(16):
            file.write(np.zeros((1_000, 1024), np.int16))
    assert bounded(lambda: load_waveform(tmp_path / "a.wav", 16_000).numel(), mib=60, seconds=10) == 16_000


def test_the_first_of_a_hundred_streams_is_read(tmp_path: Path) -> None:
    first = speechlike(0.5)
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        streams = [container.add_stream("aac", rate=16_000, layout="mono") for _ in range(100)]
        for number, stream in enumerate(streams):
            samples = first if number == 0 else np.zeros_like(first)
            frame = av.AudioFrame.from_ndarray(samples[None, :], format="flt", layout="mono")
            frame.sample_rate = 16_000
            for packet in (*stream.encode(frame), *stream.encode(None)):
                container.mux(packet)
    made = bounded(lambda: load_waveform(tmp_path / "a.m4a", 16_000).numpy(), mib=150, seconds=10)  # FFmpeg itself
    assert isinstance(made, np.ndarray) and 7_000 < made.size < 12_000 and np.abs(made).max() > 0.05


def test_a_cell_of_a_million_characters_and_an_endless_line_are_refused(
    balr: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "a.wav", speechlike(0.5))
    for name, text in (
        ("cell.csv", f"audio,note\na.wav,{'x' * 1_000_000}\n"),
        ("line.csv", f"audio,note\na.wav,{'x,' * 1_000_000}\n"),
        ("line.scp", f"utt1 {'x' * 2_000_000}\n"),
        ("id.csv", f"audio,id\na.wav,{'i' * 100_000}\n"),
    ):
        (tmp_path / name).write_text(text)
        code = balr(f"input={name}", "save_dir=out")
        told = capsys.readouterr().err
        assert code == (0 if name == "id.csv" else 2) and "Traceback" not in told
        assert code == 0 or (f"{name}:" in told and len(told.splitlines()) == 1)
