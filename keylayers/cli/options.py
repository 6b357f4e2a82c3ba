"""Options that several commands share, and settings from a YAML file, which flags override."""

from pathlib import Path
from typing import Annotated, Any

import typer


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Puts a YAML file's settings in place of the options' defaults; flags win."""
    if path is None:
        return None
    import yaml

    from keylayers.errors import BadInput, UnknownName

    try:
        stored = yaml.safe_load(path.read_text())
    except OSError as error:
        raise BadInput(f"--config {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"--config {path} is no YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(stored, dict):
        raise BadInput(f"--config {path} must hold settings as `name: value` lines.")
    known = {parameter.name for parameter in context.command.params} - {"config"}
    alias = {"set": "settings"}
    settings: dict[str, Any] = {}
    for key, value in stored.items():
        name = alias.get(str(key), str(key).replace("-", "_"))
        if name not in known:
            raise UnknownName(f"setting in {path}", str(key), known)
        if name == "settings" and isinstance(value, dict):
            value = [f"{k}={v}" for k, v in value.items()]
        settings[name] = value
    context.default_map = {**(context.default_map or {}), **settings}
    return path


Config = Annotated[
    Path | None,
    typer.Option(help="YAML file with any of these settings; flags win.", callback=_read_config, is_eager=True),
]
Model = Annotated[str, typer.Option(help="Hub id, folder, bundled:llama, or package.module:factory.")]
Data = Annotated[str, typer.Option(help="Hub id, .json .jsonl .parquet .csv .txt (also .gz), or bundled:NAME.")]
Weights = Annotated[str | None, typer.Option(help="Safetensors for a package.module:factory model.")]
Granularity = Annotated[str, typer.Option(help="block, sublayer, linear, expert, router or conv.")]
Columns = Annotated[list[str] | None, typer.Option("--column", help="Map a column: prompt=NAME, completion=NAME.")]
Records = Annotated[int | None, typer.Option(help="Most training records.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens a record is cut at; default: context, at most 512.")]
BatchSize = Annotated[int, typer.Option(help="Sequences per step.")]
Rank = Annotated[int, typer.Option(help="Rank of LoRA adapters.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming the run folder.")]
Dtype = Annotated[str, typer.Option(help="auto (fp32 on a CPU), float32, bfloat16 or float16.")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Load .bin checkpoints, which can run code.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run model code from the hub.")]


def given(values: dict[str, Any]) -> dict[str, Any]:
    """A command's arguments, without what its body imported."""
    return {key: value for key, value in values.items() if not callable(value) and key not in ("criteria", "config")}


def pairs(items: list[str] | None, flag: str) -> dict[str, Any]:
    """`KEY=VALUE` items as a mapping, with numbers and booleans read as YAML does."""
    import yaml

    from keylayers.errors import BadInput

    found: dict[str, Any] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise BadInput(f"{flag} {item!r}: expected KEY=VALUE.")
        found[key] = yaml.safe_load(value)
    return found
