"""What README.md and docs/ say works: commands and Python run; the options, keys, models and files they name exist.

The Hub is a stand-in on 127.0.0.1 that serves the tiny checkpoint under every published name, so that commands run as
they are written; what needs a GPU or processes of its own is composed instead (`--cfg job`).
"""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from inspect import signature
from pathlib import Path

import pytest
import torch
import typer
import yaml
from conftest import HAS_BF16, REPOSITORY, rows, speechlike, write_wav
from fake_hub import FakeHub
from hydra import compose, initialize_config_dir
from test_hub import point_to

from balr import cli
from balr.checkpoints import hub_settings, published_checkpoints, published_names
from balr.composition import register
from balr.config import config_dir, known_keys
from balr.embeddings.wespeaker import WespeakerModel
from balr.main import main

DOCS = ["README.md", *(f"docs/{path.name}" for path in sorted((REPOSITORY / "docs").glob("*.md")))]
TEXTS = {name: (REPOSITORY / name).read_text() for name in DOCS}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
NOT_OURS = ("git", "torchrun", "#SBATCH", "wespeaker")  # beside balr, python -m balr.main and make
COMMANDS = typer.main.get_command(cli.app).commands
SHOWN = [option for command in COMMANDS.values() for option in command.params]
OPTIONS = {"--help", "--version", "--install-completion"} | {name for option in SHOWN for name in option.opts}
OPTIONS |= {name for option in SHOWN for name in option.secondary_opts}
PARAMETERS = {*signature(WespeakerModel.extract_embeddings).parameters, "weights_only"}  # what Python takes
TARGETS = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)


def commands(language: str, text: str) -> list[list[str]]:
    """Return the commands of a block, each with the output that is shown below it."""
    if language == "sh":
        return [[line, ""] for line in text.splitlines()]
    return [command.split("\n", maxsplit=1) for command in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]]


# A page may repeat a whole block of the README, which runs there.
IN_README = [
    [line for line, _ in commands(*fence)]
    for fence in FENCE.findall(TEXTS["README.md"])
    if fence[0] in ("sh", "console")
]


