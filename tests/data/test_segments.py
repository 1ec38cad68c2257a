"""A segment is the samples between its times, of its channel; what is not in the file is a failure."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
import torchaudio
from conftest import Command, embeddings, rows, speechlike, write_wav
from encoding import encode

from balr.data import audio, containers, decoders
from balr.data.audio import Cursor, load_waveform
from balr.data.corpus import Corpus
from balr.errors import InputError, UtteranceError
from balr.records import Part
from balr.stores.embedding_files import read_embedding

SEGMENTS = ((0.0, 0.5), (0.4, 1.1), (1.0, 2.5), (2.25, 2.75), (2.25, 2.75), (3.0, None))


def two_channels(rate_hz: int = 16_000, seconds: float = 4.0) -> npt.NDArray[np.float32]:
    return np.stack([speechlike(seconds, seed=seed, rate_hz=rate_hz) for seed in range(2)], axis=1)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.m4a", "a.opus"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_segment_is_cut_out_of_what_the_whole_file_decodes_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, order: int
) -> None:
    codecs = {"mp3": "libmp3lame", "m4a": "aac", "opus": "libopus", "ogg": "vorbis", "flac": "flac", "wav": "pcm_s16le"}
    path, rate_hz = tmp_path / name, 48_000 if name == "a.opus" else 16_000
    encode(path, speechlike(4.0, rate_hz=rate_hz), codec=codecs[name[2:]], rate_hz=rate_hz, kbps=32)
    whole = load_waveform(path, rate_hz)
    monkeypatch.setattr(decoders, "BLOCK_SAMPLES", 5_000)
    monkeypatch.setattr(audio, "MOST_KEPT_NUMBERS", 12_000)
    cursor = Cursor()
    for start, end in SEGMENTS[::order]:
        part = load_waveform(path, rate_hz, part=Part(start, end), cursor=cursor)
        last = None if end is None else round(end * rate_hz)
        assert torch.equal(part, whole[round(start * rate_hz) : last]), (start, end)


def test_a_segment_is_resampled_by_itself_as_a_file_of_its_own_would_be(tmp_path: Path) -> None:
    samples = speechlike(3.0, rate_hz=24_000)
    path = write_wav(tmp_path / "a.wav", samples, rate_hz=24_000, subtype="FLOAT")
    cut = torch.from_numpy(samples[round(0.7 * 24_000) : round(1.9 * 24_000)])
    expected = torchaudio.transforms.Resample(24_000, 16_000)(cut)
    assert torch.equal(load_waveform(path, 16_000, part=Part(0.7, 1.9)), expected)


def test_a_channel_is_taken_as_it_is(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", two_channels(), 16_000, subtype="FLOAT")
    for channel in range(2):
        waveform = load_waveform(tmp_path / "a.wav", 16_000, part=Part(channel=channel))
        assert np.array_equal(waveform.numpy(), two_channels()[:, channel])


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (Part(1.0, 0.5), "from 1 to 0.5 s ends before it starts"),
        (Part(1.0, 1.0), "from 1 to 1 s is empty"),
        (Part(-1.0, 1.0), "starts before the file"),
        (Part(5.0, 6.0), "starts at 5 s, and the file ends at 4 s"),
        (Part(5.0), "starts at 5 s, and the file ends at 4 s"),
        (Part(3.0, 4.5), "ends at 4.5 s, and the file at 4 s"),
        (Part(channel=2), "channel 2 does not exist: the file has channels 0 to 1"),
        (Part(channel=-1), "channel -1 does not exist"),
    ],
)
@pytest.mark.parametrize("name", ["a.wav", "a.ogg"])
def test_what_is_not_in_the_file_is_an_error_with_its_reason(
    tmp_path: Path, name: str, part: Part, reason: str
) -> None:
    soundfile.write(tmp_path / name, two_channels(), 16_000)
    with pytest.raises(UtteranceError, match=reason):
        load_waveform(tmp_path / name, 16_000, part=part)


def test_times_that_a_list_rounded_may_pass_the_end_by_a_hundredth(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", speechlike(1.234))
    assert load_waveform(path, 16_000, part=Part(1.0, 1.24)).numel() == round(1.234 * 16_000) - 16_000


def test_segments_of_a_truncated_file_are_embedded_as_far_as_it_goes(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp3", speechlike(4.0), codec="libmp3lame", rate_hz=16_000)
    whole = load_waveform(path, 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    cursor = Cursor()
    assert torch.equal(load_waveform(path, 16_000, part=Part(0.5, 1.0), cursor=cursor), whole[8_000:16_000])
    for _ in range(2):
        with pytest.raises(UtteranceError, match="truncated"):
            load_waveform(path, 16_000, part=Part(3.0, 3.5), cursor=cursor)


def test_a_segment_after_one_that_found_no_memory_is_not_embedded_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "a.ogg", speechlike(4.0), codec="vorbis", rate_hz=16_000)
    expected = load_waveform(path, 16_000, part=Part(0.5))
    read, reads = soundfile.SoundFile.read, []

    def third_fails(file: soundfile.SoundFile, *arguments: Any, **settings: Any) -> Any:
        reads.append(file)
        if len(reads) == 3:
            raise MemoryError
        return read(file, *arguments, **settings)

    monkeypatch.setattr(decoders, "BLOCK_SAMPLES", 10_000)
    monkeypatch.setattr(soundfile.SoundFile, "read", third_fails)
    cursor = Cursor()
    with pytest.raises(MemoryError):
        load_waveform(path, 16_000, part=Part(0.25), cursor=cursor)
    assert torch.equal(load_waveform(path, 16_000, part=Part(0.5), cursor=cursor), expected)


def test_many_segments_of_a_file_that_cannot_be_sought_cost_one_pass(
    balr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    whole = decoders.open_audio
    monkeypatch.setattr(
        containers,
        "open_audio",
        lambda path, part, scan: opened.extend([path] * scan) or whole(path, part, scan=scan),
    )
    for name in ("a.mp3", "b.mp3"):
        encode(tmp_path / name, speechlike(6.0, seed=ord(name[0])), codec="libmp3lame", rate_hz=16_000)
    write_wav(tmp_path / "c.wav", speechlike(6.0))
    starts = [0.25 * number for number in range(20)]
    lines = [f"{name},{start},{start + 0.9}" for start in reversed(starts) for name in ("a.mp3", "c.wav", "b.mp3")]
    (tmp_path / "list.csv").write_text("\n".join(["audio,start,end", *lines]) + "\n")
    assert balr("input=list.csv", "save_dir=out") == 0
    assert len(embeddings(tmp_path / "out")) == 60
    assert [path.name for path in opened if path.suffix == ".mp3"] == ["a.mp3", "b.mp3"]


@pytest.mark.parametrize("workers", ["data=serial", "data.num_workers=2"])
def test_each_segment_of_a_csv_gets_the_embedding_of_a_file_that_holds_just_it(
    balr: Command, tmp_path: Path, workers: str
) -> None:
    samples = (two_channels(seconds=3.0) * 32768).round().astype(np.int16)
    soundfile.write(tmp_path / "talk.wav", samples, 16_000)
    soundfile.write(tmp_path / "first.wav", samples[8_000:24_000, 0], 16_000)
    soundfile.write(tmp_path / "second.wav", samples[16_000:, 1], 16_000)
    (tmp_path / "list.csv").write_text(
        "audio,start,end,channel,speaker,note\ntalk.wav,0.5,1.5,0,x,one\ntalk.wav,1.0,,1,y,two\nfirst.wav,,,,x,\n"
        "second.wav,,,,y,\n"
    )
    assert balr("input=list.csv", "save_dir=out", workers) == 0
    listed = {row["id"]: row for row in rows(tmp_path / "out" / "metadata.csv")}
    assert list(listed) == ["talk.wav_0.5-1.5_ch0", "talk.wav_1-end_ch1", "first.wav", "second.wav"]
    found = {id_: read_embedding(tmp_path / "out" / row["embedding"]) for id_, row in listed.items()}
    assert np.array_equal(found["talk.wav_0.5-1.5_ch0"], found["first.wav"])
    assert np.array_equal(found["talk.wav_1-end_ch1"], found["second.wav"])
    segment = listed["talk.wav_0.5-1.5_ch0"]
    assert (segment["start"], segment["end"], segment["channel"], segment["note"]) == ("0.5", "1.5", "0", "one")
    again = Corpus.from_csv(tmp_path / "out" / "metadata.csv").utterances
    assert [u.part for u in again[:2]] == [Part(0.5, 1.5, 0), Part(1.0, None, 1)], "the manifest is a list, too"


def test_bad_segments_are_failures_and_the_others_are_embedded(balr: Command, tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", speechlike(2.0))
    (tmp_path / "list.csv").write_text("id,audio,start,end\nok,a.wav,0,1\nback,a.wav,1,0.5\nlate,a.wav,3,4\n")
    assert balr("input=list.csv", "save_dir=out") == 1
    assert [row["id"] for row in rows(tmp_path / "out" / "metadata.csv")] == ["ok"]
    reasons = {row["id"]: row["reason"] for row in rows(tmp_path / "out" / "failures.csv")}
    assert "ends before it starts" in reasons["back"] and "the file ends at 2 s" in reasons["late"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a.wav,x,1,", "start 'x' is not a number of seconds"),
        ("a.wav,0,nan,", "end 'nan'"),
        ("a.wav,0,1,left", "channel 'left'"),
    ],
)
def test_what_is_no_time_and_no_channel_is_refused_with_its_line(tmp_path: Path, row: str, problem: str) -> None:
    write_wav(tmp_path / "a.wav", speechlike(0.5))
    (tmp_path / "list.csv").write_text(f"audio,start,end,channel\na.wav,,,\n{row}\n")
    with pytest.raises(InputError, match=f"list.csv:3: {problem}"):
        Corpus.from_path(tmp_path / "list.csv")


def test_a_segment_never_shares_the_file_of_another_utterance(
    balr: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.wav", "a_0-1.wav"):
        write_wav(tmp_path / name, speechlike(1.0))
    (tmp_path / "list.csv").write_text("audio,start,end\na.wav,0,1\na_0-1.wav,,\n")
    assert balr("input=list.csv", "save_dir=out") == 2
    assert "would share the embedding file" in capsys.readouterr().err


def test_segments_whose_times_change_are_embedded_again(balr: Command, tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", speechlike(2.0))
    (tmp_path / "list.csv").write_text("id,audio,start,end\nx,a.wav,0,1\n")
    assert balr("input=list.csv", "save_dir=out") == 0
    (tmp_path / "list.csv").write_text("id,audio,start,end\nx,a.wav,0.5,1.5\n")
    assert balr("input=list.csv", "save_dir=out") == 0
    (listed,) = rows(tmp_path / "out" / "metadata.csv")
    assert (listed["start"], listed["end"], listed["embedding"]) == ("0.5", "1.5", "a_0.5-1.5_emb.npy")


def test_kaldi_segments_beside_wav_scp_are_read(balr: Command, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "call.wav", two_channels(seconds=3.0), 16_000)
    (tmp_path / "wav.scp").write_text("call call.wav\n")
    (tmp_path / "segments").write_text("utt1 call 0.0 1.0\nutt2 call 1.5 -1\nutt3 call 0.0 1.0 1\n")
    parts = {u.id: u.part for u in Corpus.from_path(tmp_path / "wav.scp").utterances}
    assert parts == {"utt1": Part(0.0, 1.0), "utt2": Part(1.5, None), "utt3": Part(0.0, 1.0, 1)}
    assert balr("input=wav.scp", "save_dir=out") == 0
    assert len(embeddings(tmp_path / "out")) == 3
    (tmp_path / "segments").write_text("utt1 other 0.0 1.0\n")
    with pytest.raises(InputError, match=r"segments:1: recording 'other' is not in wav.scp"):
        Corpus.from_path(tmp_path / "wav.scp")


def test_one_channel_of_a_whole_corpus_is_chosen_and_averages_are_warned_of_once(
    balr: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        path = tmp_path / "corpus" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, two_channels(seconds=1.0) if number else two_channels(seconds=1.0)[:, 0], 16_000)
    assert balr("input=corpus", "save_dir=mean") == 0
    assert capsys.readouterr().err.count("2 of 3 utterances have several channels, which are averaged") == 1
    assert balr("input=corpus", "save_dir=first", "channel=0") == 0
    assert "several channels" not in capsys.readouterr().err
    found = [read_embedding(path) for path in sorted((tmp_path / "first").rglob("*_ch0_emb.npy"))]
    assert len(found) == 3 and np.array_equal(found[0], found[1])
    assert balr("input=corpus", "save_dir=second", "channel=1") == 1
    (failure,) = rows(tmp_path / "second" / "failures.csv")
    assert failure["id"] == "0.wav" and "has only channel 0" in failure["reason"]
