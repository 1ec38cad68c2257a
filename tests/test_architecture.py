"""The picture of the design holds: arrows point one way, files fit in one head, doors open without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import balr

PACKAGE = Path(balr.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = (
    {"errors", "records", "config", "atomic", "shutdown", "logs", "checkpoints", "hub", "composition", "hydra_errors"},
    {"stores"},
    {"data"},
    {"embeddings", "runs", "evaluation"},
    {"extraction", "export", "evaluate", "report", "reuse", "engines"},
    {"jobs", "launchers", "sweeps"},
    {"main"},
    {"cli", "store_commands", "evaluation_commands", "overrides", "suggestions"},
)


def layer(module: str) -> int:
    part = module.split(".")[1]
    return next(number for number, names in enumerate(LAYERS) if part in names)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("balr."):
            found.add(str(node.module))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_its_own_layer_and_those_below(path: Path) -> None:
    name = ".".join(("balr", *path.relative_to(PACKAGE).with_suffix("").parts))
    if path.name == "__init__.py":  # but for type checkers
        statements = ast.parse(path.read_text()).body
        assert not [one for one in statements if isinstance(one, ast.ImportFrom) and str(one.module).startswith("balr")]
        return
    assert all(layer(imported) <= layer(name) for imported in imports(path))
    side_by_side = {part for part in ("embeddings", "runs", "evaluation") if name.split(".")[1] == part}
    for imported in imports(path):
        part = imported.split(".")[1]
        assert not side_by_side or part in side_by_side or layer(imported) < layer(name), imported


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_fits_in_one_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 250
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name not in (
            "extract",
            "verify",
            "export",
            "evaluate",
        ):  # their length is their options
            assert (node.end_lineno or 0) - node.lineno < 45, node.name


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["--help"], 0),
        (["models"], 0),
        (["extract", "--help"], 0),
        (["extract", "x", "--cfg", "job"], 0),
        (["extract"], 2),
    ],
)
def test_doors_open_and_wrong_options_are_told_without_torch(command: list[str], code: int, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['balr', *{command!r}]\n"
        "from balr.cli import app\n"
        f"try:\n    app()\nexcept SystemExit as stop:\n    assert (stop.code or 0) == {code}, stop.code\n"
        "heavy = {'torch', 'torchaudio', 'soundfile', 'wespeaker'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_in_the_repository_names_a_package_registry() -> None:
    listed = ("pyproject.toml", "requirements.lock", "Makefile", "README.md", ".ci/run", ".github/workflows/ci.yml")
    hosts = ("py" + "pi.org", "python" + "hosted", "--index" + "-url", "find" + "-links")
    for name in listed:
        text = (PACKAGE.parent / name).read_text()
        assert not [host for host in hosts if host in text.replace("no-emit-index-url", "")], name
