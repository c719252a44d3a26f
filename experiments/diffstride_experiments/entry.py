"""Error handling of all console commands. This module imports no third-party package."""

import io
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from diffstride_experiments.errors import ExperimentError, UsageError

__all__ = ["importing", "run_command"]

INSTALL = "pip install 'diffstride[experiments]'"


@contextmanager
def importing(install: str = INSTALL) -> Iterator[None]:
    """Import what a script needs, and report a missing package on one line.

    Parameters
    ----------
    install : str
        Command that installs all the packages.

    Raises
    ------
    SystemExit
        After an error or an interruption.
    """
    try:
        yield
    except ImportError as error:
        _end(1, f"error: {_missing(error, install)}")
    except KeyboardInterrupt:
        _end(130, "\nInterrupted.")


def run_command(command: Callable[[], object], go_on: str) -> None:
    """Run a console command and report each error on one line.

    The exit status is 2 for an option or a recipe that is not allowed, 1 for any other failure and
    130 for an interruption.

    Parameters
    ----------
    command : callable
        Function that does the work. It contains its imports, so that a failed import is reported
        too.
    go_on : str
        What the same command will do after an interruption, for the message.

    Raises
    ------
    SystemExit
        After an error or an interruption.
    """
    for stream in (sys.stdout, sys.stderr):
        # File names may contain characters that the terminal's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    threading.excepthook = _leaving_out_errors_of_writing(threading.excepthook)
    try:
        command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        line = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        _end(130, f"\nInterrupted. {go_on} with the same command:\n  {line}")
    except BrokenPipeError:
        # The reader of the output has gone. The rest of the buffer is discarded.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UsageError as error:
        _end(2, f"error: {error}")
    except ExperimentError as error:
        _end(1, f"error: {error}")
    except ImportError as error:
        _end(1, f"error: {_missing(error, INSTALL)}")
    except OSError as error:
        _end(1, f"error: {_describe(error)}")
    except MemoryError:
        _end(1, "error: there is not enough memory.")


def _leaving_out_errors_of_writing(
    report: Callable[[threading.ExceptHookArgs], object],
) -> Callable[[threading.ExceptHookArgs], None]:
    def report_others(failure: threading.ExceptHookArgs) -> None:
        # TensorBoard writes in a thread, and raises that thread's errors again in its caller.
        if not issubclass(failure.exc_type, OSError):
            report(failure)

    return report_others


def _describe(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"


def _missing(error: ImportError, install: str) -> str:
    package = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package:
        return f"{package} is not installed: {install}"
    return f"{package or 'a package'} cannot be imported ({error}): {install}"


def _end(status: int, message: str) -> None:
    print(message, file=sys.stderr)
    sys.exit(status)
