"""Where a checkpoint's files come from: a folder, or a stand-in for the Hub that answers, refuses or keeps silent."""

import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from conftest import XVECTOR, Command, rows
from fake_hub import FakeHub
from untrained_checkpoint import write_checkpoint

from balr import cli, load_model
from balr.checkpoints import find_checkpoint, pinned_revision, published_checkpoints
from balr.embeddings.wespeaker import WespeakerModel
from balr.errors import CheckpointError
from balr.main import main

REPO = "Wespeaker/wespeaker-voxceleb-campplus"
REVISION = "acf623ad8ca746e50baa432255cf8fc57c669c45"


def point_to(url: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Send what huggingface_hub asks to an address, with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    files = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))


@pytest.fixture
def hub(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    repositories = {(REPO, REVISION): tiny_checkpoint, ("me/mine", "main"): tiny_checkpoint}
    with FakeHub(repositories).serving() as serving:
        point_to(serving.url, monkeypatch, tmp_path / "cache")
        yield serving


@pytest.fixture
def silent_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take connections and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        point_to(f"http://127.0.0.1:{server.getsockname()[1]}", monkeypatch, tmp_path / "cache")
        monkeypatch.setattr("balr.hub.TIMEOUT_SECONDS", (0.5, 0.5))
        yield


def balr_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["balr", *arguments])
    return cli.run_command()


def test_a_folder_that_holds_the_files_needs_no_network(hub: FakeHub, tiny_checkpoint: Path) -> None:
    WespeakerModel(REPO, "avg_model.pt", model_dir=tiny_checkpoint)
    assert hub.requests == []


def test_just_the_two_files_are_fetched_at_the_pinned_revision_and_once(hub: FakeHub) -> None:
    model = WespeakerModel(REPO, "avg_model.pt")
    asked = {f"/{REPO}/resolve/{REVISION}/{name}" for name in ("avg_model.pt", "config.yaml")}
    assert set(hub.requests) == asked and model.files.source == f"{REPO}@{REVISION}"
    hub.requests.clear()
    WespeakerModel(REPO, "avg_model.pt")
    assert hub.requests == []


def test_model_dir_is_where_files_are_downloaded_to(hub: FakeHub, tmp_path: Path) -> None:
    WespeakerModel(REPO, "avg_model.pt", model_dir=tmp_path / "models")
    assert (tmp_path / "models" / "avg_model.pt").is_file()
    hub.requests.clear()
    WespeakerModel(REPO, "avg_model.pt", model_dir=tmp_path / "models")
    assert hub.requests == []


def test_one_repository_s_download_does_not_pass_for_another_s(hub: FakeHub, tmp_path: Path) -> None:
    WespeakerModel(REPO, "avg_model.pt", model_dir=tmp_path / "models")
    with pytest.raises(CheckpointError, match=r"holds the files of Wespeaker/.*, not of me/mine@main"):
        WespeakerModel("me/mine", "avg_model.pt", model_dir=tmp_path / "models")
    assert WespeakerModel("", "avg_model.pt", model_dir=tmp_path / "models").architecture == "XVEC"


def test_a_repository_that_balr_does_not_ship_is_taken_from_main(hub: FakeHub) -> None:
    assert pinned_revision("me/mine") == "main" and pinned_revision(REPO) == REVISION
    assert WespeakerModel("me/mine", "avg_model.pt").files.source == "me/mine@main"


def test_every_shipped_revision_is_whole_or_main() -> None:
    for checkpoint in published_checkpoints().values():
        assert checkpoint["revision"] == "main" or len(checkpoint["revision"]) == 40
    assert len(published_checkpoints()) == 16


