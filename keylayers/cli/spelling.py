"""How a command spells what messages call by its name in Python: `batch_size` is --batch-size."""

from typing import Any

from typer.core import TyperCommand

from keylayers.errors import Spelling, spelled

ALIASES = {
    "batch_size": ("batch",),
    "images": ("clean", "data"),
    "learning_rate": ("lr",),
    "learning_rates": ("lr",),
    "max_length": ("seq",),
    "policy": ("select",),
}
"""Setting in Python -> parameters of commands that say it, where those have another name."""


def flags_of(context: Any) -> Spelling:
    """Settings as the flags of the command that runs; none for a flag that it lacks, or a switch that is on already."""
    parameters = {str(one.name): one for one in context.command.params}

    def flag(name: str, value: str | None) -> str | None:
        owner, _, key = name.partition(".")  # settings.window=3: --set window=3
        parameter = next((parameters[name] for name in (owner, *ALIASES.get(owner, ())) if name in parameters), None)
        if parameter is None:
            return None
        if parameter.param_type_name == "argument":
            return str(parameter.name).upper() if value is None else value
        word = max(parameter.opts, key=len)
        if getattr(parameter, "is_flag", False):
            return None if context.params.get(str(parameter.name)) else word
        return " ".join([word, *([f"{key}={value}"] if key else [] if value is None else [value])])

    return flag


class Spoken(TyperCommand):
    """A command whose messages name its own flags."""

    def invoke(self, ctx: Any) -> Any:
        """Runs it."""
        with spelled(flags_of(ctx)):
            return super().invoke(ctx)
