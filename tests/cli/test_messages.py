"""Every text of the package advises only what there is: flags on the command that says it, settings that exist."""

import re
from collections import defaultdict
from dataclasses import fields

import pytest
import typer

from keylayers import criteria
from keylayers.cli.app import COMMANDS, app
from keylayers.cli.spelling import ALIASES
from keylayers.errors import SETTING
from tests.cli.messages import Source, Text, run_by, sources

FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
OF_A_COMMAND = re.compile(r"(?:keylayers |^)([a-z]+)((?: [^\s`;)]+)*)")
OTHERS = {
    "keylayers.exports": {"--config"},
    "keylayers.exports.trl": {"--config", "--dataset", "--output"},
    "keylayers.exports.spectrum": {"--top-percent"},
    "keylayers.measures.peer_attacks": {"--no-deps"},
}
"""Flags of other tools, by the module that names them."""


@pytest.fixture(scope="module")
def known() -> dict[str, Source]:
    return sources()


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """Command -> its flags."""
    group = typer.main.get_command(app)
    return {
        name: {word for parameter in command.params for word in parameter.opts} | {"--help"}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }


@pytest.fixture(scope="module")
def texts(known) -> list[Text]:
    return [text for source in known.values() for text in source.texts()]


def without_commands(words: str, flags: dict[str, set[str]]) -> str:
    """The text without the command lines it names; each of these has its flags."""
    for command, rest in OF_A_COMMAND.findall(words):
        if command in flags:
            lacking = set(FLAG.findall(rest)) - flags[command]
            assert not lacking, f"keylayers {command} has no {', '.join(lacking)}: {words}"
    return OF_A_COMMAND.sub("", words)


def test_below_the_command_line_no_text_names_a_flag(texts, flags):
    """Several commands can say it: a setting stands there by its name in Python, which each spells as its own flag."""
    wrong = []
    for text in texts:
        if not text.place[0].startswith("keylayers.cli.") and (" " in text.words or text.said):
            found = set(FLAG.findall(without_commands(text.words, flags))) - OTHERS.get(text.place[0], set())
            wrong += [f"{flag} in {text}" for flag in found]
    assert not wrong, "\n".join(wrong)


def test_each_flag_that_a_command_names_is_one_of_its_own(known, texts, flags):
    says = defaultdict(set)
    for command in COMMANDS:
        for place in run_by((command.__module__, command.__name__), known):
            says[place].add(command.__name__)
    named, wrong = 0, []
    for text in texts:
        if text.place[0].startswith("keylayers.cli.") and (" " in text.words or text.said):
            for flag in FLAG.findall(without_commands(text.words, flags)):
                named += 1
                wrong += [f"{one} has no {flag}: {text}" for one in says[text.place] if flag not in flags[one]]
    assert not wrong, "\n".join(wrong)
    assert named > 20  # the walk came to them


def test_each_setting_that_a_text_names_exists(texts):
    """Where it has a value, or belongs to a criterion; other words between backticks may be anything."""
    group = typer.main.get_command(app)
    options = {one.name for command in group.commands.values() for one in command.params}  # type: ignore[attr-defined]
    options |= set(ALIASES)
    of_criteria = {one.name for name in criteria.CRITERIA for one in fields(criteria.get(name).settings)}
    named = set()
    for text in texts:
        for name, value in SETTING.findall(text.words if text.said else ""):
            owner, _, key = name.partition(".")
            if owner == "settings":
                assert key in of_criteria, text
            elif key or value:
                assert owner in options, text
            named.add(name)
    assert {"settings.estimate", "dtype", "batch_size", "columns.prompt"} <= named


def test_advice_to_set_something_stands_between_backticks(texts):
    """So that a command can spell it: `bad_share=0.1` is no flag of any. Policies are typed as they stand."""
    wrong = []
    loose = re.compile(r"(?:set|give|use|with|or|and|choose|take|leave) [a-z_]+=[\w'\"(]")
    for text in texts:
        if (
            text.said
            and text.place[0] != "keylayers.scores.policies"
            and loose.search(re.sub(r"`[^`]*`", "", text.words))
        ):
            wrong.append(str(text))
    assert not wrong, "\n".join(wrong)
