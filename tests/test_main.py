"""The whole way through Hydra's door, in this process: runs, resumes, failures and what they leave."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command, embeddings, rows, speechlike, write_wav

from balr.data.dataset import AudioDataset
from balr.embeddings.wespeaker import WespeakerModel


def test_a_run_leaves_every_embedding_and_a_list_that_is_read_back(balr: Command, corpus: Path, tmp_path: Path) -> None:
    (corpus / "list.csv").write_text(
        "id,audio,speaker,age\n" + "".join(f"u{n},spk{n % 2}/utt{n}.wav,s{n % 2},{n}0\n" for n in range(6))
    )
    assert balr(f"input={corpus / 'list.csv'}", "save_dir=out") == 0
    listed = rows(tmp_path / "out" / "metadata.csv")
    assert list(listed[0]) == ["id", "audio", "speaker", "embedding", "crc32", "age"]
    crc32 = zlib.crc32((tmp_path / "out" / "spk1" / "utt1_emb.npy").read_bytes())
    assert listed[1] == {
        "id": "u1",
        "crc32": f"{crc32:08x}",
        "audio": str(corpus / "spk1" / "utt1.wav"),
        "speaker": "s1",
        "embedding": "spk1/utt1_emb.npy",
        "age": "10",
    }
    again = AudioDataset.from_csv(tmp_path / "out" / "metadata.csv")
    assert [(u.id, u.speaker, u.extra["age"]) for u in again.utterances] == [
        (f"u{n}", f"s{n % 2}", f"{n}0") for n in range(6)
    ]
    first = again[0]
    assert first.embedding is not None and first.embedding.shape == (32,) and np.isfinite(first.embedding).all()
    assert not (tmp_path / "out" / "failures.csv").exists()
    assert not list(corpus.rglob("*_emb*")), "nothing is written into the corpus"


def test_the_same_command_again_does_only_what_is_left(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    whole = embeddings(tmp_path / "out")
    (tmp_path / "out" / "spk0" / "utt2_emb.npy").unlink()
    embedded = _count_embedded(monkeypatch)
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert len(embedded) == 1 and embeddings(tmp_path / "out") == whole
    monkeypatch.setattr(WespeakerModel, "__init__", _must_not_run)
    assert balr(f"input={corpus}", "save_dir=out") == 0


def test_force_embeds_all_again(balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    np.save(tmp_path / "out" / "spk0" / "utt0_emb.npy", np.zeros(32, np.float32))
    embedded = _count_embedded(monkeypatch)
    assert balr(f"input={corpus}", "save_dir=out", "force=true") == 0
    assert len(embedded) == 6
    assert np.load(tmp_path / "out" / "spk0" / "utt0_emb.npy").any()


def test_an_embedding_beside_the_audio_does_not_count_as_done_elsewhere(
    balr: Command, corpus: Path, tmp_path: Path
) -> None:
    assert balr(f"input={corpus}", "save_dir=null") == 0
    assert (corpus / "spk0" / "utt0_emb.npy").is_file()
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert len(embeddings(tmp_path / "out")) == 6


def test_save_output_false_computes_and_writes_nothing(balr: Command, corpus: Path, tmp_path: Path) -> None:
    assert balr(f"input={corpus}", "save_dir=out", "save_output=false") == 0
    assert not (tmp_path / "out").exists() and not embeddings(corpus)


def test_vectors_can_be_text(balr: Command, corpus: Path, tmp_path: Path) -> None:
    assert balr(f"input={corpus}", "save_dir=npy") == 0
    assert balr(f"input={corpus}", "save_dir=txt", "vector_format=txt") == 0
    text = AudioDataset.from_csv(tmp_path / "txt" / "metadata.csv")[3].embedding
    assert text is not None and np.array_equal(text, np.load(tmp_path / "npy" / "spk1" / "utt1_emb.npy"))


def test_bad_utterances_are_listed_with_reasons_and_the_rest_is_embedded(
    balr: Command, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = speechlike(1.0)
    whole = (corpus / "spk0" / "utt0.wav").read_bytes()
    bad = {
        "text.wav": "not readable as audio",
        "empty.wav": "empty",
        "cut.wav": "truncated",
        "none.wav": "no samples",
        "short.wav": "too short: 0.010 s, XVEC needs 0.1",
        "nan.wav": "not numbers",
    }
    (corpus / "text.wav").write_text("this is text")
    (corpus / "empty.wav").write_bytes(b"")
    (corpus / "cut.wav").write_bytes(whole[: len(whole) // 2])
    write_wav(corpus / "none.wav", samples[:0])
    write_wav(corpus / "short.wav", samples[:160])
    write_wav(corpus / "nan.wav", np.where(np.arange(16_000) == 9, np.nan, samples), subtype="FLOAT")
    assert balr(f"input={corpus}", "save_dir=out") == 1
    failures = {row["id"]: row for row in rows(tmp_path / "out" / "failures.csv")}
    assert failures.keys() == bad.keys()
    for name, reason in bad.items():
        assert reason in failures[name]["reason"]
        assert failures[name]["audio"] == str(corpus / name)
        assert failures[name]["stage"] == ("embed" if name == "short.wav" else "decode")
    assert len(rows(tmp_path / "out" / "metadata.csv")) == len(embeddings(tmp_path / "out")) == 6
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert [line.split()[-1] for line in printed.splitlines() if line.split()[:1] == ["failed"]] == ["6"]

    for name in bad:
        (corpus / name).unlink()
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert not (tmp_path / "out" / "failures.csv").exists()


def test_an_embedding_whose_audio_went_bad_is_gone_after_force(balr: Command, corpus: Path, tmp_path: Path) -> None:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    (corpus / "spk0" / "utt0.wav").write_text("this is text now")
    assert balr(f"input={corpus}", "save_dir=out", "force=true") == 1
    assert len(embeddings(tmp_path / "out")) == len(rows(tmp_path / "out" / "metadata.csv")) == 5
    assert balr(f"input={corpus}", "save_dir=out") == 1


def test_odd_names_come_back_from_the_list(balr: Command, corpus: Path, tmp_path: Path) -> None:
    odd = ["new\nline.wav", "tab\t.wav", "[b]bold.wav", 'quote".wav', "é.wav", os.fsdecode(b"caf\xe9.wav")]
    for name in odd:
        os.link(corpus / "spk0" / "utt0.wav", corpus / name)
    assert balr(f"input={corpus}", "save_dir='out[v2]'") == 0
    again = AudioDataset.from_csv(tmp_path / "out[v2]" / "metadata.csv")
    assert {u.id for u in again.utterances} >= set(odd)
    assert all(item.embedding is not None for item in again)


def _count_embedded(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    whole = WespeakerModel.embed

    def counted(self: WespeakerModel, waveforms: list[torch.Tensor], **settings: float) -> torch.Tensor:
        seen.extend(waveforms)
        return whole(self, waveforms, **settings)

    monkeypatch.setattr(WespeakerModel, "embed", counted)
    return seen


def _must_not_run(*_: object, **__: object) -> None:
    raise AssertionError("the model is loaded although nothing is left to do")
