"""Any text as a list, an id or an override is taken or refused in one line; nothing is run, or written elsewhere."""

import csv
import io
import os
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, rows, speechlike, write_wav
from hypothesis import given, settings
from hypothesis import strategies as st

from balr.atomic import write_csv
from balr.data.corpus import Corpus
from balr.errors import InputError
from balr.main import main
from balr.stores.places import refuse_shared_files

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
OURS = ("id", "audio", "speaker", "embedding", "start", "end", "channel", "duration", "crc32")
TOKENS = ("audio", "id", "speaker", "embedding", ",", ",", "\n", "\n", "\r", '"', "a.wav", "b.wav", "..", "/", "|", " ")
TOKENS += ("\0", "\ufeff", "\x1a", "\t", "\u2028", "\x85", ";", "x" * 140_000)
CSV_LINES = ("a.wav,x\n", "b.wav,y\r\n", 'b.wav,"y\nz"\n', "a.wav,\0\n", "a.wav,|\r", ",\n", "\n")
SCP_LINES = ("x a.wav\n", "y\tb.wav\n", "\ufeffz  a.wav \n", "\0 b.wav\n", "\n", "u |\n", "v\n")
FOLDERS = ("", ".", "..", "spk", "SPK", "linked", "loop", COMPOSED, DECOMPOSED, "CON", "NUL", "\u202e", "a\nb", "~")
NAMES = ("a.wav", "A.WAV", "a.flac", f"{COMPOSED}.wav", f"{DECOMPOSED}.wav", "aux", "nul.wav", "\u202egnp.wav", "a")
NAMES += ("\ufb01.wav", "fi.wav", "straße.wav", "STRASSE.wav", f"{'n' * 251}.wav", f"{'n' * 250}m.wav", "n" * 300)
NAMES += (".wav", "a.wav_emb.npy", "a_emb", "b\0.wav", "x y.wav ", "-.wav", "|", "\udce9.wav", "a.", "\x1b[31m.wav")
IDS = ("CON", "../x", "/etc/passwd", "a\nb", "a\0b", "\u202eb", COMPOSED, DECOMPOSED, "\ufeff", '"', "=1+1|x", "\udce9")
KEYS = ("input", "root_dir", "audio_formats", "device", "force", "max_failures", "save_dir", "vector_format", "data")
KEYS += ("data.num_workers", "data._target_", "embeddings", "embeddings/model", "embeddings.model.features", "x")
KEYS += ("embeddings.model._target_", "hydra.mode", "hydra/job_logging", "hydra.searchpath")
VALUES = ("'", '"', "\\", "[", "]", "{", "}", "(", ")", "${", "}", ":", ",", "=", "???", "null", "true", "-1", "1e999")
VALUES += ("${input}", "${oc.env:NONE}", "${nope:}", "${.}", "choice(a,b)", "range(1,3)", "glob(*)", "\t", "\0", "|")
VALUES += ("\x1b[31m", "\u2028", "\ud800", "\udce9", "x" * 300, "[" * 50, "{a:" * 30, "os.system", "$(touch marker)")

CELL = st.binary(max_size=12).map(lambda content: content.decode(errors="surrogateescape")) | st.text(max_size=12)

few_or_many = pytest.mark.parametrize("examples", [60, pytest.param(5000, marks=pytest.mark.slow)])


def joined(parts: Sequence[str], head: str = "") -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(parts), max_size=9).map(lambda drawn: f"{head}{''.join(drawn)}".encode())


def fuzz(examples: int, check: Callable[..., None], *strategies: st.SearchStrategy[Any]) -> None:
    settings(max_examples=examples, deadline=None)(given(*strategies)(check))()


def read_or_refused(read: Callable[[Path], Corpus], path: Path) -> Corpus | None:
    try:
        return read(path)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        return None


