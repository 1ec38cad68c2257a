"""What a notebook uses: public names without torch at import, models by any name, one file or array at a time."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import TINY, speechlike, write_wav
from untrained_checkpoint import write_checkpoint

import balr
from balr import AudioDataset, WespeakerModel, load_model
from balr.errors import CheckpointError, UtteranceError
from balr.records import Part


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WespeakerModel:
    folder = write_checkpoint(tmp_path_factory.mktemp("api") / "tiny", "CAMPPlus", TINY)
    return load_model(folder, device="cpu")


def test_public_names_are_found_and_importing_the_package_loads_no_torch() -> None:
    assert all(getattr(balr, name) for name in balr.__all__) and set(balr.__all__) <= set(dir(balr))
    program = (
        "import sys, balr; assert 'torch' not in sys.modules; balr.DataConfig(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        balr.nothing  # noqa: B018


def test_a_folder_is_loaded_whatever_its_two_files_are_called(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "mine", "CAMPPlus", TINY)
    (folder / "avg_model.pt").rename(folder / "best.pt")
    (folder / "config.yaml").rename(folder / "train.yml")
    assert load_model(folder, device="cpu").embedding_dim == 32
    (folder / "other.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"weights \(.pt\) is expected, and there is best.pt, other.pt"):
        load_model(folder)


def test_a_mistyped_name_suggests_what_was_meant() -> None:
    with pytest.raises(CheckpointError, match="campplus_lm"):
        load_model("camplus_lm")


def test_a_published_name_and_a_repository_are_looked_for_on_the_hub() -> None:
    for name in ("campplus_lm", "Wespeaker/wespeaker-voxceleb-campplus-LM"):
        with pytest.raises(CheckpointError, match=r"campplus-LM: avg_model.pt and config.yaml at revision 9bdc"):
            load_model(name, device="cpu")


def test_a_file_an_array_and_a_dataset_give_the_same_embedding(model: WespeakerModel, tmp_path: Path) -> None:
    samples = (speechlike(1.5) * 32768).round().astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    ((id_, expected),) = model.extract_embeddings(tmp_path)
    assert id_ == "a.wav" and expected.shape == (32,) and expected.dtype == np.float32
    scaled = samples.astype(np.float32) / 32768
    for waveform in (
        samples,
        scaled,
        torch.from_numpy(scaled),
        np.stack([samples, samples]),
        scaled.astype(np.float64),
    ):
        assert np.array_equal(model.embed_waveform(waveform, 16_000), expected)
    assert np.array_equal(model.embed_file(tmp_path / "a.wav"), expected)
    assert np.array_equal(model.extract_embeddings(AudioDataset.from_path(tmp_path))[0][1], expected)
    part = model.embed_file(str(tmp_path / "a.wav"), part=Part(0.25, 1.25))
    assert np.array_equal(part, model.embed_waveform(samples[4_000:20_000], 16_000))


def test_an_array_of_another_rate_is_resampled_as_a_file_is(model: WespeakerModel, tmp_path: Path) -> None:
    samples = speechlike(1.0, rate_hz=24_000)
    path = write_wav(tmp_path / "a.wav", samples, rate_hz=24_000, subtype="FLOAT")
    assert np.array_equal(model.embed_waveform(samples, 24_000), model.embed_file(path))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda samples: samples * np.nan, "not numbers"),
        (lambda samples: samples[:0], "empty"),
        (lambda samples: samples[:, None], r"shape \(16000, 1\)"),
        (lambda samples: samples[None, None], "shape"),
        (lambda samples: samples.astype(complex), "complex"),
        (lambda samples: samples[:100], "too short"),
    ],
)
def test_what_is_no_waveform_is_one_clear_error(
    model: WespeakerModel, make: Callable[[np.ndarray], np.ndarray], reason: str
) -> None:
    with pytest.raises(UtteranceError, match=reason):
        model.embed_waveform(make(speechlike(1.0)), 16_000)


def test_a_rate_that_is_none_is_one_clear_error(model: WespeakerModel) -> None:
    with pytest.raises(UtteranceError, match="sample_rate_hz=0"):
        model.embed_waveform(speechlike(1.0), 0)


def test_reprs_say_what_a_thing_is(model: WespeakerModel, corpus: Path) -> None:
    assert repr(model) == f"<WespeakerModel: CAMPPlus from {model.files.source} on cpu>"
    assert (
        repr(AudioDataset.from_dir(corpus)) == f"<AudioDataset: 6 utterances in {corpus}, embeddings beside the audio>"
    )


def test_failures_are_part_of_the_result(model: WespeakerModel, corpus: Path) -> None:
    (corpus / "text.wav").write_text("no audio")
    result = model.extract_embeddings(corpus)
    assert isinstance(result, list) and len(result) == 6
    (failure,) = result.failures
    assert (failure.id, failure.stage) == ("text.wav", "decode") and "not readable as audio" in failure.reason
    saved = model.extract_embeddings(corpus, stream_save=True)
    assert saved == [] and saved.failures == (failure,)
