"""Which commit of the project this is."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNKNOWN = "unknown"


def revision() -> str:
    """Return the commit of the checkout that this code lies in, with "-dirty" if it was changed since.

    "unknown" where it lies in none, as after an installation.
    """
    if not (ROOT / ".git").exists():
        return UNKNOWN
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def git(*arguments: str) -> str:
    """Return what git says of the working tree, or "unknown" where it says nothing."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return UNKNOWN
    return done.stdout.strip() if done.returncode == 0 else UNKNOWN
