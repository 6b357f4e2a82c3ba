"""The command line: a shell over recipes; nothing imports it, and it imports nothing heavy before it must."""

import atexit
import os
import signal
import sys


def main() -> None:
    """Runs the command line; user errors print one text and exit with status 2, Ctrl-C with 130."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy machine, spinning threads starve the one that works
    from keylayers.cli.streams import shown_streams
    from keylayers.errors import KeylayersError
    from keylayers.runs.signals import termination_interrupts

    with shown_streams(), termination_interrupts():  # a report that is being drawn when SIGTERM comes leaves nothing
        try:
            from keylayers.cli.app import app

            app(prog_name="keylayers")
        except KeylayersError as error:
            sys.stderr.write(f"keylayers: {error}\n")
            raise SystemExit(2) from error
        except OSError as error:  # wherever a path that cannot be was only asked about, as one of 300 characters
            what = f"{error.filename}: " if error.filename else ""
            sys.stderr.write(f"keylayers: {what}{error.strerror or error}\n")
            raise SystemExit(2) from error
        except KeyboardInterrupt as stop:
            raise SystemExit(130) from stop
        finally:  # Ctrl-C while Python and its libraries tidy up ends the process, where it would be a traceback
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)
