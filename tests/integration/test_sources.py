"""Sources over the network: a real S3 server, and a server that speaks the hub's protocol to the real `datasets`."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow
import pytest
from pyarrow import parquet

from components.adapters.hub import hub_digest
from components.adapters.reading import read_source
from components.adapters.sources import digest, list_files, local_copy
from components.core.errors import InvalidInput, Transient
from components.core.sources import BenchmarkSettings, SourceSettings
from components.prepare.config import Config
from components.prepare.sources import sources

ROWS = [{"id": str(n), "prompt": f"What is {n} + {n}?", "kind": "even" if n % 2 == 0 else "odd"} for n in range(50)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


# -- S3 ----------------------------------------------------------------------------------------------------------------


def fill(s3: Any, files: Mapping[str, bytes]) -> str:
    for name, data in files.items():
        s3.storage.write_bytes(f"{s3.prefix}/data/{name}", data)
    return f"{s3.prefix}/data/"


def test_files_of_later_days_are_left_alone_and_change_no_digest(s3: Any) -> None:
    uri = f"{s3.prefix}/days/"
    for name in ("dt=2026-11-09/a.jsonl", "dt=2026-11-16/a.jsonl", "undated.jsonl"):
        s3.storage.write_bytes(f"{uri}{name}", LINES)
    before = digest(uri, s3.storage, "2026-11-09")
    assert [file.name for file in list_files(uri, s3.storage, "2026-11-09")] == [
        "dt=2026-11-09/a.jsonl",
        "undated.jsonl",
    ]
    assert before != digest(uri, s3.storage)
    assert before == digest(uri, s3.storage, "2026-11-15")
    assert digest(uri, s3.storage, "2026-11-16") == digest(uri, s3.storage)
    settings = Config.model_validate({"sources": [{"uri": uri}, {"uri": uri, "until": "2026-11-16"}]})
    cut = settings.model_copy(update={"data_until": "2026-11-09"})
    assert [one["sha256"] for one in sources(cut, s3.storage)] == [before, digest(uri, s3.storage)]
    assert cut.decisive() == settings.decisive()
    s3.storage.delete([f"{uri}undated.jsonl"])
    with pytest.raises(InvalidInput, match=r"all 2 data files .* are of days after 2026-11-01"):
        list_files(uri, s3.storage, "2026-11-01")


def test_a_prefix_is_read_like_a_folder_and_has_the_same_digest(s3: Any, tmp_path: Path) -> None:
    files = {"b/two.jsonl": LINES[:400], "a.jsonl": LINES, "notes.md": b"no data", ".cache/x.jsonl": b"{}\n"}
    uri = fill(s3, files)
    folder = tmp_path / "folder"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    remote = list(read_source(SourceSettings(uri=uri), s3.storage, tmp_path / "copies"))
    local = list(read_source(SourceSettings(uri=str(folder)), s3.storage, tmp_path / "copies"))
    assert [item[1] if isinstance(item, tuple) else item.reason for item in remote] == [
        item[1] if isinstance(item, tuple) else item.reason for item in local
    ]
    assert isinstance(remote[0], tuple)
    assert remote[0][0] == f"{uri}a.jsonl:1 (byte 0)"
    assert digest(uri, s3.storage) == digest(str(folder), s3.storage)
    s3.storage.write_bytes(f"{uri}b/two.jsonl", LINES[:800])
    assert digest(uri, s3.storage) != digest(str(folder), s3.storage)


def test_the_digest_is_that_of_the_bytes_whatever_the_metadata_says(s3: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    s3.storage.upload(path, f"{s3.prefix}/a.jsonl", sha256="0" * 64)
    assert (
        digest(f"{s3.prefix}/a.jsonl", s3.storage) == hashlib.sha256(LINES).hexdigest() == digest(str(path), s3.storage)
    )


def test_large_objects_are_hashed_and_copied_in_blocks(s3: Any, tmp_path: Path) -> None:
    data = os.urandom(40 * 2**20)
    s3.storage.write_bytes(f"{s3.prefix}/big.jsonl", data)
    blocks = s3.storage.read_chunks(f"{s3.prefix}/big.jsonl")
    assert max(map(len, blocks)) <= 2**20
    copy = local_copy(f"{s3.prefix}/big.jsonl", s3.storage, tmp_path / "copies")
    assert copy.read_bytes() == data
    assert [path.name for path in (tmp_path / "copies").iterdir()] == [copy.name]


def test_what_is_not_there_is_named(s3: Any, tmp_path: Path) -> None:
    for uri in (f"{s3.prefix}/nothing.jsonl", f"{s3.prefix}/nothing/"):
        with pytest.raises(InvalidInput, match="nothing"):
            digest(uri, s3.storage)
        with pytest.raises(InvalidInput, match="nothing"):
            list(read_source(SourceSettings(uri=uri), s3.storage, tmp_path))


def test_every_source_and_every_benchmark_is_in_the_run_key(s3: Any) -> None:
    uri = fill(s3, {"a.jsonl": LINES})
    config = Config(
        sources=(SourceSettings(uri=uri), SourceSettings(uri="hf://org/name", revision="a" * 40)),
        benchmarks=(BenchmarkSettings(name="b", uri=f"{uri}a.jsonl"),),
    )
    found = sources(config, s3.storage)
    assert [one["uri"] for one in found] == [uri, f"hf://org/name@{'a' * 40}", f"{uri}a.jsonl"]
    assert all(len(one["sha256"]) == 64 for one in found)
    assert found[1]["sha256"] == hub_digest("hf://org/name", "a" * 40, "train", "")


# -- the hub -----------------------------------------------------------------------------------------------------------

FIRST, SECOND = "1" * 40, "2" * 40


@dataclass
class Hub:
    """Dataset repositories as {name: {revision: {path: bytes}}}, served as huggingface.co serves them."""

    repositories: dict[str, dict[str, dict[str, bytes]]]
    asked: list[str] = field(default_factory=list)

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body."""
        path = unquote(urlsplit(target).path)
        self.asked.append(f"{method} {path}")
        parts = path.strip("/").split("/")
        if parts[:1] == ["api"]:
            (name, what, revision), rest = ("/".join(parts[2:4]), parts[4], parts[5]), parts[6:]
        else:
            (name, what, revision), rest = ("/".join(parts[1:3]), parts[3], parts[4]), parts[5:]
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        files = self.repositories[name].get(revision)
        if files is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        below = "/".join(rest)
        if what == "resolve":
            if below not in files:
                return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
            etag = hashlib.sha256(files[below]).hexdigest()
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": revision}, files[below]
        entries = [entry for entry in _entries(files) if entry["path"].startswith(f"{below}/" if below else "")]
        if what == "paths-info":
            wanted = json.loads(body)["paths"] if body[:1] == b"{" else [unquote(p) for p in _form(body, "paths")]
            return 200, {}, json.dumps([entry for entry in _entries(files) if entry["path"] in wanted]).encode()
        if what == "tree":
            if below and not entries:
                return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
            return 200, {}, json.dumps(entries).encode()
        info = {"id": name, "sha": revision, "siblings": [{"rfilename": path} for path in files], "tags": []}
        return 200, {}, json.dumps(info).encode()


