"""What becomes of utterances: saved a few at a time, told once and not before, whatever goes wrong on the way."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from balr.data.dataset import AnnotatedAudio, AudioDataset
from balr.data.loading import Decoded
from balr.data.vectors import flaw_of_vector
from balr.embeddings import outcomes
from balr.embeddings.outcomes import Deliveries, Embedded
from balr.embeddings.stages import Stages
from balr.errors import Failure, FirstFailureError, OutputError
from balr.records import Utterance

COUNT = 9


class Told:
    """Note who is told of, and that what is told as embedded is whole on the disk; stop at the first failure."""

    def __init__(self, dataset: AudioDataset, *, fail_fast: bool) -> None:
        self.dataset = dataset
        self.fail_fast = fail_fast
        self.embedded_ids: list[str] = []
        self.failed_ids: list[str] = []

    def planned(self, audio_seconds: float, *, upsampled: int) -> None:
        raise AssertionError("that is not for here")

    def embedded(self, utterance: AnnotatedAudio, audio_seconds: float) -> None:
        assert flaw_of_vector(self.dataset.vector_path(self.dataset.utterances[int(utterance.id)])) is None
        self.embedded_ids.append(utterance.id)

    def failed(self, failure: Failure) -> None:
        self.failed_ids.append(failure.id)
        if self.fail_fast:
            self.fail_fast = False
            raise FirstFailureError("one failed")


@pytest.fixture
def dataset(tmp_path: Path) -> AudioDataset:
    files = [Utterance(str(number), tmp_path / f"{number % 3}" / f"{number}.wav") for number in range(COUNT)]
    dataset = AudioDataset(files, tmp_path)
    dataset.set_output_dir(tmp_path / "out")
    return dataset


def embedded(number: int) -> Embedded:
    return Embedded(AnnotatedAudio(str(number), None, 16_000), np.full(4, number + 1, np.float32), 1.0)


def delivering(dataset: AudioDataset, *, fail_fast: bool = False) -> tuple[Deliveries, Told]:
    told = Told(dataset, fail_fast=fail_fast)
    return Deliveries(dataset, told, Stages(), stream_save=True), told


def there(dataset: AudioDataset) -> list[str]:
    """Return whose embeddings are there, whole, and that nothing half-written is."""
    assert dataset.output_dir is not None and not list(dataset.output_dir.rglob("*.tmp"))
    return [utterance.id for utterance in dataset.utterances if dataset.vector_flaw(utterance) is None]


@pytest.mark.parametrize(
    ("together", "seconds", "groups"),
    [
        (32, 60.0, []),
        (32, 0.0, [4, 5]),
        (3, 60.0, [3, 3, 3]),
        (4, 60.0, [4, 4]),
        (2, 0.0, [2, 2, 2, 2, 1]),
    ],
)
def test_embeddings_are_saved_when_there_are_some_or_after_a_while(
    dataset: AudioDataset, monkeypatch: pytest.MonkeyPatch, together: int, seconds: float, groups: list[int]
) -> None:
    monkeypatch.setattr(outcomes, "SAVED_TOGETHER", together)
    monkeypatch.setattr(outcomes, "_SECONDS_UNSAVED", seconds)
    sizes: list[int] = []
    whole = AudioDataset.save_together

    def counted(self: AudioDataset, vectors: object) -> list[OutputError | None]:
        sizes.append(len(found := whole(self, vectors)))
        return found

    monkeypatch.setattr(AudioDataset, "save_together", counted)
    done, told = delivering(dataset)
    done.take(embedded(number) for number in range(4))
    done.take(embedded(number) for number in range(4, COUNT))
    assert sizes == groups and len(told.embedded_ids) == sum(groups)
    done.save()
    assert told.embedded_ids == there(dataset) == [str(number) for number in range(COUNT)]


def test_a_save_begins_a_second_of_its_own(dataset: AudioDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(outcomes, "time", SimpleNamespace(monotonic=lambda: now))
    done, told = delivering(dataset)
    for number, (now, there_then) in enumerate([(100.5, 0), (101.0, 2), (101.9, 2), (102.0, 4), (102.1, 4)]):  # noqa: B007
        done.take([embedded(number)])
        assert len(told.embedded_ids) == there_then
    done.finish()
    assert len(told.embedded_ids) == 5


def test_what_is_collected_is_told_at_once_and_written_nowhere(dataset: AudioDataset, tmp_path: Path) -> None:
    told: list[str] = []

    class Listening(Told):
        def embedded(self, utterance: AnnotatedAudio, audio_seconds: float) -> None:
            told.append(utterance.id)

    done = Deliveries(dataset, Listening(dataset, fail_fast=False), Stages(), stream_save=False)
    done.take([embedded(2), embedded(0)])
    assert told == list(done.vectors) == ["2", "0"] and not (tmp_path / "out").exists()


def test_a_batch_without_room_is_put_by(dataset: AudioDataset) -> None:
    done, told = delivering(dataset)
    batch = Decoded((AnnotatedAudio("1", None, 16_000),), torch.zeros(3), (3,), ())
    done.finish([embedded(0), batch, embedded(2)])
    assert done.postponed == [batch] and told.embedded_ids == ["0", "2"]


@pytest.fixture
def refused_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Return a function after which the flush of this number is refused, and all after it."""

    def at(number: int, code: int) -> None:
        calls: list[int] = []

        def fsync(file: int) -> None:
            calls.append(file)
            if len(calls) > number:
                raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fsync)

    return at


