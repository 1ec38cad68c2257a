"""The picture of the design holds: arrows point one way, files fit in one head, doors open without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import balr

PACKAGE = Path(balr.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = (
    {"errors", "records", "config", "atomic", "shutdown", "logs", "checkpoints", "hub", "composition", "hydra_errors"},
    {"stores"},
    {"data"},
    {"embeddings", "runs", "evaluation"},
    {"extraction", "export", "evaluate", "report", "reuse"},
    {"jobs", "sweeps"},
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


def test_a_module_imports_only_its_own_layer_and_those_below() -> None:
    side_by_side = {"embeddings", "runs", "evaluation"}
    seen = 0
    for path in FILES:
        name = ".".join(("balr", *path.relative_to(PACKAGE).with_suffix("").parts))
        if path.name == "__init__.py":  # but for type checkers
            statements = [one for one in ast.parse(path.read_text()).body if isinstance(one, ast.ImportFrom)]
            assert not [one for one in statements if str(one.module).startswith("balr")], name
            continue
        for imported in imports(path):
            own, other = name.split(".")[1], imported.split(".")[1]
            is_below = layer(imported) < layer(name)
            is_own_layer = layer(imported) == layer(name) and (own not in side_by_side or other == own)
            assert is_below or is_own_layer, f"{name} imports {imported}"
            seen += 1
    assert seen > 100


def test_a_file_fits_in_one_head() -> None:
    of_options = ("extract", "verify", "export", "evaluate")  # whose length is that of their options
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 250, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name not in of_options:
                assert (node.end_lineno or 0) - node.lineno < 45, f"{path}: {node.name}"


DOORS = (
    (["--help"], 0),
    (["models"], 0),
    (["extract", "--help"], 0),
    (["extract", "x", "--cfg", "job"], 0),
    (["extract"], 2),
)


def test_doors_open_and_wrong_options_are_told_without_torch(tmp_path: Path) -> None:
    program = f"""
import sys
from balr.cli import app

for command, code in {DOORS!r}:
    sys.argv = ["balr", *command]
    try:
        app()
    except SystemExit as stop:
        assert (stop.code or 0) == code, (command, stop.code)
    heavy = {{"torch", "torchaudio", "soundfile", "wespeaker"}} & set(sys.modules)
    assert not heavy, (command, heavy)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_in_the_repository_names_a_package_registry() -> None:
    listed = ("pyproject.toml", "requirements.lock", "Makefile", "README.md", ".ci/run", ".github/workflows/ci.yml")
    hosts = ("py" + "pi.org", "python" + "hosted", "--index" + "-url", "find" + "-links")
    for name in listed:
        text = (PACKAGE.parent / name).read_text()
        assert not [host for host in hosts if host in text.replace("no-emit-index-url", "")], name
