"""What other libraries raise while they read a file, in our words: a KeylayersError with their whole reason."""

from collections.abc import Iterator
from contextlib import contextmanager

from keylayers.errors import BadInput, KeylayersError
from keylayers.files.control_characters import printable

LONGEST = 2_000
"""Characters of a reason; some libraries list every class they know."""

SPOKEN = {"MemoryError": "not enough memory", "RecursionError": "nested too deeply"}


@contextmanager
def explained(problem: str, *remedies: str) -> Iterator[None]:
    """Whatever another library raises in the block becomes BadInput: the problem, the library's whole reason, remedies.

    Which exceptions a parser raises is no part of its interface and differs between versions, so none is listed here.
    Ours pass as they are, and so does what is no error, such as Ctrl-C.

    Raises:
        BadInput: for any failure but a KeylayersError.
    """
    try:
        yield
    except KeylayersError:
        raise
    except BaseException as error:
        # A panic of Rust code (tokenizers, safetensors) is a BaseException, although it is a failure like any other.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BadInput(f"{problem}: {reason(error)}", *remedies) from error


def reason(error: BaseException) -> str:
    """What an error says, all of it on one line and printable; what it is, where it says little of its own.

    A full stop at its end is left to whoever writes the sentence around it.
    """
    name = type(error).__name__
    if name in SPOKEN:
        return SPOKEN[name]
    text = getattr(error, "strerror", None) if isinstance(error, OSError) else None
    text = " ".join(printable(str(text or error)).split()).rstrip(".")
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    if isinstance(error, KeyError | IndexError | AttributeError | AssertionError | TypeError) or not text:
        return f"{name} ({text})" if text else name  # most say a bare name or number
    return text
