"""Every yaml composes, every target takes its keys, and a model's facts never stick to another."""

import itertools
from inspect import signature
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from balr.checkpoints import published_checkpoints
from balr.composition import _MODEL_SETTINGS, build, corpus_name, job_label
from balr.composition import register as register_config
from balr.config import DataConfig, FeaturesConfig, config_dir
from balr.embeddings.wespeaker import WespeakerModel

CONF = config_dir()
MODELS = sorted(path.stem for path in (CONF / "embeddings" / "model").glob("[!_]*.yaml"))
PRESETS = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    register_config()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["input=corpus", *overrides])


@pytest.mark.parametrize(("model", "data"), list(itertools.product(MODELS, PRESETS)))
def test_every_model_composes_with_every_preset(model: str, data: str) -> None:
    cfg = composed(f"embeddings/model={model}", f"data={data}")
    assert not OmegaConf.missing_keys(cfg)
    assert isinstance(build(cfg.data, DataConfig), DataConfig)
    assert isinstance(build(cfg.embeddings.model.features, FeaturesConfig), FeaturesConfig)
    assert published_checkpoints()[cfg.embeddings.model.model_repo].name == model


def test_the_settings_of_a_model_that_are_checked_are_those_it_takes() -> None:
    assert {*_MODEL_SETTINGS} - {"_target_"} <= {*signature(WespeakerModel).parameters}
    assert {*_MODEL_SETTINGS} <= {*composed().embeddings.model}


def test_every_key_of_the_run_has_a_value_and_a_comment() -> None:
    lines = (CONF / "config.yaml").read_text().splitlines()
    keys = [line for line in lines if line[:1].isalpha() and not line.startswith(("defaults", "hydra"))]
    assert keys and all("#" in line for line in keys)


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_yaml_is_plain(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_conf_holds_no_python() -> None:
    assert not list(CONF.rglob("*.py"))


def test_the_shipped_table_agrees_with_what_the_models_are() -> None:
    for checkpoint in published_checkpoints().values():
        assert checkpoint.parameters_millions > 1 and checkpoint.embedding_dim in (192, 256, 512)
        assert checkpoint.eer_percent is None or len(checkpoint.eer_percent) == 3


def test_overriding_the_repository_carries_nothing_of_the_default_model_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # as in a notebook; an earlier run leaves its own
    cfg = composed("embeddings.model.model_repo=me/mine")
    assert cfg.embeddings.model.revision is None
    assert Path(cfg.save_dir) == Path("outputs/embeddings") / corpus_name("corpus") / "me--mine"


@pytest.mark.parametrize(
    ("choice", "overrides", "swept", "label"),
    [
        ("resnet34_lm", [], [], "resnet34_lm"),
        ("campplus", ["input=x", "embeddings/model=campplus", "device=cuda", "force=true"], [], "campplus"),
        (
            "campplus",
            ["embeddings/model=campplus", "device=cuda:0", "force=true"],
            ["device", "embeddings/model"],
            "campplus,device=cuda-0",
        ),
        ("resnet34_lm", ["embeddings.model.model_repo=me/mine"], [], "me--mine"),
        (
            "resnet34_lm",
            [
                "embeddings.model.model_repo=Wespeaker/wespeaker-voxceleb-resnet293-LM",
                "embeddings.model.model_name=avg_model.pt",
            ],
            [],
            "resnet293_lm,model_name=avg_model.pt",
        ),
        ("mine", ["embeddings.model.features.window_type=povey"], [], "mine,features.window_type=povey"),
    ],
)
def test_results_are_named_after_what_was_computed(
    choice: str, overrides: list[str], swept: list[str], label: str
) -> None:
    assert job_label(choice, overrides, swept) == label


@given(choice=st.text(), values=st.lists(st.text(), max_size=5))
def test_a_label_is_one_folder_s_name_whatever_was_overridden(choice: str, values: list[str]) -> None:
    label = job_label(choice, [f"embeddings.model.model_dir={value}" for value in values], ["device"])
    assert label == Path(label).name and label not in ("", ".", "..")
    assert len(label.encode()) <= 255 and "\0" not in label


def test_a_corpus_is_named_after_its_folder_or_its_list(tmp_path: Path) -> None:
    folder = tmp_path / "voxceleb2"
    folder.mkdir()
    assert corpus_name(str(folder)) == "voxceleb2"
    assert corpus_name(str(folder / "metadata.csv")) == "voxceleb2-metadata"
