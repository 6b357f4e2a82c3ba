"""Where real models and data lie on this machine, as two variables of the environment say."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from keylayers.runs import Given

MODELS, DATA = "KEYLAYERS_MODELS", "KEYLAYERS_DATA"


def real_data_folders() -> tuple[str, str] | None:
    """The folders of models and of data; None unless both variables are set."""
    models, data = os.environ.get(MODELS), os.environ.get(DATA)
    return (models, data) if models and data else None


def given_of(asked: Any) -> Given:
    """What of these folders a study reads: every place below them that is named in what is asked.

    By the names of the variables: where the folders lie says nothing about what they hold.
    """
    if (places := real_data_folders()) is None:
        return Given()
    named = dict.fromkeys(text for text in _texts(asked) if text.startswith(places) and Path(text).exists())
    for name, place in zip((MODELS, DATA), places, strict=True):
        named = dict.fromkeys(f"${name}{text[len(place) :]}" if text.startswith(place) else text for text in named)
    return Given(data=tuple(named))


def _texts(value: Any) -> Iterator[str]:
    """Every text in dataclasses, mappings and sequences within each other."""
    if isinstance(value, str):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _texts(getattr(value, field.name))
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
