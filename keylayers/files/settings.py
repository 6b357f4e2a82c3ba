"""Settings out of YAML: plain values, no references, which a few lines can make exponentially many."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keylayers.errors import BadInput
from keylayers.files.control_characters import printable
from keylayers.files.foreign import explained
from keylayers.files.regular import check_regular


def read_settings(path: Path, called: str) -> dict[str, Any]:
    """The settings of a YAML file that messages call so, each a plain value, a list of such or a table of such.

    Raises:
        BadInput: for what is no regular file or no YAML, holds a name twice, or values within values.
    """
    import yaml

    class Plain(yaml.SafeLoader):
        """Without references, and with each name once."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise BadInput(f"{called} refers to values by *; write each where it belongs")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [self.construct_object(key) for key, _ in node.value]
            if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
                raise BadInput(f"{called} gives {twice!r} twice; give it once")
            return super().construct_mapping(node, deep)

    with explained(f"{called} is no YAML"), open(check_regular(path), encoding="utf-8") as file:
        stored = yaml.load(file, Plain)
    if not isinstance(stored, dict):
        raise BadInput(f"{called} must hold settings as `name: value` lines.")
    for name, value in stored.items():
        _check_plain(called, str(name), value, deep=True)
    return {str(name): value for name, value in stored.items()}


def _check_plain(called: str, name: str, value: Any, deep: bool = False) -> None:
    if deep and isinstance(value, list | Mapping):
        for inner in [*value, *(value.values() if isinstance(value, Mapping) else ())]:
            _check_plain(called, name, inner)
    elif value is not None and not isinstance(value, str | int | float):
        raise BadInput(f"{called}: the value of {name!r} is a {type(value).__name__}; expected text or a number")
    elif isinstance(value, str) and printable(value) != value:
        raise BadInput(
            f"{called}: the value of {name!r} holds a control character ({printable(value)!r}); leave it out"
        )
