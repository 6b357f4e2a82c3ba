"""Where real models and data lie on this machine, as two variables of the environment say."""

import os

MODELS, DATA = "KEYLAYERS_MODELS", "KEYLAYERS_DATA"


def real_places() -> tuple[str, str] | None:
    """The folders of models and of data; None unless both variables are set."""
    models, data = os.environ.get(MODELS), os.environ.get(DATA)
    return (models, data) if models and data else None
