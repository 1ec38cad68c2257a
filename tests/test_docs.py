"""What README.md and docs/ say works: their commands and Python run, the options, keys, models and files they name exist.

The Hub is a stand-in on 127.0.0.1 that serves the tiny checkpoint under every published name, so that commands run as
they are written; what needs a GPU or processes of its own is composed instead (`--cfg job`).
"""

import csv
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from conftest import REPOSITORY, rows, speechlike, write_wav
from fake_hub import FakeHub
from hydra import compose, initialize_config_dir
from test_hub import point_to
from untrained_checkpoint import main as write_untrained

from balr import cli
from balr.checkpoints import hub_settings, published_checkpoints, published_names
from balr.composition import register
from balr.config import config_dir, known_keys

DOCS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
NAMES = [str(path.relative_to(REPOSITORY)) for path in DOCS]
NOT_OURS = ("git", "scp", "source", "pip", "#SBATCH")  # what sh blocks may hold beside balr, python -m balr.main and make
COMMANDS = typer.main.get_command(cli.app).commands
OPTIONS = {name for command in COMMANDS.values() for option in command.params for name in option.opts + option.secondary_opts}
OPTIONS |= {"--help", "--version", "--install-completion", "--show-completion"}
TARGETS = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: what it is, its text, and where it starts."""

    language: str
    text: str
    where: str


def blocks(name: str) -> list[Block]:
    text = (REPOSITORY / name).read_text()
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(fence[1], fence[2], f"{name}:{text[: fence.start()].count(chr(10)) + 1}") for fence in fences]


def spans(name: str) -> list[str]:
    """Return what stands in backticks outside of the fenced blocks."""
    text = re.sub(r"^```.*?^```$", "", (REPOSITORY / name).read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def commands(block: Block) -> list[tuple[str, str]]:
    """Return the commands of a block, each with the output that is shown below it."""
    found: list[tuple[str, str]] = []
    for line in block.text.splitlines():
        if block.language == "sh":
            found.append((line, ""))
        elif line.startswith("$ "):
            found.append((line.removeprefix("$ "), ""))
        else:
            found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
    return found


@pytest.fixture
def workspace(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder that holds what the docs name, before a Hub with all published models."""
    for recording in ("one.wav", "recordings/a.wav", "recordings/b/c.wav", "A/wav/a.wav", "voxceleb2/id1/v/1.wav"):
        write_wav(tmp_path / recording, speechlike(1.0, seed=len(recording)))
    (tmp_path / "voxceleb2" / "metadata.csv").write_text("id,audio,speaker\nx,id1/v/1.wav,id1\n")
    shutil.copytree(REPOSITORY / "resources", tmp_path / "resources")
    for folder in ("my_model", "models/mine"):
        shutil.copytree(tiny_checkpoint, tmp_path / folder)
    served = {("me/my-model", "main"): tiny_checkpoint}
    for repo, checkpoint in published_checkpoints().items():
        folder = served[repo, checkpoint.revision] = tmp_path / "hub" / checkpoint.name
        folder.mkdir(parents=True)
        for key, file in (("model_name", "avg_model.pt"), ("config_name", "config.yaml")):
            (folder / hub_settings(checkpoint.name)[key]).symlink_to(tiny_checkpoint / file)
    with FakeHub(served).serving() as hub:
        point_to(hub.url, monkeypatch, tmp_path / "cache")
        yield tmp_path


