"""Every experiment composes to a sweep of configs that exist, and one is run on a tiny checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, needs_bf16, rows, speechlike, write_wav
from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from reference import Reference, cosine, relative_difference

from balr import load_model
from balr.composition import register
from balr.config import config_dir
from balr.main import main

EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_so_does_every_job_of_a_sweep(name: str) -> None:
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("config", overrides=["input=x", f"+experiment={name}"], return_hydra_config=True)
        params = cfg.hydra.sweeper.params or {}
        assert (cfg.hydra.mode == RunMode.MULTIRUN) == bool(params)
        for key, values in params.items():
            assert len(values.split(",")) > 1
            for value in values.split(","):
                compose("config", overrides=["input=x", f"+experiment={name}", f"{key}={value}"])


@needs_bf16
def test_an_experiment_gives_each_of_its_jobs_a_folder(corpus: Path, tmp_path: Path, tiny_campplus: Path) -> None:
    (tmp_path / "mine").symlink_to(tiny_campplus)
    model = ["embeddings.model.model_dir=mine", "data=serial"]
    assert main([f"input={corpus}", "+experiment=bf16_against_fp32", *model]) == 0
    folders = sorted(path.parent for path in (tmp_path / "outputs" / "embeddings").rglob("metadata.csv"))
    labels = ["mine+data-serial+experiment-bf16_against_fp32+precision-" + precision for precision in ("bf16", "fp32")]
    assert [folder.name for folder in folders] == labels
    for listed in rows(folders[0] / "metadata.csv"):
        low, whole = (np.load(folder / listed["embedding"]) for folder in folders)
        assert low @ whole / np.linalg.norm(low) / np.linalg.norm(whole) > 0.9999 and not np.array_equal(low, whole)


def test_embeddings_for_the_earlier_toolkit_are_those_of_unscaled_audio(corpus: Path, tiny_campplus: Path) -> None:
    for number, path in enumerate(sorted(corpus.rglob("*.wav"))):  # quiet, where the floor of the features shows
        write_wav(path, 0.003 * speechlike(1.5, seed=number))
    model = [f"embeddings.model.model_dir={tiny_campplus}", "data=serial"]
    assert main([f"input={corpus}", "+experiment=balr2", "save_dir=out", *model]) == 0
    unscaled, scaled = (Reference(tiny_campplus, "campplus", scale=scale) for scale in (1, 1 << 15))
    for listed in rows(Path("out/metadata.csv")):
        assert listed["embedding"].endswith("_emb.txt")
        found, audio = np.loadtxt(Path("out") / listed["embedding"]), Path(listed["audio"])
        assert relative_difference(found, unscaled.embed(audio)) < 1e-4
        assert relative_difference(found, scaled.embed(audio)) > 1e-3


def test_the_model_that_ships_with_balr_is_wespeakers_network_with_its_weights(corpus: Path) -> None:
    reference = Reference(REPOSITORY / "resources" / "demo" / "checkpoint", "ecapa_tdnn")
    model = load_model("demo", device="cpu")
    assert model.embedding_dim == 128
    for id_, embedding in model.extract_embeddings(str(corpus)):
        theirs = reference.embed(corpus / id_)
        assert relative_difference(embedding, theirs) < 1e-4 and cosine(embedding, theirs) > 0.999999


def test_the_demo_tells_its_voices_apart_and_is_small() -> None:
    demo = REPOSITORY / "resources" / "demo"
    evaluation = ["+evaluation=trials", f"evaluation.trials={demo / 'trials.csv'}", "evaluation.bootstrap=0"]
    run = [f"input={demo / 'metadata.csv'}", "save_dir=out", "embeddings/model=demo", "data=serial"]
    assert main([*run, *evaluation]) == 0
    assert len(list(Path("out").rglob("*_emb.npy"))) == 32
    found = json.loads(Path("out/evaluation/trials/evaluation.json").read_text())
    assert found["trial_counts"] == {"targets": 48, "nontargets": 448} and 0 < found["metrics"]["eer"]["value"] < 0.15
    assert (demo / "checkpoint" / "avg_model.pt").stat().st_size < 3.5 * (1 << 20)
    assert sum(path.stat().st_size for path in demo.glob("[!c]*/*.flac")) < 1.5 * (1 << 20)
