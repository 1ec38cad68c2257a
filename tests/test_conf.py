"""Every yaml composes, every target takes its keys, and a model's facts never stick to another."""

import re
from dataclasses import fields
from importlib.util import find_spec
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
from balr.composition import corpus_name, job_label
from balr.composition import register as register_config
from balr.config import DataConfig, FeaturesConfig, ModelConfig, RunConfig, config_dir
from balr.embeddings.wespeaker import WespeakerModel

CONF = config_dir()
LAUNCHERS = sorted(path.stem for path in (CONF / "hydra" / "launcher").glob("[!_]*.yaml"))
MODELS = sorted(path.stem for path in (CONF / "embeddings" / "model").glob("[!_]*.yaml"))
PRESETS = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    register_config()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["input=corpus", *overrides])


EACH_ONCE = [*((model, "auto") for model in MODELS), *((MODELS[0], preset) for preset in PRESETS if preset != "auto")]


@pytest.mark.parametrize(("model", "data"), EACH_ONCE)
def test_every_model_and_every_preset_composes(model: str, data: str) -> None:
    cfg = composed(f"embeddings/model={model}", f"data={data}")
    assert not OmegaConf.missing_keys(cfg)
    run = OmegaConf.to_object(cfg)
    assert isinstance(run, RunConfig) and isinstance(run.data, DataConfig)
    assert run.embeddings.model.features == FeaturesConfig()
    if model == "demo":  # which ships with balr
        assert (Path(cfg.embeddings.model.model_dir) / cfg.embeddings.model.model_name).is_file()
    else:
        assert published_checkpoints()[cfg.embeddings.model.model_repo]["name"] == model


def test_the_settings_of_a_model_are_those_it_takes() -> None:
    settings = {field.name for field in fields(ModelConfig)} - {"_target_"}
    assert settings <= {*signature(WespeakerModel).parameters}


def test_every_choice_of_loading_and_of_features_is_explained_beside_the_configs() -> None:
    for kind, path in ((DataConfig, "data/auto.yaml"), (FeaturesConfig, "embeddings/model/_wespeaker.yaml")):
        text = (CONF / path).read_text()
        assert all(field.name in text for field in fields(kind))


def test_every_key_of_the_run_has_a_value_and_a_comment() -> None:
    lines = (CONF / "config.yaml").read_text().splitlines()
    keys = [line for line in lines if line[:1].isalpha() and not line.startswith(("defaults", "hydra"))]
    assert keys and all("#" in line for line in keys)


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_yaml_is_plain(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict | None)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_composes_and_explains_what_a_user_sets(launcher: str) -> None:
    if launcher == "ray_cluster" and find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'balr[ray]'")
    register_config()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = compose("config", overrides=["input=x", f"hydra/launcher={launcher}"], return_hydra_config=True).hydra
    assert "Launcher" in OmegaConf.to_container(hydra.launcher, resolve=False)["_target_"]
    lines = (CONF / "hydra" / "launcher" / f"{launcher}.yaml").read_text().splitlines()
    assert all("#" in line for line in lines if re.match(r" *\w+: .", line) and "verbose" not in line)


def test_conf_holds_no_python() -> None:
    assert not list(CONF.rglob("*.py"))


def test_the_shipped_table_agrees_with_what_the_models_are() -> None:
    for checkpoint in published_checkpoints().values():
        assert float(checkpoint["parameters_millions"]) > 1 and checkpoint["embedding_dim"] in ("192", "256", "512")
        assert len([name for name in ("eer_o", "eer_e", "eer_h") if checkpoint[name]]) in (0, 3)


def test_overriding_the_repository_carries_nothing_of_the_default_model_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # as in a notebook; an earlier run leaves its own
    cfg = composed("embeddings.model.model_repo=me/mine")
    assert cfg.embeddings.model.revision is None
    assert Path(cfg.save_dir) == Path("outputs/embeddings") / corpus_name("corpus") / "me--mine"


