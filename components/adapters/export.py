"""Copies of single files of an artifact, for readers that know no manifests (KFP's UI, a browser)."""

import shutil
import tempfile
from pathlib import Path

from components.adapters.storage import Storage
from components.core.manifest import Manifest


def export(manifest: Manifest, name: str, path: str | Path) -> None:
    """Copy one file of a committed artifact to a path; its sha256 has been checked."""
    with tempfile.TemporaryDirectory() as directory:
        fetched = Storage.from_env().fetch(manifest, Path(directory), only=[name])
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(fetched / name, path)