@pytest.fixture(scope="module")
def hub(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    served = {("me/my-model", "main"): tiny_checkpoint}
    for repo, checkpoint in published_checkpoints().items():
        folder = served[repo, checkpoint["revision"]] = tmp_path_factory.mktemp(checkpoint["name"])
        for key, file in (("model_name", "avg_model.pt"), ("config_name", "config.yaml")):
            (folder / hub_settings(checkpoint["name"])[key]).symlink_to(tiny_checkpoint / file)
    with FakeHub(served).serving() as serving:
        yield serving


@pytest.fixture
def workspace(hub: FakeHub, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the current folder, with the recordings, lists and checkpoints that the docs name."""
    for recording in ("one.wav", "recordings/a.wav", "recordings/b/c.wav", "A/wav/a.wav", "voxceleb2/id1/v/1.wav"):
        write_wav(tmp_path / recording, speechlike(1.0, seed=len(recording)))
    for number in (2, 3):
        write_wav(tmp_path / f"voxceleb2/id{number}/v/1.wav", speechlike(1.0, seed=number))
    rows = [f"id{number}/v/1,id{number}/v/1.wav,id{number}" for number in (1, 2, 3)]
    (tmp_path / "voxceleb2" / "metadata.csv").write_text("\n".join(["id,audio,speaker", *rows]))
    shutil.copytree(REPOSITORY / "resources", tmp_path / "resources")
    for folder in ("my_model", "models/mine"):
        shutil.copytree(tiny_checkpoint, tmp_path / folder)
    point_to(hub.url, monkeypatch, tmp_path / "cache")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads wait for one another where other tests run
    yield tmp_path
    torch.set_num_threads(threads)


def run(line: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one command line in this process, or check that what it names exists."""
    words = shlex.split(re.sub(r"^srun |&& .*", "", line), comments=True)
    if not words or words[0] in NOT_OURS:
        return
    if "ray_cluster" in line and find_spec("ray") is None:  # an extra
        return
    if words[0] == "make":
        assert set(words[1:]) <= set(TARGETS), f"{where}: {line}"
        return
    is_hydra = words[:3] == ["python", "-m", "balr.main"]
    assert is_hydra or words[0] == "balr", f"{where}: {line}: what is this?"
    beyond = r"\bcuda\b|hydra/launcher|=openvino\b" + ("" if HAS_BF16 else r"|\bbf16\b")
    if re.search(beyond, line):  # compose its first job
        words = [
            re.sub(r",.*|range\(\d+\)", lambda found: "0" * found[0].startswith("range"), word)
            for word in words
            if word != "-m"
        ]
        words += ["--cfg", "job"]
    if (is_hydra or words[1] == "extract") and " data=" not in line:
        words.append("data=serial")  # no processes that decode, which take a second to start
    monkeypatch.setattr(sys, "argv", words[2:] if is_hydra else words)
    if is_hydra:
        assert main() == 0, f"{where}: {line}"
        return
    assert cli.run_command() == 0, f"{where}: {line}"


@pytest.mark.usefixtures("bundled_once")
@pytest.mark.parametrize("name", DOCS)
def test_every_block_does_what_it_says(
    name: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for fence in FENCE.finditer(TEXTS[name]):
        language, text = fence.groups()
        where = f"{name}:{TEXTS[name].count(chr(10), 0, fence.start()) + 1}"
        if language == "python":
            block = compile(text, where, "exec")
            if "import faiss" not in text or find_spec("faiss"):  # no dependency of balr's, nor of its tests
                exec(block, {})
        elif language == "yaml":
            path = workspace / text.splitlines()[0].removeprefix("# ")  # a command below composes it
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            assert yaml.safe_load(text), where
        elif name != "README.md" and [line for line, _ in commands(language, text)] in IN_README:
            assert language == "sh", where  # and shows no output of its own
        elif language in ("sh", "console"):
            for line, output in commands(language, text):
                capsys.readouterr()
                run(line, where, monkeypatch)
                printed = capsys.readouterr()
                assert is_as_shown(printed.err + printed.out, output), where
        else:
            assert language in ("text", "csv") and not re.search(r"^\W*(balr|make) ", text, re.M), where
            named = re.findall(r"^  (\S+)", text, re.M) if text.startswith("conf/") else []
            assert all(list(config_dir().glob(file)) for file in named), where


def is_as_shown(printed: str, shown: str) -> bool:
    """Return whether a command printed what a page shows, which may break off with an ellipsis."""
    whole, start = masked(printed), masked(shown)
    return not shown or (whole.startswith(start[:-1]) if start.endswith("…") else whole == start)


def masked(output: str) -> str:
    """Leave out what another processor or folder changes: speeds, paths of the checkout, and the numbers of tables."""
    output = output.replace(f"{REPOSITORY}/", "")
    output = re.sub(r"\d+ x real time", "N x real time", output)
    return "\n".join(re.sub(r" +", " ", re.sub(r"[\d.]*\d\.\d+%?", "N", line)) for line in output.strip().splitlines())


@pytest.mark.parametrize("name", DOCS)
def test_what_stands_in_backticks_exists(name: str) -> None:
    """Check what looks like a command, an option, a path, a key or a model, outside of the blocks."""
    register()
    text = FENCE.sub("", TEXTS[name])
    for span in re.findall(r"`([^`\n]+)`", text):
        words = span.split()
        known = [word for word in words if word.startswith("--") and words[0] not in NOT_OURS]
        assert {word.partition("=")[0] for word in known} <= OPTIONS, span
        if words[0] in ("make", "balr"):
            assert all(word in [*TARGETS, *COMMANDS, *OPTIONS] for word in words[1:2]), span
        if re.fullmatch(r"(tests|docs|scripts|conf|balr|resources|reference)/[\w./-]*", span):
            assert (REPOSITORY / span).exists(), span
        if re.fullmatch(r"test_\w+\.py", span):
            assert list((REPOSITORY / "tests").rglob(span)), span
        if re.fullmatch(r"(data|embeddings\.model)\.[\w.]+", span):
            assert any(f"{key}.".startswith(f"{span}.") for key in known_keys()), span
        if re.fullmatch(r"(resnet|campplus|ecapa_|redimnet|samresnet|cnceleb|gemini)\w*", span):
            assert span in published_names(), span
        for word in words:
            key, is_override, value = word.partition("=")
            if is_override and re.fullmatch(r"\+?[a-z_.]+(/\w+)?", key) and key not in PARAMETERS:
                given = f"{key}={value or 'resnet34_lm'}"
                with initialize_config_dir(str(config_dir()), version_base="1.3"):
                    compose("config", overrides=[given] if key == "input" else ["input=x", given])
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or ((REPOSITORY / name).parent / link).exists(), link


def test_the_table_of_folders_gives_the_folders(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = re.compile(r"^\| `(balr extract [^`]+)` \| `([^`]+)` \|$", flags=re.MULTILINE)
    listed = table.findall(TEXTS["docs/configuration.md"])
    assert len(listed) == 7
    for line, folder in listed:
        capsys.readouterr()
        run(f"{line} --cfg job --resolve", "the table", monkeypatch)
        assert yaml.safe_load(capsys.readouterr().out)["save_dir"] == f"outputs/embeddings/{folder}"


def test_the_model_table_holds_the_published_facts_and_the_measured_speeds() -> None:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TEXTS["README.md"].splitlines()]
    table = {row[0].split("`")[1]: row[1:] for row in cells if len(row) == 6 and row[0].startswith("`")}
    del table["embeddings/model="]
    assert set(table) == set(published_names())
    speeds = re.compile(r"^\| (\w+) \| speech.*?^\| balr \| ([\d.]+)", flags=re.MULTILINE | re.DOTALL)
    measured = {network: float(speed) for network, speed in speeds.findall(TEXTS["docs/benchmarks.md"])}
    for checkpoint in published_checkpoints().values():
        dim, size, eer, speed, licence = table[checkpoint["name"]]
        assert (dim, size) == (checkpoint["embedding_dim"], f"{float(checkpoint['parameters_millions']):.1f} M")
        rates = [checkpoint[f"eer_{trials}"] for trials in "oeh"]
        assert eer == (" / ".join(f"{float(rate):.2f}" for rate in rates) if all(rates) else "-")
        ratio = measured.get(checkpoint["architecture"], 0) / measured["ResNet34"]
        assert speed == (f"{ratio:.2g}" if ratio else "-") and licence == checkpoint["licence"]


def test_the_columns_that_the_readme_names_are_those_of_a_run(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "recordings" / "text.wav").write_text("no audio")
    run("balr extract recordings/ --max-failures 1 --save-dir out", "here", monkeypatch)
    text = " ".join(TEXTS["README.md"].split())
    for file in ("metadata", "failures"):
        assert ", ".join(rows(workspace / "out" / f"{file}.csv")[0]) in text


def test_the_lines_that_never_ran_on_a_gpu_are_those_of_the_code() -> None:
    *_, block = (text for language, text in FENCE.findall(TEXTS["docs/gpu.md"]) if language == "text")
    listed = [
        (file, line)
        for file, *lines in map(str.splitlines, re.split(r"^(?=balr/)", block, flags=re.M)[1:])
        for line in lines
    ]
    code = {file: (REPOSITORY / file).read_text().splitlines() for file in {file for file, _ in listed}}
    assert all(line.strip() in map(str.strip, code[file]) for file, line in listed)


def test_the_readme_has_at_most_200_lines() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 200