@few_or_many
def test_any_text_and_any_bytes_are_a_corpus_or_refused_in_one_line(tmp_path: Path, examples: int) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()

    def check(content: bytes) -> None:
        for name, read in (("list.csv", Corpus.from_csv), ("wav.scp", Corpus.from_path)):
            (tmp_path / name).write_bytes(content)
            found = read_or_refused(read, tmp_path / name)
            if found is not None:
                ids = [utterance.id for utterance in found.utterances]
                assert ids and len(set(ids)) == len(ids) and all(id_.strip() for id_ in ids)

    lists = joined(CSV_LINES, "audio,id\n") | joined(SCP_LINES) | joined(TOKENS) | joined(TOKENS, "audio,id\n")
    fuzz(examples, check, lists | st.text().map(str.encode) | st.binary())


@few_or_many
def test_hostile_paths_are_refused_or_stored_apart_and_below_the_output_folder(tmp_path: Path, examples: int) -> None:
    root = tmp_path / "a" / "corpus"
    root.mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (root / "linked").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root)
    relative = st.builds("/".join, st.tuples(*[st.sampled_from(FOLDERS)] * 2, st.sampled_from(NAMES)))
    absolute = relative.map(lambda path: f"{root}/{path}")
    kept = relative.filter(lambda path: not {"..", "\0"} & {*path.split("/"), *path})
    cell = kept | kept | kept | absolute | relative | st.sampled_from(("/dev/null", "/etc/hostname", "x" * 1_000_000))
    ids = st.lists(st.sampled_from(IDS) | st.text(min_size=1), min_size=1, max_size=6, unique=True)

    def check(ids: list[str], cells: list[str]) -> None:
        for path in cells:
            make(Path(os.path.normpath(root / path)), below=tmp_path)
        with (root / "list.csv").open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file).writerows([("id", "audio"), *zip(ids, cells, strict=False)])
        found = read_or_refused(Corpus.from_csv, root / "list.csv")
        if found is not None:
            assert_stored_apart(found, tmp_path / "out")

    fuzz(examples, check, ids, st.lists(cell, min_size=6, max_size=6))


def make(file: Path, *, below: Path) -> None:
    if "\0" not in str(file) and file.is_relative_to(below):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        except OSError:  # too long, or there as something else
            return


def assert_stored_apart(corpus: Corpus, output_dir: Path) -> None:
    corpus.set_output_dir(output_dir)
    places = [corpus.embedding_path(utterance) for utterance in corpus.utterances]
    try:
        refuse_shared_files(corpus.utterances, map(str, places), folds_case=True)
    except InputError:
        return
    folded = {unicodedata.normalize("NFKC", str(place)).casefold() for place in places}
    assert len(folded) == len(places)
    for place in places:
        assert os.pardir not in place.parts and len(os.fsencode(place.name)) <= 255
        assert Path(os.path.realpath(place.parent)).is_relative_to(os.path.realpath(output_dir))


@few_or_many
def test_a_pipe_in_a_list_is_refused_and_nothing_is_run(tmp_path: Path, examples: int) -> None:
    (tmp_path / "a.wav").touch()
    touch = f"touch {tmp_path / 'marker'}"
    parts = st.lists(
        st.sampled_from((touch, f"$({touch})", f"`{touch}`", "cat a.wav", "a.wav", ";", "&&", "|", " ", "\\"))
    )

    def check(before: Sequence[str], after: Sequence[str]) -> None:
        command = "".join((*before, "|", *after))
        (tmp_path / "wav.scp").write_text(f"u {command}\n")
        with pytest.raises(InputError, match=r"wav.scp:1: commands are not run"):
            Corpus.from_path(tmp_path / "wav.scp")
        (tmp_path / "list.csv").write_text(f"audio\n{command}\n")
        assert read_or_refused(Corpus.from_path, tmp_path / "list.csv") is None
        assert not (tmp_path / "marker").exists()

    fuzz(examples, check, parts, parts)


