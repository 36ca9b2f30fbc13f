"""Put a model or data of this machine on S3, where pods find it."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from components.adapters.sources import list_files
from components.core.errors import InvalidInput
from components.core.manifest import Manifest, describe
from pipeline.models import MAKERS

if TYPE_CHECKING:
    from components.adapters.storage import Storage

OnFile = Callable[[str], None]


def upload(source: Path, uri: str, storage: "Storage", on_file: OnFile) -> str:
    """Copy a model's folder, a data file or a folder of data files to S3 and return what a recipe is to name.

    A model gets a manifest, by which every byte is checked when it is read. A folder that is not there and is called
    like one of our own models is made first. `on_file` is told what is copied.

    Raises:
        InvalidInput: there is nothing to copy, or something else lies at `uri`.
        Transient: S3 cannot be reached.
    """
    if not uri.startswith("s3://"):
        raise InvalidInput(f"{uri} is not on S3; give a uri such as s3://reasrm/models/{source.name}")
    storage.ensure_bucket(uri)
    if not source.exists() and source.name in MAKERS:
        with tempfile.TemporaryDirectory() as directory:
            made = Path(directory) / source.name
            on_file(f"making {source.name}")
            MAKERS[source.name](made)
            return _upload_model(made, uri, storage, on_file)
    if (source / "config.json").is_file():
        return _upload_model(source, uri, storage, on_file)
    files = list_files(str(source), storage)
    for file in files:
        target = uri if source.is_file() and not uri.endswith("/") else f"{uri.rstrip('/')}/{file.name}"
        on_file(file.name)
        storage.upload(Path(file.uri), target)
    return target if source.is_file() else f"{uri.rstrip('/')}/"


def _upload_model(folder: Path, uri: str, storage: "Storage", on_file: OnFile) -> str:
    uri = uri.rstrip("/")
    if not any(folder.glob("*.safetensors")):
        raise InvalidInput(f"{folder} has no *.safetensors; pickled weights are refused")
    files = describe(folder)
    for entry in files:
        on_file(f"{entry.path} ({entry.size / 1e6:.1f} MB)")
    there = storage.open(uri)
    if there is not None and there.files != files:
        raise InvalidInput(f"another model lies at {uri} already; give another uri")
    if there is None:
        manifest = Manifest(kind="model", stage="upload", uri=uri, run_key="", code_version="", config={}, files=files)
        storage.commit(manifest, folder)
    return uri
