"""Damaged checkpoints: the one before is used, and nothing ever starts from zero without a word."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.adapters.checkpoints import Checkpoints
from components.adapters.progress import Progress
from components.adapters.stage import Output
from components.adapters.tracking import open_stage_run
from components.core.errors import ReasrmError
from components.core.manifest import MANIFEST_NAME


@pytest.fixture
def output(s3: Any, tmp_path: Path) -> Iterator[Output]:
    run = open_stage_run(
        run_id=s3.prefix, run_name="test", stage="sft", experiment="checkpoints", workdir=tmp_path, tags={}
    )
    yield Output(f"{s3.prefix}/out", tmp_path / "output", tmp_path, s3.storage, run, Progress("sft"), "key")
    assert run.finish("FINISHED")


def checkpoints(output: Output, keep: int = 2) -> Checkpoints:
    return Checkpoints(output, "sft", "1", {}, keep)


def save(output: Output, *steps: int, keep: int = 2, at_once: bool = False) -> None:
    made = checkpoints(output, keep)
    for step in steps:
        folder = made.directory / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "model").write_bytes(b"%d" % step * 1000)
        made.commit(folder, step)
        if not at_once:
            made.wait()
    made.wait()
    made.close()


def damage(output: Output, step: int, name: str = "model") -> None:
    output.storage.write_bytes(output.partial_uri(f"checkpoints/{step:08d}/{name}"), b"x" * 1000)


def forget_local(output: Output) -> None:
    shutil.rmtree(output.workdir / "checkpoints")


def test_only_the_newest_stay_and_the_newest_is_found(output: Output) -> None:
    save(output, 1, 2, 3)
    kept = {info.uri.split("/")[-2] for info in output.storage.list(output.partial_uri("checkpoints/"))}
    assert kept == {"00000002", "00000003"}
    forget_local(output)
    found = checkpoints(output).newest()
    assert found is not None
    assert (found / "model").read_bytes() == b"3" * 1000
    assert checkpoints(output).newest() == found


def test_saving_faster_than_uploading_keeps_the_newest(output: Output) -> None:
    save(output, *range(1, 40), at_once=True)
    uploaded = [info.uri for info in output.storage.list(output.partial_uri("checkpoints/"))]
    assert len([uri for uri in uploaded if uri.endswith(MANIFEST_NAME)]) <= 2
    forget_local(output)
    found = checkpoints(output).newest()
    assert found is not None
    assert found.name == "checkpoint-39"


def test_nothing_saved_is_no_error(output: Output) -> None:
    assert checkpoints(output).newest() is None


@pytest.mark.parametrize("name", ["model", MANIFEST_NAME])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(output: Output, name: str) -> None:
    save(output, 1, 2)
    forget_local(output)
    damage(output, 2, name)
    for _ in range(2):
        found = checkpoints(output).newest()
        assert found is not None
        assert found.name == "checkpoint-1"
    forget_local(output)
    save(output, 2)
    forget_local(output)
    found = checkpoints(output).newest()
    assert found is not None
    assert (found / "model").read_bytes() == b"2" * 1000


def test_all_damaged_is_an_error_every_time(output: Output) -> None:
    save(output, 1, 2)
    forget_local(output)
    damage(output, 1)
    damage(output, 2)
    for _ in range(2):
        with pytest.raises(ReasrmError, match=r"all checkpoints of sft \(steps \[1, 2\]\) are damaged"):
            checkpoints(output).newest()


def test_an_outage_during_an_upload_does_not_end_the_training(
    output: Output, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    working = output.storage.client
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    output.storage.client = type(output.storage).from_env().client
    save(output, 1)
    assert "checkpoint of step 1 is not in S3" in caplog.text
    output.storage.client = working
    assert checkpoints(output).newest() is None
    save(output, 2)
    found = checkpoints(output).newest()
    assert found is not None
    assert found.name == "checkpoint-2"