SECOND = "Wespeaker/wespeaker-voxceleb-resnet293-LM"


@pytest.mark.parametrize(
    ("overrides", "alone", "in_a_sweep"),
    [
        ([], "resnet34_lm", "resnet34_lm"),
        (["input=x", "force=true", "save_dir=y", "hydra/launcher=z"], "resnet34_lm", "resnet34_lm"),
        (["device=cpu"], "resnet34_lm", "resnet34_lm+device-cpu"),
        (["channel=0"], *["resnet34_lm+channel-0"] * 2),
        (["channel=null"], "resnet34_lm", "resnet34_lm+channel-null"),
        (["precision=fp32"], "resnet34_lm", "resnet34_lm+precision-fp32"),
        (["precision='bf16'"], "resnet34_lm+precision-bf16", "resnet34_lm+precision-bf16"),
        (["+experiment=mine"], "resnet34_lm+experiment-mine", "resnet34_lm+experiment-mine"),
        (["embeddings.model.model_repo=me/mine"], "me--mine", "me--mine"),
        (["embeddings.model.features.window_type=povey"], *["resnet34_lm+features.window_type-povey"] * 2),
        (
            [f"embeddings.model.model_repo={SECOND}", "embeddings.model.model_name=avg_model.pt"],
            *["resnet293_lm+model_name-avg_model.pt"] * 2,
        ),
        (["embeddings.model.model_dir=mine"], "mine", "mine"),
        (["embeddings.model.model_dir=mine", "precision=bf16"], *["mine+precision-bf16"] * 2),
        (["embeddings/model=resnet34_lm", "embeddings.model.model_repo=a/b"], *["resnet34_lm+model_repo-a--b"] * 2),
        (["embeddings/model=resnet34_lm", "embeddings.model.model_dir=mine/"], *["resnet34_lm+model_dir-mine"] * 2),
    ],
)
def test_results_are_named_after_what_was_computed(overrides: list[str], alone: str, in_a_sweep: str) -> None:
    assert job_label("resnet34_lm", overrides, is_sweep=False) == alone
    assert job_label("resnet34_lm", overrides, is_sweep=True) == in_a_sweep


@pytest.mark.parametrize("folder", ["a/mine", "/models/mine", "/mine", "resnet34_lm"])
def test_a_folder_of_a_checkpoint_whose_name_could_mean_another_gets_a_hash(folder: str) -> None:
    label = job_label("resnet34_lm", [f"embeddings.model.model_dir={folder}"], is_sweep=False)
    assert re.fullmatch(Path(folder).name + "-[0-9a-f]{8}", label)
    assert label != job_label("resnet34_lm", [f"embeddings.model.model_dir=other{folder}"], is_sweep=False)


@given(first=st.dictionaries(st.sampled_from(["device", "channel", "embeddings.model.revision"]), st.text("+- ,a1b")))
def test_jobs_with_other_values_have_other_names(first: dict[str, str]) -> None:
    second = {**first, "device": first.get("device", "") + "+"}
    labels = [job_label("m", [f"{k}={v}" for k, v in job.items()], is_sweep=True) for job in (first, second)]
    assert labels[0] != labels[1] and not re.search("[=, ]", "".join(labels))


@given(choice=st.text(), values=st.lists(st.text(), max_size=5))
def test_a_label_is_one_folder_s_name_whatever_was_overridden(choice: str, values: list[str]) -> None:
    label = job_label(choice, [f"{key}={value}" for key, value in zip("abcde", values, strict=False)], is_sweep=True)
    assert label == Path(label).name and label not in ("", ".", "..")
    assert len(label.encode()) <= 255 and "\0" not in label


def test_a_corpus_is_named_after_its_folder_or_its_list(tmp_path: Path) -> None:
    folder = tmp_path / "voxceleb2"
    folder.mkdir()
    assert corpus_name(str(folder)) == "voxceleb2"
    assert corpus_name(str(folder / "metadata.csv")) == "voxceleb2-metadata"
