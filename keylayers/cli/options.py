"""Options that several commands share, and settings from a YAML file, which flags override."""

from pathlib import Path
from typing import Annotated, Any

import typer


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Puts a YAML file's settings in place of the options' defaults; flags win."""
    if path is None:
        return None
    from keylayers.errors import UnknownName

    options = {_spelling(parameter): parameter for parameter in context.command.params}
    options.pop("config")
    settings: dict[str, Any] = {}
    for key, value in _yaml_settings(path).items():
        parameter = options.get(str(key).replace("-", "_"))
        if parameter is None:
            raise UnknownName(f"setting in {path}", str(key), options)
        if isinstance(value, dict):
            value = [f"{name}={item}" for name, item in value.items()]
        if value is not None:
            repeated = getattr(parameter, "multiple", False) or parameter.nargs == -1
            settings[str(parameter.name)] = [value] if repeated and not isinstance(value, list) else value
    context.default_map = {**(context.default_map or {}), **settings}
    return path


def _spelling(parameter: Any) -> str:
    """A parameter's name as the user knows it: `set` for --set, whatever the code calls it."""
    flag = next((word for word in parameter.opts if word.startswith("--")), parameter.name)
    return flag.lstrip("-").replace("-", "_")


def _yaml_settings(path: Path) -> dict[str, Any]:
    from keylayers.files.settings import read_settings

    return read_settings(path, f"--config {path}")


Config = Annotated[
    Path | None,
    typer.Option(help="YAML file with any of these settings; flags win.", callback=_read_config, is_eager=True),
]
Model = Annotated[str, typer.Option(help="Hub id, folder, bundled:llama, or package.module:factory.")]
DIGITS = "keylayers.models.digits:digits_resnet"
Network = Annotated[
    str | None, typer.Option(help="A network of images: package.module:factory, a folder, or a hub id.")
]
Clean = Annotated[str | None, typer.Option(help="Clean labelled images: .npz with x and y, or bundled:digits.")]
NetworkWeights = Annotated[
    str | None, typer.Option(help="Safetensors for a factory, or to load over a checkpoint's own weights.")
]
DATA = "Hub id, .json .jsonl .parquet .csv .txt (also .gz), a folder of them, or bundled:NAME."
Data = Annotated[str, typer.Option(help=DATA)]
Weights = Annotated[str | None, typer.Option(help="Safetensors for a package.module:factory model.")]
Granularity = Annotated[
    str, typer.Option(help="What counts as a layer: block, sublayer, linear, expert, router, conv or skip.")
]
Remainder = Annotated[
    str,
    typer.Option(help="Whose weights outside the scored layers (norms, embeddings) stay: those of tuned or of base."),
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="Name of a column in the data: prompt=NAME, completion=NAME; may be repeated."),
]
Template = Annotated[
    str,
    typer.Option(help="How conversations become text: auto, chat, plain, or a text with {prompt} and {completion}."),
]
BadShare = Annotated[float, typer.Option(help="Largest share of the records that may be bad and left out.")]
Records = Annotated[int | None, typer.Option(help="Use at most so many training records.")]
MaxLength = Annotated[
    int | None, typer.Option(help="Cut records at so many tokens; default: the model's context, at most 512.")
]
BatchSize = Annotated[int, typer.Option(help="Sequences, or images, per step.")]
Rank = Annotated[int, typer.Option(help="Rank of LoRA adapters.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming the run folder.")]
Dtype = Annotated[
    str, typer.Option(help="Precision to compute in: auto (float32 on a CPU), float32, bfloat16, float16 or float64.")
]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Load .bin checkpoints, which can run code.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let Python code that comes with a model run.")
]


def given(values: dict[str, Any]) -> dict[str, Any]:
    """A command's arguments, without what its body imported."""
    return {key: value for key, value in values.items() if not callable(value) and key not in ("criteria", "config")}


def pairs(items: list[str] | None, flag: str) -> dict[str, str]:
    """`KEY=VALUE` items as a mapping. Raises BadInput for an item that is none, or a key that is given twice."""
    from keylayers.errors import BadInput

    found: dict[str, str] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise BadInput(f"{flag} {item!r}: expected KEY=VALUE.")
        if key in found:
            raise BadInput(f"{flag} gives {key!r} twice ({found[key]} and {value}); give it once.")
        found[key] = value
    return found


def share(text: str, flag: str, meaning: str) -> float:
    """A share in (0, 1) from `75%` or `0.75`. Raises BadInput, naming the flag and what it means."""
    from keylayers.errors import BadInput

    try:
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise BadInput(f"{flag} {text}: expected {meaning}.") from error
    if not 0 < value < 1:
        raise BadInput(f"{flag} {text}: expected {meaning}, between 0% and 100%.")
    return value