@few_or_many
def test_a_csv_that_balr_writes_is_read_back_exactly(tmp_path: Path, examples: int) -> None:
    (tmp_path / "a.wav").touch()
    text = CELL.filter(lambda cell: "\0" not in cell)
    names = st.lists(text.map(str.strip).filter(lambda name: name not in OURS), max_size=3, unique=True)
    lines = st.lists(st.tuples(text.filter(str.strip), *[text] * 4), min_size=1, unique_by=lambda line: line[0])

    def check(names: list[str], lines: list[tuple[str, ...]]) -> None:
        columns = ["id", "audio", "speaker", *names]
        written = [dict(zip(columns, (id_, "a.wav", *cells), strict=False)) for id_, *cells in lines]
        write_csv(tmp_path / "list.csv", columns, written)
        found = Corpus.from_csv(tmp_path / "list.csv").utterances
        assert [{"id": u.id, "audio": "a.wav", "speaker": u.speaker, **u.extra} for u in found] == written

    fuzz(examples, check, names, lines)


@few_or_many
@pytest.mark.parametrize("last", [("--cfg", "job"), ("input=nowhere",)], ids=["cfg", "run"])
def test_any_override_is_taken_or_refused_in_one_line(last: tuple[str, ...], examples: int) -> None:
    value = st.sampled_from(VALUES) | st.lists(st.sampled_from(VALUES) | st.text(max_size=4)).map("".join)
    quoted = st.text().map(lambda text: "'" + text.replace("'", "") + "'")
    key = st.builds(str.__add__, st.sampled_from(("", "", "+", "++", "~")), st.sampled_from(KEYS))
    override = st.builds(lambda key, value: f"{key}={value}", key, value | quoted) | key | st.text()
    words = st.lists(override.filter(lambda word: not word.startswith("-")), max_size=3)

    def check(words: list[str]) -> None:
        code, errors = outcome(*words, *last)
        assert code in (0, 1, 2)
        assert (code == 2) == (len(errors) == 1), errors
        assert all(line.startswith("ERROR ") and "unexpected " not in line for line in errors), errors

    fuzz(examples, check, words)


def outcome(*arguments: str) -> tuple[int, list[str]]:
    """Return the exit code of a command, and what it says to stderr beside INFO and WARNING."""
    told = io.StringIO()
    with redirect_stderr(told), redirect_stdout(io.StringIO()):
        code = main(arguments)
    assert "Traceback" not in told.getvalue()
    return code, [line for line in told.getvalue().splitlines() if not line.startswith(("INFO ", "WARNING "))]


@pytest.mark.parametrize(
    "arguments", [("--nonsense",), ("-x=1",), ("--cfg",), ("--cfg", "x"), ("embeddings/model='a\nb'",)]
)
def test_a_flag_or_a_config_that_there_is_not_is_one_line(arguments: tuple[str, ...]) -> None:
    code, errors = outcome("input=nowhere", *arguments)
    assert code == 2 and len(errors) == 1 and errors[0].startswith("ERROR "), errors


@pytest.mark.parametrize("name", ["a\rb.wav", "a\nb.wav", "\u202eb.wav", '"', "x" * 100_000])
def test_an_odd_id_comes_back_from_the_list_of_a_run(balr: Command, tmp_path: Path, name: str) -> None:
    write_wav(tmp_path / "a.wav", speechlike(0.5))
    with (tmp_path / "list.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "audio", "speaker", "note"), (name, "a.wav", name, name)])
    assert balr("input=list.csv", "save_dir=out") == 0
    (found,) = Corpus.from_csv(tmp_path / "out" / "metadata.csv").utterances
    assert (found.id, found.speaker, found.extra["note"]) == (name, name, name)


def test_a_folder_with_the_name_of_an_embedding_costs_no_other_utterance(balr: Command, tmp_path: Path) -> None:
    for number, name in enumerate(("a.wav", "a_emb.npy/b.wav", "c.wav")):
        write_wav(tmp_path / "corpus" / name, speechlike(0.5, seed=number))
    assert balr("input=corpus", "save_dir=out") == 1
    listed = {row["id"] for row in rows(tmp_path / "out" / "metadata.csv")}
    (failure,) = rows(tmp_path / "out" / "failures.csv")
    assert "c.wav" in listed and len(listed) == 2 and failure["stage"] == "write"