def run(line: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one command line in this process, or check that what it names exists."""
    words = shlex.split(line.removeprefix("srun "), comments=True)
    while words[:1] == ["cd"] or "&&" in words:
        words = words[words.index("&&") + 1 :] if words[0] == "cd" else words[: words.index("&&")]
    if not words or words[0] in NOT_OURS:
        return
    if words[0] == "make":
        assert set(words[1:]) <= set(TARGETS), f"{where}: {line}"
        return
    is_hydra = words[:3] == ["python", "-m", "balr.main"]
    assert is_hydra or words[0] == "balr", f"{where}: {line}: what is this?"
    if re.search(r"\bcuda\b|hydra/launcher", line):  # compose the first job of it
        for launcher in re.findall(r"hydra/launcher=(\w+)", line):
            assert (config_dir() / "hydra" / "launcher" / f"{launcher}.yaml").is_file(), f"{where}: {line}"
        words = [word.partition(",")[0] for word in words if word != "-m"] + ["--cfg", "job"]
    monkeypatch.setattr(sys, "argv", words[2:] if is_hydra else words)
    if is_hydra:
        from balr.main import main

        assert main() == 0, f"{where}: {line}"
        return
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, f"{where}: {line}"


@pytest.mark.parametrize("name", NAMES)
def test_every_block_does_what_it_says(
    name: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["untrained_checkpoint.py", "outputs/demo/checkpoint"])
    if "outputs/demo/checkpoint" in (REPOSITORY / name).read_text():
        write_untrained()  # as make demo does
    for block in blocks(name):
        if block.language == "python":
            exec(compile(block.text, block.where, "exec"), {})
        elif block.language == "yaml":
            path = workspace / block.text.splitlines()[0].removeprefix("# ")  # a command below composes it
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
            assert yaml.safe_load(block.text), block.where
        elif block.language in ("sh", "console"):
            for line, output in commands(block):
                capsys.readouterr()
                run(line, block.where, monkeypatch)
                if output:
                    assert masked(capsys.readouterr().err) == masked(output), block.where
        else:
            assert block.language in ("text", "csv") and not re.search(r"^\W*(balr|make) ", block.text), block.where


def masked(output: str) -> str:
    return re.sub(r"\d+ x real time", "N x real time", output).strip()


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_in_backticks_exists(name: str, workspace: Path) -> None:
    register()
    for span in spans(name):
        words = span.split()
        known = [word for word in words if word.startswith("--") and "SBATCH" not in span]
        assert {word.partition("=")[0] for word in known} <= OPTIONS, span
        if words[0] == "make":
            assert words[1] in TARGETS, span
        elif words[0] == "balr":
            assert words[1].startswith("--") or words[1] in COMMANDS, span
        if re.fullmatch(r"(tests|docs|scripts|conf|balr|resources|reference)/[\w./-]*", span):
            assert (REPOSITORY / span).exists(), span
        if re.fullmatch(r"test_\w+\.py", span):
            assert list((REPOSITORY / "tests").rglob(span)), span
        if re.fullmatch(r"(data|embeddings\.model)\.[\w.]+", span):
            assert any(f"{key}.".startswith(f"{span}.") for key in known_keys()), span
        for word in words:
            key, is_override, value = word.partition("=")
            if is_override and key.lstrip("+") and re.fullmatch(r"\+?[a-z_.]+(/\w+)?", key) and "hydra" not in key:
                composed(f"{key}={value.strip('…') or 'resnet34_lm'}")
    for link in re.findall(r"\]\(([^)#]+)\)", (REPOSITORY / name).read_text()):
        assert link.startswith("https://") or ((REPOSITORY / name).parent / link).exists(), link


def composed(override: str) -> Any:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("config", overrides=["input=recordings", override])


def test_the_table_of_folders_gives_the_folders(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (REPOSITORY / "docs" / "configuration.md").read_text()
    listed = re.findall(r"^\| `(balr extract [^`]+)` \| `([^`]+)` \|$", text, flags=re.MULTILINE)
    assert len(listed) == 6
    for line, folder in listed:
        capsys.readouterr()
        run(f"{line} --cfg job --resolve", "the table", monkeypatch)
        assert yaml.safe_load(capsys.readouterr().out)["save_dir"] == f"outputs/embeddings/{folder}"


def test_the_model_table_holds_the_published_facts_and_the_measured_speeds() -> None:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in DOCS[0].read_text().splitlines()]
    table = {row[0].split("`")[1]: row[1:] for row in cells if len(row) == 6 and row[0].startswith("`")}
    del table["embeddings/model="]
    assert set(table) == set(published_names())
    measured = {}
    for section in re.split(r"^\| (?=\w+ \| speech)", (REPOSITORY / "docs" / "benchmarks.md").read_text(), flags=re.M)[1:]:
        measured[section.split()[0]] = float(re.search(r"^\| balr \| ([\d.]+)", section, flags=re.M)[1])
    for checkpoint in published_checkpoints().values():
        dim, size, eer, speed, licence = table[checkpoint.name]
        assert (dim, size) == (str(checkpoint.embedding_dim), f"{checkpoint.parameters_millions:.1f} M")
        assert eer == (" / ".join(f"{rate:.2f}" for rate in checkpoint.eer_percent or ()) or "-")
        ratio = measured.get(checkpoint.architecture, 0) / measured["ResNet34"]
        assert speed == (f"{ratio:.2g}" if ratio else "-") and licence == checkpoint.licence


def test_the_columns_that_the_readme_names_are_those_of_a_run(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "recordings" / "text.wav").write_text("no audio")
    run("balr extract recordings/ --max-failures 1 --save-dir out", "here", monkeypatch)
    text = " ".join(DOCS[0].read_text().split())
    for file, columns in (("metadata", 5), ("failures", 4)):
        header = next(csv.reader((workspace / "out" / f"{file}.csv").open()))
        assert len(header) == columns and ", ".join(header) in text and rows(workspace / "out" / f"{file}.csv")


def test_the_readme_fits() -> None:
    lines = DOCS[0].read_text().splitlines()
    assert len(lines) <= 200 and max(len(line) for line in lines if not line.startswith("[![")) <= 130
