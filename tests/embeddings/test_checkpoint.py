"""Reading the two files of a checkpoint, also where they are not what they say."""

import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY
from untrained_checkpoint import write_checkpoint

from balr.config import FeaturesConfig
from balr.embeddings.architectures import ARCHITECTURES, build_network
from balr.embeddings.devices import select_device
from balr.embeddings.wespeaker import WespeakerModel
from balr.errors import CheckpointError, ConfigError


def broken(checkpoint: Path, folder: Path, config: dict[str, object] | None = None, *, text: str = "") -> Path:
    """Copy a checkpoint with another config.yaml: some keys changed, or other text altogether."""
    shutil.copytree(checkpoint, folder)
    path = folder / "config.yaml"
    path.write_text(text or yaml.safe_dump({**yaml.safe_load(path.read_text()), **(config or {})}))
    return folder


def load(folder: Path, *, device: str = "cpu", features: FeaturesConfig | None = None) -> WespeakerModel:
    overrides = features or FeaturesConfig()
    return WespeakerModel("", "avg_model.pt", model_dir=folder, device=device, features=overrides)


class _Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch run",)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_malicious_pickle_is_refused_and_does_nothing(tiny_campplus: Path, tmp_path: Path, zipped: bool) -> None:
    folder = broken(tiny_campplus, tmp_path / "evil")
    if zipped:
        torch.save({"weight": _Malicious()}, folder / "avg_model.pt")
    else:
        (folder / "avg_model.pt").write_bytes(pickle.dumps({"weight": _Malicious()}))
    with pytest.raises(CheckpointError, match="could run code"):
        load(folder)
    assert not Path("run").exists()


def test_a_config_with_python_tags_is_refused_and_does_nothing(tiny_campplus: Path, tmp_path: Path) -> None:
    text = "model: !!python/object/apply:os.system ['touch run']\n"
    with pytest.raises(CheckpointError, match="not plain yaml"):
        load(broken(tiny_campplus, tmp_path / "tags", text=text))
    assert not Path("run").exists()


def test_the_weights_of_another_architecture_are_refused(tiny_campplus: Path, tmp_path: Path) -> None:
    config = {"model": "XVEC", "model_args": {"feat_dim": 80, "embed_dim": 32, "pooling_func": "TSTP"}}
    with pytest.raises(CheckpointError, match="not the weights of this architecture"):
        load(broken(tiny_campplus, tmp_path / "other", config))


def test_a_missing_tensor_is_an_error_and_a_projection_head_is_not(tiny_campplus: Path, tmp_path: Path) -> None:
    folder = broken(tiny_campplus, tmp_path / "partial")
    weights = torch.load(folder / "avg_model.pt", weights_only=True)
    assert "projection.weight" in weights
    del weights["head.conv1.weight"]
    torch.save(weights, folder / "avg_model.pt")
    with pytest.raises(CheckpointError, match=r"1 missing \(first: head.conv1.weight\)"):
        load(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": "CAMPPlus2"}, r"unknown architecture 'CAMPPlus2'. Did you mean CAMPPlus\? Known: XVEC"),
        ({"model": "torch"}, "unknown architecture"),
        ({"model": {"_target_": "pyannote.audio.models"}}, "pyannote"),
        ({"model_args": {"feat_dim": 80, "colour": 3}}, "does not take model_args"),
        ({"model_args": "none"}, "model_args must be a mapping"),
        ({"model_args": {**TINY, "feat_dim": 72}}, "trained with feat_dim=72, but the features have 80 mel bins"),
        ({"dataset_args": {"frontend": "s3prl"}}, "the front end s3prl is not supported.*WavLM"),
        ({"dataset_args": {"frontend": "w2vbert"}}, "the front end w2vbert is not supported.*W2V-BERT"),
        ({"dataset_args": {"frontend": "whisper_encoder"}}, "the front end whisper_encoder is not supported.*Whisper"),
        ({"dataset_args": {"cmvn_args": {"norm_var": True}}}, "variance normalisation is not supported"),
    ],
)
def test_a_config_that_cannot_be_run_says_why(
    tiny_campplus: Path, tmp_path: Path, config: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        load(broken(tiny_campplus, tmp_path / "broken", config))
    assert "\n" not in str(error.value) and "config.yaml" in str(error.value)


def test_features_that_contradict_the_network_are_refused(tiny_campplus: Path) -> None:
    with pytest.raises(CheckpointError, match="trained with feat_dim=80, but the features have 64 mel bins"):
        load(tiny_campplus, features=FeaturesConfig(num_mel_bins=64))
    with pytest.raises(ConfigError, match="window_type=hann: must be one of hamming"):
        load(tiny_campplus, features=FeaturesConfig(window_type="hann"))


def test_an_absent_device_names_those_there_are(tiny_campplus: Path) -> None:
    for device in ("cuda:99", "tpu", "nonsense"):
        with pytest.raises(ConfigError, match=r"not on this machine, which has cpu"):
            load(tiny_campplus, device=device)


def test_a_gpu_whose_driver_is_too_old_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(select_device("auto")) == "cpu"
    for device in ("cuda", "cuda:0"):
        with pytest.raises(ConfigError, match=rf"device={device}: not on this machine, which has cpu\."):
            select_device(device)


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"ReDimNet2Wrap", "ReDimNet2Custom"}))
def test_every_architecture_is_a_constructor_of_the_installed_wespeaker(architecture: str) -> None:
    small = architecture in {"XVEC", "CAMPPlus", "ECAPA_TDNN_c512", "ResNet18", "Gemini_DF_ResNet60", "REPVGG_TINY_A0"}
    if small:
        assert not build_network(architecture, {"feat_dim": 80, "embed_dim": 16, "pooling_func": "TSTP"}).training
    with pytest.raises(CheckpointError, match="does not take model_args"):
        build_network(architecture, {"colour": 3})


def test_importing_an_architecture_leaves_the_modules_of_wespeaker_as_they_were() -> None:
    before = {name: module for name, module in sys.modules.items() if name.startswith("wespeaker")}
    build_network("XVEC", {"feat_dim": 80, "embed_dim": 16})
    assert {name: module for name, module in sys.modules.items() if name.startswith("wespeaker")} == before


def test_a_checkpoint_wrapped_in_a_state_dict_loads(tiny_campplus: Path, tmp_path: Path) -> None:
    folder = broken(tiny_campplus, tmp_path / "wrapped")
    weights = torch.load(folder / "avg_model.pt", weights_only=True)
    torch.save({"state_dict": weights, "epoch": torch.tensor(3)}, folder / "avg_model.pt")
    waveform = torch.randn(16_000, generator=torch.Generator().manual_seed(1)) * 0.1
    assert torch.equal(load(folder).embed([waveform]), load(tiny_campplus).embed([waveform]))


def test_a_config_without_rate_frontend_and_feat_dim_means_16_khz_fbank(tmp_path: Path) -> None:
    write_checkpoint(
        tmp_path / "bare", "CAMPPlus", TINY, dataset_args={"fbank_args": {"num_mel_bins": 80, "dither": 1.0}}
    )
    config = yaml.safe_load((tmp_path / "bare" / "config.yaml").read_text())
    del config["model_args"]["feat_dim"]
    (tmp_path / "bare" / "config.yaml").write_text(yaml.safe_dump(config))
    assert load(tmp_path / "bare").sample_rate_hz == 16_000
