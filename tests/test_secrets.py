"""Tokens of the Hub reach no log, no record, no list and no folder of Hydra's, whatever a server answers."""

import logging
import sys
from pathlib import Path

import pytest
from conftest import Command

from balr.errors import redacted
from balr.logs import PlainFormatter
from balr.main import main

TOKEN = "hf_ThisIsASecretTokenOfTheHub0123456789"


def test_what_looks_like_a_secret_is_blanked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "tiny-secret")
    assert (
        redacted(f"401 for tiny-secret at https://me:word@host/x with {TOKEN}")
        == "401 for *** at https://***@host/x with ***"
    )
    assert redacted("nothing of the kind, hf_hub, a://b/c@d") == "nothing of the kind, hf_hub, a://b/c@d"


def test_a_traceback_in_the_log_is_blanked_out_too() -> None:
    try:
        raise ValueError(f"Authorization: Bearer {TOKEN}")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "x", 1, "failed", (), sys.exc_info())
    text = PlainFormatter().format(record)
    assert "Traceback" in text and TOKEN not in text


def test_no_file_and_no_line_of_a_run_holds_the_token(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(f"401: your request held Authorization: Bearer {TOKEN}")

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", f"http://me:{TOKEN}@127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refused)
    (corpus / "text.wav").write_text("no audio")
    assert balr(f"input={corpus}", "save_dir=out", "hydra.verbose=true") == 1
    assert main([f"input={corpus}", "save_dir=out2"]) == 2
    told = capsys.readouterr()
    assert "Bearer ***" in told.err and TOKEN not in told.out + told.err
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "hydra.yaml" for path in written) and any(path.name == "run.json" for path in written)
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