@pytest.mark.parametrize("number", range(COUNT + 1))
def test_a_disk_that_fails_within_a_group_leaves_what_went_before(
    dataset: AudioDataset, refused_at: Callable[[int, int], None], number: int
) -> None:
    refused_at(number, errno.EIO)
    done, told = delivering(dataset)
    done.take(embedded(one) for one in range(COUNT))
    if number < COUNT:
        with pytest.raises(OutputError, match=rf"{number}_emb\.npy: cannot be written: Input/output error"):
            done.save()
    else:
        done.save()
    assert told.embedded_ids == there(dataset) == [str(one) for one in range(number)]
    assert not told.failed_ids


@pytest.mark.parametrize("fail_fast", [False, True])
@pytest.mark.parametrize("taken", [{0}, {4}, {8}, {0, 4, 8}, set(range(COUNT))])
def test_a_place_that_is_taken_costs_its_utterance_alone_also_where_it_ends_the_run(
    dataset: AudioDataset, taken: set[int], fail_fast: bool
) -> None:
    for number in taken:
        dataset.vector_path(dataset.utterances[number]).mkdir(parents=True)
    done, told = delivering(dataset, fail_fast=fail_fast)
    done.take(embedded(number) for number in range(COUNT))
    if fail_fast:
        with pytest.raises(FirstFailureError):
            done.save()
    done.finish([Failure("x", "x.wav", "decode", "broken")])
    assert told.embedded_ids == there(dataset) == [str(one) for one in range(COUNT) if one not in taken]
    assert sorted(told.failed_ids) == [*(str(number) for number in sorted(taken)), "x"]


def test_all_that_is_left_is_told_once_when_a_failure_or_an_interrupt_ends_a_run(dataset: AudioDataset) -> None:
    done, told = delivering(dataset, fail_fast=True)
    with pytest.raises(FirstFailureError):
        done.take([embedded(0), Failure("1", "1.wav", "decode", "broken"), embedded(2)])
    assert not told.embedded_ids
    done.finish([Failure("3", "3.wav", "decode", "broken"), embedded(4)])
    done.finish([])
    assert told.embedded_ids == there(dataset) == ["0", "2", "4"] and told.failed_ids == ["1", "3"]


def test_two_errors_while_telling_leave_nobody_untold(dataset: AudioDataset) -> None:
    class WithoutAList(Told):
        def failed(self, failure: Failure) -> None:
            super().failed(failure)
            raise OutputError(f"no list for {failure.id}")

    for number in (1, 3):
        dataset.vector_path(dataset.utterances[number]).mkdir(parents=True)
    told = WithoutAList(dataset, fail_fast=False)
    done = Deliveries(dataset, told, Stages(), stream_save=True)
    with pytest.raises(OutputError, match="no list for x"):
        done.take([Failure("x", "x.wav", "decode", "broken"), *(embedded(number) for number in range(COUNT))])
    with pytest.raises(OutputError, match="no list for 1"):
        done.save()
    assert told.embedded_ids == there(dataset) == ["0", "2", *(str(number) for number in range(4, COUNT))]
    assert told.failed_ids == ["x", "1", "3"]
    done.finish()


def test_a_first_failure_among_what_is_left_neither_stops_nor_hides_anything(
    dataset: AudioDataset, refused_at: Callable[[int, int], None]
) -> None:
    done, told = delivering(dataset, fail_fast=True)
    done.finish([embedded(0), Failure("1", "1.wav", "decode", "broken"), embedded(2)])
    assert told.embedded_ids == there(dataset) == ["0", "2"] and told.failed_ids == ["1"]
    done, told = delivering(dataset, fail_fast=True)
    refused_at(1, errno.ENOSPC)
    with pytest.raises(OutputError, match="No space left"):
        done.finish([Failure("1", "1.wav", "decode", "broken"), embedded(3), embedded(4)])
    assert told.embedded_ids == ["3"] and told.failed_ids == ["1"]


def test_nothing_more_is_written_to_a_disk_that_failed(
    dataset: AudioDataset, monkeypatch: pytest.MonkeyPatch, refused_at: Callable[[int, int], None]
) -> None:
    monkeypatch.setattr(outcomes, "SAVED_TOGETHER", 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", os.fsync)
        refused_at(3, errno.ENOSPC)
        done, told = delivering(dataset)
        with pytest.raises(OutputError, match="3_emb"):
            done.take(embedded(number) for number in range(COUNT))
    done.finish([embedded(8), Failure("x", "x.wav", "decode", "broken")])
    assert told.embedded_ids == there(dataset) == ["0", "1", "2"] and told.failed_ids == ["x"]


def test_few_files_are_open_at_a_time(dataset: AudioDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = AudioDataset([Utterance(str(number), tmp_path / f"{number}.wav") for number in range(200)], tmp_path)
    many.set_output_dir(tmp_path / "out")
    folder, flush, counts = Path("/proc/self/fd"), os.fsync, []
    if not folder.is_dir():
        pytest.skip("open files are counted on Linux")
    before = len(list(folder.iterdir()))

    def fsync(file: int) -> None:
        counts.append(len(list(folder.iterdir())))
        flush(file)

    monkeypatch.setattr(os, "fsync", fsync)
    done, told = delivering(many)
    done.finish(embedded(number) for number in range(200))
    assert len(told.embedded_ids) == 200 and max(counts) <= before + 32
    assert len(list(folder.iterdir())) == before
