"""The lists of CONTRIBUTING.md, walked: what each says must be there is there, for all that has been added so far."""

import re
from pathlib import Path

import pytest

from faults.commands import COMMANDS
from keylayers.criteria import CRITERIA
from keylayers.papers.registry import PAPERS

ROOT = Path(__file__).parents[1]
ACTIONS = {
    "tune": "finetuning",
    "harden": "hardening",
    "cleanse": "cleansing",
    "screen": "screening",
}
"""Command -> module of the action behind it."""


def text(path: str) -> str:
    return (ROOT / path).read_text()


@pytest.mark.parametrize(("command", "module"), ACTIONS.items())
def test_an_action_has_all_that_the_guide_lists(command: str, module: str) -> None:
    assert f'"{module}"' in text("keylayers/actions/__init__.py")
    assert f"from keylayers.actions.{module} import" in text(f"keylayers/recipes/{command}.py")
    assert f"\ndef {command}(" in text("keylayers/cli/acting.py") and f"acting.{command}" in text(
        "keylayers/cli/app.py"
    )
    assert any(
        f"keylayers.actions.{module} " in path.read_text() for path in (ROOT / "tests/actions").glob("test_*.py")
    )
    assert text(f"docs/cards/{command}.md").startswith(f"# {command}\n")
    assert any(each.words.startswith(f"{command} ") for each in COMMANDS)


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_has_all_that_the_guide_lists(name: str) -> None:
    folder = name.replace("-", "_")
    assert re.search(r"^def reproduce\(", text(f"keylayers/papers/{folder}/study.py"), re.MULTILINE)
    assert f'"keylayers.papers.{folder}",' in text("pyproject.toml")
    assert list((ROOT / "tests/papers").glob(f"test_{folder}*.py"))
    assert text(f"docs/results/{name}.md").startswith("# ")


def test_only_the_registry_and_papers_themselves_import_papers() -> None:
    for path in (ROOT / "keylayers").rglob("*.py"):
        home = path.relative_to(ROOT / "keylayers").as_posix()
        known = {name for name in re.findall(r"from keylayers\.papers\.?(\w*)", path.read_text())}
        if not home.startswith("papers/"):
            assert known <= {"registry"}, home
        elif home != "papers/registry.py":
            assert known <= {home.split("/")[1]}, home


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_has_all_that_the_guide_lists(name: str) -> None:
    assert f"\ndef score_{name}(" in text(f"keylayers/criteria/{name}.py")
    assert text(f"docs/cards/{name}.md").startswith(f"# {name}\n")
