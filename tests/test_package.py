"""The package's front door: lazy names, a cheap import, and wheels that carry the bundled data."""

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


def test_the_names_for_type_checkers_are_the_lazy_ones() -> None:
    source = (ROOT / "keylayers" / "__init__.py").read_text()
    typed = dict(re.findall(r"^    from keylayers\.(\w+) import (\w+) as \w+$", source, re.MULTILINE))
    names = re.findall(r"^    from keylayers\.(\w+) import (\w+) as \2$", source, re.MULTILINE)
    assert typed and {name: folder for folder, name in names} == keylayers._HOME


def test_every_folder_of_the_package_says_what_it_is() -> None:
    folders = [path for path in (ROOT / "keylayers").iterdir() if path.is_dir() and list(path.glob("*.py"))]
    assert len(folders) >= 8
    for folder in folders:
        assert (folder / "__init__.py").read_text().startswith('"""'), folder.name
