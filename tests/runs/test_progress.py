"""The bar moves by seconds of audio, also within a long utterance, and never back."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import speechlike, wait_until, write_wav
from untrained_checkpoint import write_checkpoint

from balr.config import DataConfig
from balr.data.dataset import AudioDataset
from balr.embeddings.wespeaker import WespeakerModel
from balr.records import Failure, Utterance
from balr.runs.progress import SweepBars, Tally
from balr.runs.summary import duration, utterances

ONE = Utterance("one", None)


class Noting:
    """Note how much of long utterances is done."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.done: list[str] = []

    def planned(self, audio_seconds: float, *, upsampled: int) -> None: ...

    def under_way(self, audio_seconds: float) -> None:
        assert not self.done
        self.seconds.append(audio_seconds)

    def embedded(self, utterance: Utterance, audio_seconds: float) -> None:
        self.done.append(utterance.id)

    def failed(self, failure: Failure) -> None: ...


def test_a_long_utterance_is_reported_chunk_by_chunk(tmp_path: Path) -> None:
    write_wav(tmp_path / "long.wav", np.tile(speechlike(5.0), 4))
    folder = write_checkpoint(tmp_path / "xvec", "XVEC", {"feat_dim": 80, "hid_dim": 8, "stats_dim": 8, "embed_dim": 4})
    noting = Noting()
    settings = DataConfig(chunk_seconds=4.0, num_workers=0)
    WespeakerModel("", "avg_model.pt", model_dir=folder).extract_embeddings(
        AudioDataset.from_dir(tmp_path), False, settings, observer=noting
    )
    assert noting.done == ["long.wav"] and len(noting.seconds) >= 10
    assert sum(noting.seconds) == pytest.approx(20.0, abs=0.05)


def test_what_was_shown_of_an_utterance_is_not_added_again_when_it_is_done() -> None:
    tally = Tally(todo=3)
    with tally:
        tally.planned(30.0, upsampled=0)
        shown = [tally.shown_seconds]
        for report in (
            lambda: tally.under_way(10.0),
            lambda: tally.embedded(ONE, 2.0),
            lambda: tally.under_way(10.0),
            lambda: tally.embedded(ONE, 20.0),
            lambda: tally.embedded(ONE, 8.0),
        ):
            report()
            shown.append(tally.shown_seconds)
    assert shown == sorted(shown) and shown[-1] == tally.audio_seconds == 30.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (9.6, "0:10"), (61, "1:01"), (3599.4, "59:59"), (3600, "1:00:00"), (9e5, "250:00:00")],
)
def test_times_read_as_on_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_one_utterance_is_no_plural() -> None:
    assert [utterances(count) for count in (0, 1, 2000)] == ["0 utterances", "1 utterance", "2,000 utterances"]


def test_a_sweep_draws_a_bar_for_each_job_that_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    bars = SweepBars(tmp_path)
    bars.start()
    for number, name in enumerate(("corpus/one", "corpus/two")):
        (tmp_path / str(number)).mkdir()
        tally = Tally(todo=2, job=name, report_to=tmp_path / str(number) / "progress.json")
        with tally:
            tally.planned(4.0, upsampled=0)
            tally.embedded(ONE, 2.0)
    wait_until(lambda: all(f"{name} " in screen.getvalue() for name in ("corpus/one", "corpus/two")))
    bars.stop()
    assert screen.getvalue().count("1/2") >= 2
