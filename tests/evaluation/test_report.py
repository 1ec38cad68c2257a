"""The page works where it is opened: from a file, without a network, with what a corpus may call its files."""

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, chromium
from conftest import speechlike, write_wav
from evaluation.scored import speaker_embeddings
from typer.testing import CliRunner

from balr import cli
from balr.config import EvaluationConfig
from balr.errors import BalrError
from balr.evaluate import evaluate
from balr.records import Embedded, Utterance
from balr.report import report
from balr.stores.base import StoredCorpus
from balr.stores.files import FilesStore

pytestmark = pytest.mark.usefixtures("bundled_once")

NASTY = "<script>alert(1)</script>&'\""
FIGURES = {"det", "scores", "tippett", "ece", "pav", "similarity", "map", "norms"}


def write_corpus(
    folder: Path, *, speakers: int = 5, each: int = 4, seed: int = 0, spread: float = 1.0, sounds: int = 2
) -> Path:
    """Write a store of which one speaker has a name that is markup, and audio of the first utterances."""
    ids, matrix = speaker_embeddings(speakers=speakers, each=each, seed=seed, spread=spread)
    utterances = []
    for number, id_ in enumerate(ids):
        audio = folder.parent / "audio" / f"{id_.replace('/', ' #')}.wav"
        if not audio.exists() and number < sounds:
            write_wav(audio, speechlike(1.0 + 0.1 * (number % 7), seed=number))
        speaker = NASTY if id_.startswith("s1/") else id_.split("/")[0]
        utterances.append(Utterance(id_, audio, speaker, duration_seconds=1.0 + 0.1 * (number % 7)))
    folder.mkdir(parents=True)
    store = FilesStore(StoredCorpus(folder, utterances, folder.parent, embedding_dim=matrix.shape[1]), format="npy")
    store.write([Embedded(one, row, 2.0) for one, row in zip(utterances, matrix, strict=True)])
    store.close()
    if speakers > 1:
        evaluate(folder, EvaluationConfig(bootstrap=10))
    return folder


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_opens_from_a_file_draws_shows_names_and_plays(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "a b" / "store", sounds=20)
    [page] = report([folder], folder / "report.html")
    with chromium(tmp_path / "profile") as browser:
        browser.open(page)
        assert browser.value("document.querySelectorAll('figure svg').length") == len(FIGURES)
        assert not browser.complaints
        place = browser.value(
            "(() => { const all = [...document.querySelectorAll('figure h3')].find(h => h.textContent == 'Map')"
            ".parentElement.querySelectorAll('path[aria-roledescription=\"circle\"]'); all[0].scrollIntoView();"
            "const box = all[0].getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        browser.mouse("mouseMoved", *place)
        browser.wait("document.querySelector('#vg-tooltip-element.visible') !== null")
        assert "s0/0" in browser.value("document.querySelector('#vg-tooltip-element').textContent")
        browser.mouse("mousePressed", *place)
        browser.mouse("mouseReleased", *place)
        browser.wait("document.querySelector('#player.shown') !== null")
        browser.wait("document.querySelector('#player audio').readyState > 0")
        assert browser.value("document.querySelector('#player audio').src").endswith("/audio/s0%20%230.wav")
        assert browser.value("document.querySelector('#player audio').duration") == pytest.approx(1.0, abs=0.05)
        assert not browser.complaints
        browser.value("document.querySelectorAll('details').forEach(one => one.open = true)")
        snippet = "document.querySelector('td audio')"
        browser.value(f"{snippet}.load()")
        browser.value(f"{snippet}.preload = 'auto'")
        browser.wait(f"{snippet}.readyState > 0")
        loaded = {url.partition(":")[0] for url in browser.requests}
    assert loaded <= {"file", "data", "about"}, loaded


def test_text_of_a_corpus_is_text_on_the_page(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "store")
    text = report([folder], tmp_path / "report.html")[0].read_text()
    assert NASTY not in text and NASTY in unescape(text)
    assert not re.findall(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["']?http""", text)
    assert re.search(r"@media print {[^@]*[ ,]audio { display: none", text)
    [specs] = re.findall(r"^const figures = (.*);$", text, re.M)
    assert len(json.loads(specs)) == len(FIGURES)
    assert '<audio controls preload="none" src="data:audio/ogg' in text


def check_figures(files: list[Path], names: set[str]) -> None:
    assert {file.name for file in files} == {f"{name}.{kind}" for name in names for kind in ("svg", "png", "pdf")}
    starts = {"svg": b"<svg", "png": b"\x89PNG", "pdf": b"%PDF"}
    assert all(file.read_bytes().startswith(starts[file.suffix[1:]]) for file in files)


@pytest.mark.slow  # by default those of a run without speakers, below
def test_figures_are_written_for_papers(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "store")
    check_figures(report([folder], tmp_path / "report.html", figures=tmp_path / "figures")[1:], FIGURES)


def test_several_runs_are_compared(tmp_path: Path) -> None:
    folders = [write_corpus(tmp_path / name, seed=3, spread=spread) for name, spread in (("a", 0.5), ("b", 2.0))]
    text = report(folders, tmp_path / "report.html")[0].read_text()
    eers = [json.loads((one / "evaluation/all-pairs/evaluation.json").read_text())["metrics"]["eer"] for one in folders]
    table = text[text.index("Comparison") : text.index("</table>", text.index("Comparison"))]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", table)
    assert [f"{100 * eer['value']:.2f}%" for eer in eers] == [cells[4], cells[12]] and cells[7] == "1.0000"
    assert 0 < float(cells[15]) < 1


@pytest.mark.slow
def test_a_page_of_a_thousand_utterances_is_under_three_megabytes(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "store", speakers=50, each=20, sounds=40)
    assert report([folder], tmp_path / "report.html")[0].stat().st_size < 3_000_000


def test_a_run_without_speakers_has_a_page_and_figures_without_an_evaluation(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    utterances = [
        Utterance(f"u{number}", Path(f"/corpus/{number}.wav"), None, duration_seconds=2.0) for number in range(20)
    ]
    store = FilesStore(StoredCorpus(folder, utterances, Path("/corpus"), embedding_dim=4), format="npy")
    matrix = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    store.write([Embedded(one, row, 2.0) for one, row in zip(utterances, matrix, strict=True)])
    store.close()
    page, *files = report([folder], tmp_path / "report.html", figures=tmp_path / "figures")
    assert "<h2>Evaluation</h2>" not in (text := page.read_text()) and ">Map<" in text
    check_figures(files, {"map", "norms"})


def test_a_run_of_one_speaker_and_one_with_damaged_durations_have_a_page(tmp_path: Path) -> None:
    one, damaged = write_corpus(tmp_path / "one", speakers=1), write_corpus(tmp_path / "damaged")
    (damaged / "durations.csv").write_text("no,columns\nof,ours\n")
    for folder in (one, damaged):
        assert ">Map<" in report([folder], folder / "report.html")[0].read_text()


def test_a_run_that_was_killed_and_one_with_failures_have_a_page(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "store")
    (folder / "failures.csv").write_text("id,audio,stage,reason\na,a.wav,decode,no audio\nb,b.wav,decode,no audio\n")
    entry = {"checkpoint": {"weights_sha256": "x"}, "exit": None}
    record = {"model": {"name": "m"}, "forcing": False, "runs": [entry]}
    (folder / "run.json").write_text(json.dumps(record))
    assert "2, listed in failures.csv" in report([folder], tmp_path / "report.html")[0].read_text()


def test_the_command_says_where_the_page_is_and_refuses_a_folder_without_embeddings(tmp_path: Path) -> None:
    write_corpus(tmp_path / "store")
    for folders in (["store"], ["store", "store/report.html"]):  # as `*` names them from the second time
        done = CliRunner().invoke(cli.app, ["report", *folders])
        assert done.exit_code == 0 and done.output == "store/report.html\n"
    assert f"<h2>{tmp_path.name}/store</h2>" in Path("store/report.html").read_text()
    with pytest.raises(BalrError, match="audio: holds no embeddings; give the save_dir of a run"):
        CliRunner().invoke(cli.app, ["report", "audio"], catch_exceptions=False)
