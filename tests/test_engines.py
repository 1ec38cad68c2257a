"""The engine that is left to balr: torch for little work, OpenVINO for much, and always that of the folder."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, speechlike, write_wav
from untrained_checkpoint import write_checkpoint

from balr.embeddings.exact.openvino import CompiledNetwork
from balr.embeddings.wespeaker import WespeakerModel
from balr.errors import ConfigError
from balr.extraction import merge
from balr.stores.reading import load_embeddings


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a network of few layers, which is compiled in less than a second."""
    sizes = {"feat_dim": 80, "hid_dim": 16, "stats_dim": 16, "embed_dim": 8}
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "xvec", "XVEC", sizes)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each network that is compiled."""
    found: list[int] = []
    before = CompiledNetwork.__init__

    def counted(self: CompiledNetwork, *arguments: Any, **settings: Any) -> None:
        found.append(1)
        before(self, *arguments, **settings)

    monkeypatch.setattr(CompiledNetwork, "__init__", counted)
    return found


def engine_of(folder: str) -> tuple[str, str]:
    record = json.loads(Path(folder, "run.json").read_text())
    return record["model"]["settings"]["engine"], record["runs"][-1]["engine"]


@pytest.fixture
def much(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let six utterances be much work."""
    monkeypatch.setattr("balr.composition._WORTH_COMPILING", 6)
    return corpus


def test_little_work_is_done_by_torch_and_much_is_compiled(balr: Command, much: Path, compiled: list[int]) -> None:
    assert balr(f"input={much}", "save_dir=much") == 0
    assert engine_of("much") == ("openvino", "openvino") and compiled == [1]
    (much / "spk0" / "utt0.wav").unlink()
    assert balr(f"input={much}", "save_dir=little") == 0
    assert engine_of("little") == ("torch", "torch") and compiled == [1]
    made, expected = load_embeddings("much")[1][1:], load_embeddings("little")[1]
    assert abs(made - expected).max() < 1e-4 * abs(expected).max()


def test_a_folder_keeps_its_engine_however_much_is_left(balr: Command, much: Path, compiled: list[int]) -> None:
    assert balr(f"input={much}", "save_dir=out", "embeddings.model.engine=torch") == 0
    write_wav(much / "spk0" / "new.wav", speechlike(1.1, seed=9))
    assert balr(f"input={much}", "save_dir=out") == 0
    assert engine_of("out") == ("torch", "torch") and not compiled
    assert balr(f"input={much}", "save_dir=out", "force=true") == 0
    assert engine_of("out") == ("openvino", "openvino") and compiled == [1]


def test_shards_that_are_begun_at_once_with_unlike_engines_are_put_together(
    balr: Command, much: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = ("save_dir=out", "shard.count=2")
    assert balr(f"input={much}", *shard, "shard.index=0", "embeddings.model.engine=torch") == 0
    names = ("run.0-of-2.json", "metadata.0-of-2.csv")
    for name in names:  # the other shard begins before there are any
        Path("out", name).rename(name)
    with monkeypatch.context() as patch:
        patch.setattr("balr.extraction.merge", lambda *_, **__: None)
        assert balr(f"input={much}", *shard, "shard.index=1", "embeddings.model.engine=openvino") == 0
    for name in names:
        Path(name).rename(Path("out", name))
    assert merge(Path("out")) == (6, 0, 0)
    assert [run["engine"] for run in json.loads(Path("out/run.json").read_text())["runs"]] == ["torch", "openvino"]
    assert balr(f"input={much}", "save_dir=out") == 0


def test_torch_does_what_the_engine_would_change_or_is_not_there_for(
    balr: Command, much: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    def moved(self: CompiledNetwork, *_: Any, **__: Any) -> None:
        raise ConfigError("embeddings.model.engine=openvino: would move embeddings by 1; use torch.")

    with monkeypatch.context() as patch:
        patch.setattr(CompiledNetwork, "__init__", moved)
        assert balr(f"input={much}", "save_dir=moved") == 0
        assert engine_of("moved") == ("torch", "torch")
    monkeypatch.setitem(sys.modules, "openvino", None)
    model = WespeakerModel("", "avg_model.pt", model_dir=tiny_checkpoint, engine="auto")
    assert model.engine == "torch"
