"""Every experiment composes to a sweep of configs that exist, and one is run on a tiny checkpoint."""

from pathlib import Path

import numpy as np
import pytest
from conftest import rows
from hydra import compose, initialize_config_dir
from hydra.types import RunMode

from balr.composition import register
from balr.config import config_dir
from balr.main import main

EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_a_sweep_whose_every_job_composes(name: str) -> None:
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("config", overrides=["input=x", f"+experiment={name}"], return_hydra_config=True)
        assert cfg.hydra.mode == RunMode.MULTIRUN
        for key, values in cfg.hydra.sweeper.params.items():
            assert len(values.split(",")) > 1
            for value in values.split(","):
                compose("config", overrides=["input=x", f"+experiment={name}", f"{key}={value}"])


def test_an_experiment_gives_each_of_its_jobs_a_folder(corpus: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "mine").symlink_to(tiny_checkpoint)
    model = ["embeddings.model.model_dir=mine", "data=serial"]
    assert main([f"input={corpus}", "+experiment=bf16_against_fp32", *model]) == 0
    folders = sorted(path.parent for path in (tmp_path / "outputs" / "embeddings").rglob("metadata.csv"))
    labels = ["mine+data-serial+experiment-bf16_against_fp32+precision-" + precision for precision in ("bf16", "fp32")]
    assert [folder.name for folder in folders] == labels
    for listed in rows(folders[0] / "metadata.csv"):
        low, whole = (np.load(folder / listed["embedding"]) for folder in folders)
        assert low @ whole / np.linalg.norm(low) / np.linalg.norm(whole) > 0.9999 and not np.array_equal(low, whole)
