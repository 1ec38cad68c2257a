"""What checks of a network found is kept for the same checkpoint, settings and machine, and for nothing else."""

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import get_ident

import pytest
import torch
from conftest import TINY, speechlike
from untrained_checkpoint import write_checkpoint

from balr.embeddings.exact.replacement import replace_forwards
from balr.embeddings.exact.verdicts import Verdicts
from balr.embeddings.wespeaker import WespeakerModel

FACTS = {"weights_sha256": "12", "engine": "torch"}


@pytest.fixture(autouse=True)
def _without_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def forward_passes() -> Iterator[list[str]]:
    """Return the names of the classes of WeSpeaker's that ran, as they run."""
    ran: list[str] = []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda layer, *_: ran.append(type(layer).__name__))
    yield ran
    hook.remove()


def test_a_check_runs_once_for_the_same_facts() -> None:
    found = [Verdicts(facts).of("dim", lambda number=number: number) for number, facts in enumerate([FACTS] * 3)]
    assert found == [0, 0, 0]


@pytest.mark.parametrize("other", [FACTS | {"engine": "openvino"}, FACTS | {"weights_sha256": "13"}, None])
def test_a_check_runs_again_for_anything_else(other: dict[str, str] | None) -> None:
    assert Verdicts(FACTS).of("dim", lambda: 1) == 1
    assert Verdicts(other).of("dim", lambda: 2) == 2


def test_a_check_runs_again_with_another_number_of_threads() -> None:
    threads, verdicts = torch.get_num_threads(), Verdicts(FACTS)
    assert verdicts.of("dim", lambda: 1) == 1
    try:
        torch.set_num_threads(threads + 1)
        assert verdicts.of("dim", lambda: 2) == 2
        assert Verdicts(FACTS).of("dim", lambda: 3) == 3
    finally:
        torch.set_num_threads(threads)


def test_a_check_that_could_not_run_runs_again() -> None:
    verdicts = Verdicts(FACTS)
    assert verdicts.of("ragged", lambda: math.inf) == math.inf and verdicts.of("dim", lambda: 4) == 4
    again = Verdicts(FACTS)
    assert again.of("ragged", lambda: 1e-7) == 1e-7 and again.of("dim", lambda: 5) == 4


@pytest.mark.parametrize("content", ["", "[1]", '{"dim": '])
def test_a_damaged_list_of_verdicts_counts_as_none(content: str, tmp_path: Path) -> None:
    Verdicts(FACTS).of("dim", lambda: 1)
    (file,) = tmp_path.glob("cache/balr/verdicts/*.json")
    file.write_text(content)
    assert Verdicts(FACTS).of("dim", lambda: 2) == 2


def test_without_a_cache_folder_checks_run_each_time(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    assert [Verdicts(FACTS).of("dim", lambda number=number: number) for number in (1, 2)] == [1, 2]


@pytest.mark.parametrize(("factor", "kept"), [(1.0, True), (2.0, False)])
def test_a_change_is_kept_or_not_whether_or_not_its_verdict_is_known(factor: float, kept: bool) -> None:
    example = torch.ones(1, 4)
    for _ in range(2):
        network = torch.nn.Linear(4, 1)
        forwards = {network: lambda inputs, network=network: factor * (inputs @ network.weight.mT + network.bias)}
        replace_forwards("scaled", forwards, network, example, verdicts=Verdicts(FACTS))
        assert ("forward" in vars(network)) == kept


def test_a_change_that_cannot_run_is_undone_and_one_without_memory_is_tried_by_the_next_load() -> None:
    def refuse(inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not here")

    def grow(inputs: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    network, example = torch.nn.Linear(4, 1), torch.ones(1, 4)
    replace_forwards("refused", {network: refuse}, network, example, verdicts=Verdicts(FACTS))
    with pytest.raises(torch.OutOfMemoryError):
        replace_forwards("grown", {network: grow}, network, example, verdicts=Verdicts(FACTS))
    assert "forward" not in vars(network)
    assert {Verdicts(FACTS).of(name, lambda: "tried again") for name in ("refused", "grown")} == {"tried again"}


def test_one_thread_runs_a_check_and_the_others_wait() -> None:
    verdicts, ran_in = Verdicts(), []

    def check() -> int:
        ran_in.append(get_ident())
        time.sleep(0.1)
        return 7

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: verdicts.of("slow", check), range(8))) == [7] * 8
    assert len(ran_in) == 1


def test_a_model_that_is_loaded_again_runs_no_checks_and_gives_the_same_embeddings(
    tmp_path: Path, forward_passes: list[str]
) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "CAMPPlus", TINY)
    waveform = torch.from_numpy(speechlike(2.0))

    def load_and_embed() -> tuple[int, int, torch.Tensor]:
        """Return how often the network ran as it was loaded, how often afterwards, and an embedding."""
        del forward_passes[:]
        model = WespeakerModel("", "avg_model.pt", model_dir=folder)
        while_loading = forward_passes.count("CAMPPlus")
        embedding = model.embed([waveform])
        assert model.takes_ragged_batches
        return while_loading, forward_passes.count("CAMPPlus") - while_loading, embedding

    *counts, first = load_and_embed()
    assert counts[0] > 0 and counts[1] > 1  # the trial of different lengths, too
    *counts, second = load_and_embed()
    assert counts == [0, 1]
    assert torch.equal(first, second)
