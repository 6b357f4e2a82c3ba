"""How a model is spelled: hub id, local folder, `bundled:NAME` or package.module:factory; and what a file may name."""

import os
import re
from pathlib import Path

from keylayers.errors import BadInput, UnknownName

BUNDLED = Path(__file__).resolve().parent.parent / "world" / "bundled"
BUNDLED_MODELS = {
    "llama": BUNDLED,
    **{name: BUNDLED / name for name in ("llama-again", "llama-shallow", "llama-narrow")},
}
VARIABLE = re.compile(r"\$(?:\{(KEYLAYERS_\w+)\}|(KEYLAYERS_\w+))")


def is_factory(source: str) -> bool:
    """Whether a source is package.module:function."""
    return ":" in source and not source.startswith("bundled:") and not os.path.exists(source)


def local_folder(source: str) -> Path | None:
    """The folder on this machine that a source names; None for a hub id.

    Raises:
        UnknownName: for a bundled name that does not exist.
        BadInput: for a path at which there is no folder.
    """
    kind, _, name = source.partition(":")
    if kind == "bundled":
        if name not in BUNDLED_MODELS:
            raise UnknownName("bundled model", name, BUNDLED_MODELS)
        return BUNDLED_MODELS[name]
    path = os.path.expanduser(source) if "\0" not in source else source
    if os.path.isdir(path):
        return Path(path)
    if os.path.exists(path) or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise BadInput(
            f"no folder {source!r}; give a checkpoint folder as save_pretrained writes it, or a hub id like 'org/name'."
        )
    return None


def stated_source(stated: object) -> str:
    """The model that a file names, its variables filled in, if it may be loaded on the file's word alone.

    Only variables that are ours are filled in: others may hold secrets, and a hub id is sent to the hub.

    Raises:
        BadInput: if it names none, a variable that is not set, or code that would run.
    """
    source = VARIABLE.sub(lambda found: os.environ.get(found[1] or found[2], found[0]), str(stated or ""))
    if not source:
        raise BadInput("the score file does not say which model it is of", "name it as `model`")
    if VARIABLE.search(source):
        raise BadInput(f"the scores are of {source!r}", "set that variable", "name the model as `model`")
    if "$" in source:
        raise BadInput(
            f"the scores are of {source!r}, and only variables called KEYLAYERS_... are filled in",
            "name the model as `model`",
        )
    if is_factory(source):
        raise BadInput(
            f"the scores are of {source!r}, which is code that would run", f"if you trust it, say so: `model={source}`"
        )
    return source
