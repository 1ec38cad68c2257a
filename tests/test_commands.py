"""Commands as a user types them, each in a process of its own, with a local stand-in for the Hub."""

import csv
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, SAMPLE, TINY, run_command
from fake_hub import FakeHub
from untrained_checkpoint import write_checkpoint

from balr.checkpoints import published_checkpoints

RESNET34 = "Wespeaker/wespeaker-voxceleb-resnet34-LM"
RESNET293 = "Wespeaker/wespeaker-voxceleb-resnet293-LM"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[FakeHub]:
    """Serve a ResNet34 under the default model's name, and something smaller under that of ResNet293."""
    small = write_checkpoint(
        tmp_path_factory.mktemp("hub") / "resnet34",
        "ResNet34",
        {"feat_dim": 80, "embed_dim": 256},
        model_name="avg_model",
    )
    revisions = {repo: checkpoint["revision"] for repo, checkpoint in published_checkpoints().items()}
    served = {(RESNET34, revisions[RESNET34]): small, (RESNET293, revisions[RESNET293]): tiny_checkpoint}
    with FakeHub(served).serving() as serving:
        yield serving


@pytest.fixture
def project(tmp_path: Path, sample: Path) -> Path:
    """Return a folder with resources/data/voxceleb2: two utterances of the real sample."""
    folder = tmp_path / "resources" / "data" / "voxceleb2"
    with (sample / "metadata.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))[::9]
    folder.mkdir(parents=True)
    for row in listed:
        (folder / row["audio"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SAMPLE / row["audio"], folder / row["audio"])
    lines = ["id,audio,speaker", *(f"{row['id']},{row['audio']},{row['speaker']}" for row in listed)]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def environment(hub: FakeHub, home: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hub"), "HF_HUB_OFFLINE": "0"}


@pytest.mark.slow  # tests/test_docs.py runs the same in this process
def test_the_first_example_works_as_written_and_again_without_the_hub(hub: FakeHub, project: Path) -> None:
    command = ("balr", "extract", "resources/data/voxceleb2/metadata.csv")
    done = run_command(*command, cwd=project, **environment(hub, project))
    assert done.returncode == 0, done.stderr
    out = project / "outputs" / "embeddings" / "resources-data-voxceleb2-metadata" / "resnet34_lm"
    files = sorted(out.rglob("*_emb.npy"))
    assert len(files) == 2 and np.load(files[0]).shape == (256,)
    assert {request.rpartition("/")[2] for request in hub.requests} == {"avg_model", "config.yaml"}
    for file in files:
        file.unlink()
    offline = {"HF_HOME": str(project / "hub"), "HF_HUB_OFFLINE": "1"}
    assert run_command(*command, cwd=project, **offline).returncode == 0
    assert sorted(out.rglob("*_emb.npy")) == files


@pytest.mark.slow
def test_the_second_example_works_as_written_save_for_the_device(hub: FakeHub, project: Path) -> None:
    (project / "DATA").symlink_to(project / "resources" / "data" / "voxceleb2")
    arguments = "extract --force --save-dir D --device cpu DATA/metadata.csv"
    overrides = [f"embeddings.model.model_repo={RESNET293}", "embeddings.model.model_name=avg_model.pt"]
    hub.requests.clear()
    done = run_command("balr", *arguments.split(), *overrides, cwd=project, **environment(hub, project))
    assert done.returncode == 0, done.stderr
    revision = published_checkpoints()[RESNET293]["revision"]
    assert {request.rpartition("/")[0] for request in hub.requests} == {f"/{RESNET293}/resolve/{revision}"}
    assert len(list((project / "D").rglob("*_emb.npy"))) == 2


@pytest.mark.slow
def test_a_sweep_over_models_and_launchers_gives_the_same_files(tmp_path: Path, corpus: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        write_checkpoint(tmp_path / name, "CAMPPlus", TINY, seed=seed)
    found = []
    for launcher in ("basic", "joblib_cpu"):
        arguments = ["-m", "embeddings.model.model_dir=one,two", "embeddings.model.model_name=avg_model.pt"]
        arguments += [f"hydra/launcher={launcher}", f"save_dir={launcher}", "device=cpu"]
        done = run_command("python", "-m", "balr.main", "input=corpus", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        folder = tmp_path / launcher
        found.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*_emb.npy")})
    assert len(found[0]) == 12 and found[0] == found[1]


@pytest.mark.slow
def test_one_failing_job_of_a_parallel_sweep_does_not_stop_the_other(tmp_path: Path, corpus: Path) -> None:
    write_checkpoint(tmp_path / "good", "CAMPPlus", TINY)
    (tmp_path / "bad").mkdir()
    arguments = ["embeddings.model.model_dir=bad,good", "embeddings.model.model_name=avg_model.pt"]
    arguments += ["embeddings.model.model_repo=''", "hydra/launcher=joblib_cpu"]
    done = run_command("balr", "extract", "corpus", "-m", *arguments, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert len(list((tmp_path / "outputs").rglob("*_emb.npy"))) == 6


@pytest.mark.slow
def test_doors_answer_quickly(tmp_path: Path) -> None:
    for command in (["--help"], ["models"], ["extract", "x", "--cfg", "job"]):
        times = []
        for _ in range(5):
            started = time.monotonic()
            assert run_command("balr", *command, cwd=tmp_path).returncode == 0
            times.append(time.monotonic() - started)
        assert statistics.median(times) < 2.0, command


@pytest.mark.slow
def test_a_built_wheel_runs_from_another_folder(tmp_path: Path, tiny_checkpoint: Path, corpus: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), REPOSITORY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    site = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    installer = [Path(sys.executable).parent / "uv", "pip", "install", "--offline", "--no-deps"]
    subprocess.run([*installer, "--python", tmp_path / "venv" / "bin" / "python", wheel], check=True)
    # Everything but balr itself comes from this environment.
    (site / "dependencies.pth").write_text(str(Path(np.__file__).parents[1]) + "\n")

    balr = tmp_path / "venv" / "bin" / "balr"
    shown = subprocess.run(
        [balr, "extract", "x", "--cfg", "job"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "resnet34-LM" in shown.stdout
    where = subprocess.run(
        [balr.with_name("python"), "-c", "import balr.config; print(balr.config.config_dir())"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()) == site / "balr" / "conf"
    model = [f"embeddings.model.model_dir={tiny_checkpoint}", "embeddings.model.model_name=avg_model.pt"]
    for command in ([balr, "extract", "corpus"], [balr.with_name("python"), "-m", "balr.main", "input=corpus"]):
        done = subprocess.run(
            [*command, *model, "force=true"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "outputs").rglob("*_emb.npy"))) == 6
    for words in (
        ["extract", "corpus", "embeddings/model=demo", "--save-dir", "out", "+evaluation=trials"],
        ["report", "out"],
    ):
        done = subprocess.run([balr, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["model"]["name"] == str(
        site / "balr" / "demo_checkpoint"
    )


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&- <&-"])
def test_closed_streams_cost_a_run_nothing(tmp_path: Path, corpus: Path, tiny_checkpoint: Path, closed: str) -> None:
    model = f"embeddings.model.model_dir={tiny_checkpoint} embeddings.model.model_name=avg_model.pt"
    program = f"{sys.executable} -m balr.main input={corpus} save_dir=out {model} {closed}"
    done = subprocess.run(["/bin/sh", "-c", program], cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert len(list((tmp_path / "out").rglob("*_emb.npy"))) == 6
    (log,) = (tmp_path / "outputs").rglob("balr.log")
    assert "embedded       6" in log.read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_table_that_cannot_be_printed_is_one_line(tmp_path: Path) -> None:
    balr = Path(sys.executable).parent / "balr"
    done = subprocess.run(
        ["/bin/sh", "-c", f"{balr} models > /dev/full"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "ERROR what is printed cannot be written: No space left on device\n"