def _entries(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    folders = {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
    found = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
    return found + [
        {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for path, data in files.items()
    ]


def _form(body: bytes, name: str) -> list[str]:
    pairs = (item.partition("=") for item in body.decode().split("&"))
    return [value.replace("+", " ") for key, _, value in pairs if key == name]


@pytest.fixture
def hub() -> Iterator[tuple[Hub, str]]:
    """A hub and its address."""
    served = Hub({})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, data = served.answer(self.command, self.path, body)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = _reply

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield served, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


READ = """
import json, sys
from pathlib import Path
from components.core.sources import SourceSettings
from components.adapters.reading import read_source
reader = read_source(SourceSettings.model_validate_json(sys.argv[1]), None, Path("unused"))
try:
    result = [item if isinstance(item, tuple) else item.as_dict() for item in reader]
except Exception as error:
    result = [type(error).__name__, str(error)]
print(json.dumps({"rows": result, "out": reader.num_selected_out}))
"""
PICK = """
import json, sys
import datasets
chosen = datasets.load_dataset("org/name", revision=sys.argv[1], split="train").shuffle(seed=7).select(range(12))
print(json.dumps(sorted(int(n) for n in chosen["id"])))
"""


def run(code: str, argument: str, endpoint: str, home: Path) -> Any:
    """Run in a process of its own, because the endpoint and the cache are read when `datasets` is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(Path.cwd())}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, argument],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def settings(**change: Any) -> str:
    return SourceSettings.model_validate({"uri": "hf://org/name", "revision": FIRST} | change).model_dump_json()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def test_a_hub_dataset_is_read_at_its_revision_and_sampled_as_datasets_does(
    hub: tuple[Hub, str], tmp_path: Path
) -> None:
    served, endpoint = hub
    served.repositories["org/name"] = {
        FIRST: {"data/train-00000-of-00001.parquet": as_parquet(ROWS), "README.md": b"# rows\n"},
        SECOND: {"data/train-00000-of-00001.parquet": as_parquet(ROWS[:1])},
    }
    found = run(READ, settings(), endpoint, tmp_path)
    assert [row for _, row in found["rows"]] == ROWS
    assert found["rows"][1][0] == "hf://org/name/train:row 2"
    sampled = run(READ, settings(select={"sample": 12, "seed": 7}), endpoint, tmp_path)
    assert [int(row["id"]) for _, row in sampled["rows"]] == run(PICK, FIRST, endpoint, tmp_path)
    assert sampled["out"] == len(ROWS) - 12
    second = run(READ, settings(revision=SECOND), endpoint, tmp_path)
    assert [row for _, row in second["rows"]] == ROWS[:1]


def test_json_lines_splits_and_subsets_of_a_hub_dataset(hub: tuple[Hub, str], tmp_path: Path) -> None:
    served, endpoint = hub
    card = (
        "---\nconfigs:\n- config_name: plain\n  data_files:\n  - split: raw\n    path: raw.jsonl\n"
        "- config_name: other\n  data_files:\n  - split: raw\n    path: other.jsonl\n---\n"
    )
    files = {"README.md": card.encode(), "raw.jsonl": LINES, "other.jsonl": LINES[: LINES.index(b"\n") + 1]}
    served.repositories["org/name"] = {FIRST: files}
    select = {"split": "raw", "subset": "plain", "drop": {"kind": ["odd"]}}
    found = run(READ, settings(select=select), endpoint, tmp_path)
    assert [row["id"] for _, row in found["rows"]] == [row["id"] for row in ROWS if row["kind"] == "even"]
    assert found["out"] == 25
    other = run(READ, settings(select={"split": "raw", "subset": "other"}), endpoint, tmp_path)
    assert len(other["rows"]) == 1
    kind, message = run(READ, settings(select={"subset": "plain"}), endpoint, tmp_path)["rows"]
    assert kind == "InvalidInput"
    assert "no split 'train'; there are raw" in message
    kind, message = run(READ, settings(select={"subset": "none"}), endpoint, tmp_path)["rows"]
    assert kind == "InvalidInput"
    assert "other" in message


def test_a_licence_beside_the_data_is_no_data(hub: tuple[Hub, str], tmp_path: Path) -> None:
    served, endpoint = hub
    served.repositories["org/name"] = {
        FIRST: {"All-Rows.jsonl": LINES, "LICENSE.txt": b"MIT\n", "README.md": b"# rows\n"}
    }
    assert [row for _, row in run(READ, settings(), endpoint, tmp_path)["rows"]] == ROWS


def test_an_array_with_lists_in_it_from_the_hub(hub: tuple[Hub, str], tmp_path: Path) -> None:
    served, endpoint = hub
    rows = [row | {"chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]} for row in ROWS]
    served.repositories["org/name"] = {FIRST: {".gitattributes": b"", "total.json": json.dumps(rows).encode()}}
    assert [row for _, row in run(READ, settings(), endpoint, tmp_path)["rows"]] == rows


def test_a_repository_with_a_loading_script_is_refused(hub: tuple[Hub, str], tmp_path: Path) -> None:
    served, endpoint = hub
    ran = tmp_path / "ran"
    served.repositories["org/name"] = {FIRST: {"name.py": f"open({str(ran)!r}, 'w')".encode(), "train.jsonl": LINES}}
    kind, message = run(READ, settings(), endpoint, tmp_path / "home")["rows"]
    assert kind == "InvalidInput"
    assert "loading script" in message
    assert "hf://org/name" in message
    assert not ran.exists()


def test_what_the_hub_does_not_have_is_named(hub: tuple[Hub, str], tmp_path: Path) -> None:
    served, endpoint = hub
    served.repositories["org/name"] = {FIRST: {"train.jsonl": LINES}}
    for change, words in (({"uri": "hf://org/other"}, "org/other"), ({"revision": SECOND}, SECOND)):
        kind, message = run(READ, settings(**change), endpoint, tmp_path)["rows"]
        assert kind == "InvalidInput"
        assert words in message


@pytest.mark.slow
def test_a_hub_that_is_down_is_no_reason_to_read_another_revision(hub: tuple[Hub, str], tmp_path: Path) -> None:
    served, endpoint = hub
    served.repositories["org/name"] = {FIRST: {"train.jsonl": LINES}, SECOND: {"train.jsonl": LINES[:400]}}
    assert len(run(READ, settings(), endpoint, tmp_path)["rows"]) == len(ROWS)
    served.answer = lambda *_: (503, {}, b"")  # type: ignore[method-assign]
    kind, message = run(READ, settings(revision=SECOND), endpoint, tmp_path)["rows"]
    assert kind == Transient.__name__, message
    assert "does not answer" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [({"revision": ""}, "40 hex digits"), ({"uri": "hf://name"}, "hf://org/name"), ({"uri": "hf://a/b/c"}, "org/name")],
)
def test_a_hub_dataset_must_be_named_and_pinned(change: dict[str, Any], words: str) -> None:
    source = SourceSettings.model_validate_json(settings(**change))
    nowhere: Any = SimpleNamespace()
    with pytest.raises(InvalidInput, match=words):
        sources(Config(sources=(source,)), nowhere)
    with pytest.raises(InvalidInput, match=words):
        list(read_source(source, nowhere, Path("unused")))


def test_a_revision_belongs_to_the_hub(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    nowhere: Any = SimpleNamespace()
    with pytest.raises(InvalidInput, match="no revision"):
        sources(Config(sources=(SourceSettings(uri=str(path), revision=FIRST),)), nowhere)
