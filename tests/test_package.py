"""The package's front door: lazy names, a cheap import, and wheels that carry the bundled data."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keylayers

ROOT = Path(__file__).parents[1]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_importing_the_package_imports_no_heavy_library() -> None:
    heavy = ["torch", "transformers", "numpy", "scipy", "datasets", "matplotlib"]
    loaded = run(f"import keylayers, sys; print([name for name in {heavy} if name in sys.modules])")
    assert loaded.strip() == "[]"


@pytest.mark.parametrize("folder", ["scores", "runs", "world"])
def test_folders_that_the_quick_commands_use_import_no_torch(folder: str) -> None:
    loaded = run(f"import keylayers.{folder}, sys; print('torch' in sys.modules, 'transformers' in sys.modules)")
    assert loaded.split() == ["False", "False"]


@pytest.mark.parametrize("name", keylayers.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(keylayers, name)
    assert value is not None
    assert name in dir(keylayers)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'layerscores'"):
        _ = keylayers.layerscores
    with pytest.raises(ImportError):
        importlib.import_module("keylayers.layerscores")


FACADES = ("", "actions", "exports", "layers", "models", "training")
"""Rooms whose public names are loaded when first used."""


@pytest.mark.parametrize("room", FACADES)
def test_the_names_for_type_checkers_are_the_lazy_ones(room: str) -> None:
    module = importlib.import_module(f"keylayers.{room}".rstrip("."))
    source = Path(module.__file__ or "").read_text()
    typed = re.findall(rf"^    from {re.escape(module.__name__)}\.(\w+) import (\w+) as \2$", source, re.MULTILINE)
    assert typed
    for name, home in module._HOME.items():
        assert (home, name) in typed, f"mypy does not see {module.__name__}.{name}"


def test_only_public_names_are_listed() -> None:
    assert dir(keylayers) == sorted(keylayers.__all__)


@pytest.mark.long
def test_mypy_reveals_a_type_for_every_public_name(tmp_path) -> None:
    from mypy import api

    modules = [importlib.import_module(f"keylayers.{room}".rstrip(".")) for room in FACADES]
    names = [f"{module.__name__}.{name}" for module in modules for name in module._HOME]
    lines = [*(f"import {module.__name__}" for module in modules), *(f"reveal_type({name})" for name in names)]
    (tmp_path / "revealed.py").write_text("\n".join(lines) + "\n")
    said, _, _ = api.run(["--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "revealed.py")])
    revealed = re.findall(r"Revealed type is \"(.*)\"", said)
    assert len(revealed) == len(names), said
    assert not [name for name, kind in zip(names, revealed, strict=True) if kind == "Any"]


def public_definitions(path: Path) -> set[str]:
    nodes = ast.parse(path.read_text()).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_no_module_bears_the_name_of_what_it_defines() -> None:
    """... but one, which scripts of users import by that name."""
    paths = [path for path in (ROOT / "keylayers").rglob("*.py") if path.stem in public_definitions(path)]
    assert paths == [ROOT / "keylayers" / "data" / "batches.py"]


def test_every_folder_of_the_package_says_what_it_is() -> None:
    folders = [path for path in (ROOT / "keylayers").iterdir() if path.is_dir() and list(path.glob("*.py"))]
    assert len(folders) >= 8
    for folder in folders:
        assert (folder / "__init__.py").read_text().startswith('"""'), folder.name
