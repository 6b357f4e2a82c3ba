"""What messages call by names of Python, a command calls by its own flags."""

import typer

from keylayers.cli.app import app
from keylayers.cli.spelling import flags_of


def spelling(words):
    """Of the command that these words run."""
    group = typer.main.get_command(app)
    command = group.commands[words[0]]
    return flags_of(command.make_context(words[0], list(words[1:])))


def test_flags_arguments_and_settings_of_commands():
    score = spelling(["score", "--model", "m", "--data", "d", "--allow-pickle"])
    assert score("batch_size", "4") == "--batch-size 4" and score("learning_rate", None) == "--lr"
    assert (
        score("settings.window", "3") == "--set window=3" and score("columns.prompt", "NAME") == "--column prompt=NAME"
    )
    assert score("trust_remote_code", None) == "--trust-remote-code" and score("overwrite", None) is None
    assert score("allow_pickle", None) is None  # it is given, so nothing to advise
    doctor = spelling(["doctor", "m"])
    assert doctor("model", None) == "MODEL" and doctor("max_length", "9") == "--seq 9"
    assert doctor("settings.window", "3") is None
