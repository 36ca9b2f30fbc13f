"""The three ways a stage can end badly, told apart by what the reader has to do next.

ReasrmError              exit 1   something is broken; the message and the log say what
├── Damaged              exit 1   stored bytes are gone, or are not what their manifest says
├── InvalidInput         exit 2   a retry cannot help: change the data, the recipe or the set-up
└── Transient            exit 75  nothing is wrong with the run: start it again and it goes on where it was
"""

from typing import ClassVar


class ReasrmError(Exception):
    """A failure that neither the user nor a retry is known to mend."""

    exit_code: ClassVar[int] = 1


class Damaged(ReasrmError):
    """Stored bytes are gone, or are not what their manifest says; unreachable storage says nothing of them."""


class InvalidInput(ReasrmError):
    """The user must change something: the message says what, which value, and what to do."""

    exit_code: ClassVar[int] = 2


class Transient(ReasrmError):
    """The outside world failed for now; running the same command again resumes."""

    exit_code: ClassVar[int] = 75


def exit_code(error: BaseException) -> int:
    """Return the process exit code that stands for this error (EX_TEMPFAIL is 75, as in sysexits.h)."""
    return error.exit_code if isinstance(error, ReasrmError) else 1