def test_without_network_and_cache_one_error_names_the_ways_out(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError) as error:
        WespeakerModel(REPO, "avg_model.pt")
    for part in (REPO, "avg_model.pt", REVISION, "HF_ENDPOINT", "balr download", "model_dir"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("repo", "name", "revision", "message"),
    [
        ("me/nothing", "avg_model.pt", None, "no such repository"),
        ("me/mine", "avg_model.pt", "v9", "no such revision"),
        ("me/mine", "weights.pt", None, "no such file; it holds avg_model.pt, config.yaml"),
        ("not a repo", "avg_model.pt", None, "OWNER/NAME"),
        ("me/mine", "../avg_model.pt", None, "must be the name of a file"),
        ("me/mine", "/etc/passwd", None, "must be the name of a file"),
    ],
)
def test_what_the_hub_does_not_have_is_said(
    hub: FakeHub, repo: str, name: str, revision: str | None, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        WespeakerModel(repo, name, revision=revision)
    assert "\n" not in str(error.value)


def test_a_folder_without_the_files_lists_what_it_holds(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not hold both avg_model and config.yaml \(it holds avg_model.pt"):
        find_checkpoint("", "avg_model", config_name="config.yaml", model_dir=tiny_checkpoint, revision=None)


@pytest.mark.parametrize("name", ["campplus", "me/mine"])
def test_a_downloaded_folder_works_without_the_hub(
    hub: FakeHub, balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert balr_command(monkeypatch, "download", name, "models/mine") == 0
    names = {path.name for path in (tmp_path / "models" / "mine").iterdir()}
    assert names == {"avg_model.pt", "config.yaml", ".downloaded-from"}
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"mine"}
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_model("models/mine", device="cpu").embedding_dim == 32
    assert main([f"input={corpus}", "embeddings.model.model_dir=models/mine", "data=serial", "save_dir=out"]) == 0
    assert len(rows(tmp_path / "out" / "metadata.csv")) == 6


def test_files_of_any_names_are_downloaded_from_a_repository_that_holds_one_of_each(
    hub: FakeHub, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "best.pt").write_bytes((tiny_checkpoint / "avg_model.pt").read_bytes())
    (odd / "train.yml").write_bytes((tiny_checkpoint / "config.yaml").read_bytes())
    hub.repositories["me/odd", "main"] = odd
    assert balr_command(monkeypatch, "download", "me/odd", "models") == 0
    assert load_model("models", device="cpu").embedding_dim == 32


@pytest.mark.parametrize("name", ["me/nothing", "camplus", "resnet34"])
def test_a_failed_download_is_one_line_and_leaves_nothing(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert balr_command(monkeypatch, "download", name, "models/mine") == 2
    assert not (tmp_path / "models").exists() and not list(tmp_path.glob(".balr*"))
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO")]
    assert len(errors) == 1 and errors[0].startswith("ERROR ")


def test_a_hub_that_does_not_answer_is_given_up_soon_with_the_ways_out(
    silent_hub: None, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    model = ["embeddings/model=resnet34_lm", "embeddings.model.model_dir=models", "data=serial"]
    assert main([f"input={corpus}", *model]) == 2
    assert time.monotonic() - started < 5
    lines = capsys.readouterr().err.splitlines()
    assert any("looking for Wespeaker/wespeaker-voxceleb-resnet34-LM on the Hub" in line for line in lines)
    (error,) = [line for line in lines if line.startswith("ERROR")]
    assert "the Hub cannot be reached" in error and "balr download Wespeaker/" in error and "HF_ENDPOINT" in error
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("more", [[], ["-m", "precision=fp32", "hydra/launcher=joblib_cpu"]])
def test_a_mistyped_folder_is_no_place_to_download_the_default_model_to(
    hub: FakeHub, corpus: Path, tmp_path: Path, one_error_line: Callable[[], str], more: list[str]
) -> None:
    hub.repositories["Wespeaker/wespeaker-voxceleb-resnet34-LM", "main"] = tmp_path
    assert main([f"input={corpus}", "embeddings.model.model_dir=models/campplus_typo", *more]) == 2
    assert "models/campplus_typo: no such checkpoint; embeddings/model=NAME would download" in one_error_line()
    assert not hub.requests and not (tmp_path / "models").exists()


def test_a_cached_repository_is_not_asked_for_again_also_where_its_main_has_moved(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = WespeakerModel("me/mine", "avg_model.pt").files
    hub.requests.clear()
    caplog.clear()
    for is_offline in (False, True):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", is_offline)
        with caplog.at_level(logging.INFO):
            assert WespeakerModel("me/mine", "avg_model.pt").files == before
    assert not hub.requests and "looking for" not in caplog.text


def test_a_run_says_that_it_looks_on_the_hub_and_does_not_list_each_request(
    hub: FakeHub, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["embeddings.model.model_repo=me/mine", "embeddings.model.model_name=avg_model.pt"]
    assert main([f"input={corpus}", "data=serial", "save_dir=out", *model]) == 0 and hub.requests
    told = capsys.readouterr().err
    assert "INFO looking for me/mine on the Hub…\n" in told and "HTTP" not in told


def test_a_main_that_has_moved_to_other_weights_does_not_go_on_in_the_same_folder(
    hub: FakeHub, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [f"input={corpus}", "embeddings.model.model_repo=me/mine", "data=serial", "save_dir=out"]
    command += ["embeddings.model.model_name=avg_model.pt"]
    assert main(command) == 0
    hub.repositories["me/mine", "main"] = write_checkpoint(tmp_path / "moved", "XVEC", XVECTOR, seed=9)
    point_to(hub.url, monkeypatch, tmp_path / "another_cache")
    assert main(command) == 0, "nothing is left to do"
    next(Path("out").rglob("*_emb.npy")).unlink()
    capsys.readouterr()
    assert main(command) == 2
    assert "ERROR" in (told := capsys.readouterr().err) and "other weights of me/mine@main" in told
    assert main([*command, "force=true"]) == 0
    next(Path("out").rglob("*_emb.npy")).unlink()
    assert main(command) == 0


def test_a_run_asks_which_file_is_meant_where_a_folder_holds_two(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path, one_error_line: Callable[[], str]
) -> None:
    (tmp_path / "mine").mkdir()
    for name, source in (("first.pt", "avg_model.pt"), ("second.pt", "avg_model.pt"), ("train.yaml", "config.yaml")):
        (tmp_path / "mine" / name).symlink_to(tiny_checkpoint / source)
    model = ["embeddings.model.model_dir=mine", "data=serial", "save_dir=out"]
    assert main([f"input={corpus}", *model]) == 2
    assert "one file of weights (.pt) is expected, and there is first.pt, second.pt" in one_error_line()
    names = ["embeddings.model.model_name=second.pt", "embeddings.model.config_name=train.yaml"]
    assert main([f"input={corpus}", *model, *names]) == 0


def test_a_download_replaces_no_file_that_is_there(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "avg_model.pt").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="does not hold both"):
        WespeakerModel(REPO, "avg_model.pt", model_dir=tmp_path / "mine")
    assert (tmp_path / "mine" / "avg_model.pt").read_bytes() == b"mine"
