"""Checkpoints that are damaged, half there, too many or not ours: nothing ever starts from zero without a word.

Run as a program, this file is one of two machines that train together; what it finds it writes as JSON.
"""

import gc
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from components.adapters import ranks
from components.adapters.checkpoints import Checkpoints, parts
from components.adapters.progress import Progress
from components.adapters.stage import Output
from components.adapters.storage import OnBytes, Storage
from components.adapters.tracking import load, open_stage_run
from components.core.config import StageConfig
from components.core.errors import InvalidInput, ReasrmError, Transient
from components.core.manifest import MANIFEST_NAME, Manifest, Parent, describe
from components.core.training import LoraSettings, TrainingConfig

PARENTS = {"pairs": Parent(uri="s3://b/pairs", digest="1" * 64)}


@pytest.fixture
def output(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Output:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # what is said to it stays in the spool; one test delivers it
    run = open_stage_run(
        run_id=s3.prefix, run_name="test", stage="sft", experiment="checkpoints", workdir=tmp_path, tags={}
    )
    return Output(f"{s3.prefix}/out", tmp_path / "output", tmp_path, s3.storage, run, Progress("sft"), "key")


def checkpoints(output: Output, keep: int = 2, code: str = "1", **changed: Any) -> Checkpoints:
    given = {"config": TrainingConfig(), "parents": PARENTS, "sharding": "none"} | changed
    return Checkpoints(output, "sft", code, given.pop("config"), keep, **given)


def write(made: Checkpoints, step: int) -> Path:
    folder = made.directory / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model").write_bytes(b"%d" % step * 1000)
    (folder / "model.safetensors").write_bytes(b"%d" % step * 10)
    return folder


def save(output: Output, *steps: int, at_once: bool = False, scores: Mapping[int, float] = {}, **given: Any) -> None:
    made = checkpoints(output, **given)
    for step in steps:
        made.commit(write(made, step), step, scores.get(step))
        if not at_once:
            made.wait()
    made.wait()
    made.close()


def damage(output: Output, step: int, name: str = "model") -> None:
    output.storage.write_bytes(output.partial_uri(f"checkpoints/{step:08d}/{name}"), b"x" * 1000)


def forget_local(output: Output) -> None:
    shutil.rmtree(output.workdir / "checkpoints", ignore_errors=True)


def in_s3(output: Output) -> set[int]:
    return {int(info.uri.split("/")[-2]) for info in output.storage.list(output.partial_uri("checkpoints/"))}


def newest(output: Output, **given: Any) -> str | None:
    found = checkpoints(output, **given).newest()
    return None if found is None else found.name


def test_only_the_newest_stay_and_the_newest_is_found(output: Output) -> None:
    save(output, 1, 2, 3)
    assert in_s3(output) == {2, 3}
    forget_local(output)
    found = checkpoints(output).newest()
    assert found is not None
    assert (found / "model").read_bytes() == b"3" * 1000
    (found / "left").write_bytes(b"by another attempt")
    (found.parent / "checkpoint-4").mkdir()
    assert checkpoints(output).newest() == found
    assert {path.name for path in found.parent.rglob("*")} == {"checkpoint-3", "model", "model.safetensors"}


def test_the_best_is_never_pruned(output: Output) -> None:
    save(output, *range(1, 7), scores={1: 0.5, 2: 0.9, 3: 0.9, 4: 0.1, 6: float("nan")})
    assert in_s3(output) == {2, 5, 6}
    made = checkpoints(output)
    assert made.best() == (2, 0.9)
    forget_local(output)
    folder = made.fetch(2)
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]  # what export needs
    assert (folder / "model.safetensors").read_bytes() == b"2" * 10
    assert (made.fetch(2, weights_only=False) / "model").read_bytes() == b"2" * 1000
    with pytest.raises(ReasrmError, match="there is no checkpoint of step 3"):
        made.fetch(3)


def test_saving_faster_than_uploading_keeps_the_newest_and_the_best(output: Output) -> None:
    save(output, *range(1, 40), at_once=True, scores={5: 0.9, 6: 0.8, 20: 0.7})
    assert len(in_s3(output)) <= 3
    assert checkpoints(output).best() == (5, 0.9)
    assert len(list((output.workdir / "checkpoints").iterdir())) == 1
    forget_local(output)
    assert newest(output) == "checkpoint-39"


def test_saving_faster_than_uploading_does_not_fill_the_disk(output: Output) -> None:
    slow, go_on = Faulty.from_env(), threading.Event()
    slow.fault = partial(go_on.wait, 60)
    made = checkpoints(replace(output, storage=slow))
    try:
        for step in range(1, 11):
            made.commit(write(made, step), step, 0.9 if step == 3 else None)
        folders = {path.name for path in made.directory.iterdir()}
    finally:
        go_on.set()
        made.wait(required=True)
        made.close()
    assert {"checkpoint-3", "checkpoint-10"} <= folders  # the best, the newest, and the one under way
    assert len(folders) <= 3
    assert made.committed() == 10


def test_files_that_were_never_committed_go_with_the_old_ones(output: Output) -> None:
    damage(output, 1)
    save(output, 2)
    assert in_s3(output) == {2}


def test_nothing_saved_is_no_error(output: Output) -> None:
    made = checkpoints(output)
    assert made.newest() is None
    assert made.best() is None
    assert made.committed() is None
    assert made.rescore(1, 0.5) is False
    made.wait(required=True)


@pytest.mark.parametrize("name", ["model", MANIFEST_NAME])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(output: Output, name: str) -> None:
    save(output, 1, 2)
    forget_local(output)
    damage(output, 2, name)
    for _ in range(2):
        assert newest(output) == "checkpoint-1"
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
    made = checkpoints(output)
    made.commit(made.directory / "checkpoint-1", 1)
    with pytest.raises(Transient, match="does not answer"):
        made.wait(required=True)
    output.storage.client = working
    with pytest.raises(Transient, match="checkpoint of step 1 did not reach S3"):
        made.wait(required=True)
    assert newest(output) is None
    save(output, 2)
    assert newest(output) == "checkpoint-2"


def test_what_a_retry_cannot_mend_ends_the_training(output: Output, s3: Any) -> None:
    elsewhere = replace(output, uri="s3://no-such-bucket/out")
    made = checkpoints(elsewhere)
    made.commit(write(made, 1), 1)
    with pytest.raises(InvalidInput, match="there is no bucket"):
        made.wait(required=True)
    made = checkpoints(elsewhere)
    with pytest.raises(InvalidInput, match="there is no bucket"):
        for step in range(2, 100):
            made.commit(write(made, step), step)
            time.sleep(0.05)


def test_a_checkpoint_is_a_model_with_step_and_score(output: Output, services: Any) -> None:
    save(output, 7, 8, scores={7: 0.75})
    made = checkpoints(output)
    assert made.rescore(8, 0.875)
    assert made.best() == (8, 0.875)
    run = output.tracking
    command = [sys.executable, "-m", "components.adapters.delivery", str(run.spool.directory), "60"]
    environment = {**os.environ, **services.environment()}
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=True, timeout=180)
    client = load().MlflowClient(environment["MLFLOW_TRACKING_URI"])
    found = client.get_run(run.mlflow_run_id)
    model, later = sorted(client.search_logged_models([found.info.experiment_id]), key=lambda each: each.name)
    assert (model.name, model.params["step"], model.params["score"]) == ("sft-step-7", "7", "0.75")
    assert [(metric.key, metric.value) for metric in model.metrics] == [("score", 0.75)]
    assert (later.name, "score" in later.params) == ("sft-step-8", False)
    assert [(metric.key, metric.value) for metric in later.metrics] == [("score", 0.875)]
    assert sorted(each.step for each in found.outputs.model_outputs) == [7, 8]


def test_an_answer_that_says_nothing_of_the_bytes_keeps_them(output: Output) -> None:
    """A server or proxy in trouble may answer anything: only what is gone or wrong is set aside."""
    save(output, 1)
    forget_local(output)
    failing = Faulty.from_env()
    failing.download_fault = deny
    with pytest.raises(ReasrmError, match="S3 answered 418"):
        newest(replace(output, storage=failing))
    assert newest(output) == "checkpoint-1"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_ends_a_download_at_once(output: Output) -> None:
    made = checkpoints(output)
    folder = made.directory / "checkpoint-1"
    folder.mkdir(parents=True)
    for number in range(4):
        (folder / f"model-{number}").write_bytes(os.urandom(8 * 2**20))
    made.commit(folder, 1)
    made.wait(required=True)
    forget_local(output)
    blocks = itertools.count(1)

    def slowly() -> None:
        if next(blocks) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)

    slow = Faulty.from_env()
    slow.on_block = slowly
    with pytest.raises(KeyboardInterrupt):
        newest(replace(output, storage=slow))
    assert next(blocks) < 64  # of 128
    gc.collect()  # here, where the warnings of half-read sockets are expected


# -- going on from a checkpoint that another code or another run made ---------------------------------------------


def other_run(output: Output) -> Output:
    """A run of later code: its results lie elsewhere."""
    return replace(output, uri=f"{output.uri}-later", workdir=output.workdir / "later")


def test_differing_settings_and_data_are_named(output: Output) -> None:
    save(output, 3, config=TrainingConfig(lora=LoraSettings(rank=8), seed=1))
    output.sources = [{"uri": "hf://base", "sha256": "c" * 64}]
    uri = output.partial_uri("checkpoints/00000003/")
    with pytest.raises(InvalidInput) as error:
        newest(
            other_run(output),
            config=TrainingConfig(lora=LoraSettings(rank=16), max_grad_norm=0.5, seed=1, resume_from=uri, nodes=2),
            parents={"pairs": Parent(uri="s3://b/pairs-2", digest="2" * 64)},
            resume_from=uri,
        )
    assert str(error.value) == (
        f"cannot go on from the checkpoint {uri.rstrip('/')}: it was made with other settings or data: "
        "lora.rank was 8, is 16; max_grad_norm was 1.0, is 0.5; "
        "inputs.pairs was s3://b/pairs (digest 111111111111), is s3://b/pairs-2 (digest 222222222222); "
        f"sources.hf://base was absent, is {'c' * 64}; or leave resume_from out"
    )
    with pytest.raises(InvalidInput, match=r"max_grad_norm was 1.0, is 0.5; .*to start this stage from zero"):
        newest(output, config=TrainingConfig(max_grad_norm=0.5))


def test_a_run_goes_on_from_a_checkpoint_of_earlier_code(
    output: Output, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The data was made again by the later code, and came out the same."""
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "rl.jsonl").write_text("{}\n")
    made = []
    for code in ("1", "2"):
        manifest = Manifest(
            kind="pairs", stage="prepare", uri=f"{output.uri}-pairs-{code}", run_key=code, code_version=code,
            config={}, files=describe(tmp_path / "pairs"),
        )  # fmt: skip
        output.storage.commit(manifest, tmp_path / "pairs")
        made.append({"pairs": Parent(uri=manifest.uri, digest=manifest.digest)})
    save(output, 3, parents=made[0])
    uri, later = output.partial_uri("checkpoints/00000003"), other_run(output)
    given = {"config": TrainingConfig(resume_from=uri), "resume_from": uri, "parents": made[1], "code": "2"}
    assert newest(later, **given) == "checkpoint-3"
    assert "is of code version 1, this is 2" in caplog.text
    save(later, 4, **given)
    damage(output, 3)
    assert newest(later, **given) == "checkpoint-4"  # its own comes first
    forget_local(later)
    with pytest.raises(ReasrmError, match=r"resume_from is damaged: .*; give another checkpoint"):
        newest(replace(later, uri=f"{later.uri}-2"), **given)


@pytest.mark.parametrize(
    ("name", "message"),
    [("00000009", "there is no checkpoint at resume_from s3://"), ("model", "is a model of stage 'sft', not a")],
)
def test_a_place_without_a_checkpoint_is_refused(output: Output, tmp_path: Path, name: str, message: str) -> None:
    model = Manifest(
        kind="model", stage="sft", uri=f"{output.uri}/model", run_key="k", code_version="1", config={}, files=()
    )
    output.storage.commit(model, tmp_path)
    with pytest.raises(InvalidInput, match=message):
        newest(output, resume_from=f"{output.uri}/{name}")


class Earlier(StageConfig):
    kind: ClassVar[str] = "model"
    rate: float = 1.0
    removed: int = 3


class Later(StageConfig):
    kind: ClassVar[str] = "model"
    rate: float = 1.0
    clip: float = 0.2


def test_a_setting_that_only_one_code_knows_may_have_its_default(
    output: Output, caplog: pytest.LogCaptureFixture
) -> None:
    save(output, 3, config=Earlier())
    given = {"resume_from": output.partial_uri("checkpoints/00000003"), "code": "2"}
    assert newest(other_run(output), config=Later(), **given) == "checkpoint-3"
    assert "(clip was absent, is 0.2; removed was 3, is absent)" in caplog.text
    with pytest.raises(InvalidInput, match=r"settings or data: clip was absent, is 0.3; or leave"):
        newest(other_run(output), config=Later(clip=0.3), **given)


# -- two machines -------------------------------------------------------------------------------------------------


@pytest.fixture
def machines(s3: Any, tmp_path: Path) -> Callable[..., list[Any]]:
    """Return a starter of two machines that do the same scenario; it returns what each found, or its exit code."""

    def start(scenario: str) -> list[Any]:
        meeting = tmp_path / f"meeting-{scenario}"
        processes = []
        for rank in (0, 1):
            environment = {
                **os.environ,
                "RANK": f"{rank}", "WORLD_SIZE": "2", "GROUP_RANK": f"{rank}", "LOCAL_RANK": "0",
                "LOCAL_WORLD_SIZE": "1", "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1",
            }  # fmt: skip
            environment.pop("MLFLOW_TRACKING_URI", None)
            command = [sys.executable, __file__, scenario, str(meeting), f"{s3.prefix}/out", str(tmp_path / f"{rank}")]
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        outs = [process.communicate(timeout=400)[0] for process in processes]
        return [
            json.loads(out) if process.returncode == 0 else process.returncode
            for process, out in zip(processes, outs, strict=True)
        ]

    return start


SHARD = "global_step/zero_pp_rank_{}_mp_rank_00_optim_states.pt"


def test_two_machines_make_one_checkpoint(machines: Callable[[str], list[Any]], output: Output) -> None:
    first, second = machines("share")
    common = {"folder": "checkpoint-2", "best": [1, 0.5], "common": "from machine 0"}
    shared = ["common", "model"]
    assert first == [common | {"files": sorted([*shared, SHARD.format(0)])}] * 2
    assert second == [common | {"files": sorted([*shared, SHARD.format(1)])}] * 2
    sharded = replace(output, uri=f"{output.uri}/zero2")
    manifest = sharded.storage.open(sharded.partial_uri("checkpoints/00000002"))
    assert manifest is not None
    assert [entry.path for entry in manifest.files] == sorted([*shared, SHARD.format(0), SHARD.format(1)])
    assert manifest.statistics["world_size"] == 2
    assert in_s3_names(sharded, 2) == {*(entry.path for entry in manifest.files), MANIFEST_NAME}

    with pytest.raises(InvalidInput, match=r"saved by 2 processes with sharding zero2, this run has 1: .*start with 2"):
        newest(sharded, sharding="zero2")
    with pytest.raises(InvalidInput, match="saved with sharding zero2, this run has none: set sharding to zero2"):
        newest(sharded)
    assert newest(replace(output, uri=f"{output.uri}/none")) == "checkpoint-2"  # unsharded state fits any number


def in_s3_names(output: Output, step: int) -> set[str]:
    prefix = output.partial_uri(f"checkpoints/{step:08d}/")
    return {info.uri.removeprefix(prefix) for info in output.storage.list(prefix)}


def test_a_machine_that_dies_leaves_no_manifest(machines: Callable[[str], list[Any]], output: Output) -> None:
    alive, dead = machines("die")
    assert (alive, dead) == (1, -signal.SIGKILL)
    assert MANIFEST_NAME not in in_s3_names(output, 2)
    assert SHARD.format(0) in in_s3_names(output, 2)
    assert machines("resume") == ["checkpoint-1", "checkpoint-1"]


def test_a_list_of_files_that_an_earlier_attempt_left_does_not_count(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PARTS_SECONDS", 0.2)
    s3.storage.write_bytes(parts.part_uri(s3.prefix, 1), parts.Part(attempt="earlier").model_dump_json().encode())
    with pytest.raises(Transient, match=r"machines \[1\] have not sent all of their files"):
        parts.collect(s3.storage, s3.prefix, [1], "now", threading.Event())
    assert parts.collect(s3.storage, s3.prefix, [1], "earlier", threading.Event()) == {1: parts.Part(attempt="earlier")}


def test_an_error_of_one_machine_reaches_all(machines: Callable[[str], list[Any]]) -> None:
    first, second = machines("errors")
    assert first == second
    refused, unsent, before, none, differing = first
    assert refused == ["InvalidInput", "S3 refuses"]
    assert unsent[0] == "Transient"
    assert "machine 1 could not send its files: S3 refuses" in unsent[1]
    assert before == "checkpoint-1"
    assert none[0] == "ReasrmError"
    assert "all checkpoints of sft (steps [1, 2]) are damaged" in none[1]
    assert differing[0] == "InvalidInput"
    assert "do not do the same work (run keys key 0 and key 1)" in differing[1]


class Faulty(Storage):
    """A machine whose way to S3 can be broken."""

    fault: Callable[[], object] | None = None
    download_fault: Callable[[], object] | None = None
    on_block: Callable[[], object] | None = None
    """Called for each block of a download."""

    def send(self, *args: Any, **kwargs: Any) -> None:
        if self.fault is not None:
            self.fault()
        super().send(*args, **kwargs)

    def download(self, uri: str, path: Path, size: int, sha256: str, progress: OnBytes | None = None) -> None:
        def count(num_bytes: int) -> None:
            if self.on_block is not None:
                self.on_block()
            if progress is not None:
                progress(num_bytes)

        if self.download_fault is not None:
            self.download_fault()
        super().download(uri, path, size, sha256, count)


class Machine:
    """One of two machines, as the scenarios need it."""

    def __init__(self, uri: str, workdir: Path) -> None:
        tracking = open_stage_run(run_id="t", run_name="t", stage="sft", experiment="t", workdir=workdir, tags={})
        self.storage = Faulty.from_env()
        self.output = Output(uri, workdir / "output", workdir, self.storage, tracking, Progress("sft"), "key")
        self.uri, self.sharding = uri, "zero2"
        self.made = self.anew()

    def anew(self) -> Checkpoints:
        return checkpoints(self.output, keep=5, sharding=self.sharding)

    def save(self, step: int, score: float | None = None) -> None:
        folder, rank = self.made.directory / f"checkpoint-{step}", ranks.rank()
        (folder / "global_step").mkdir(parents=True)
        (folder / SHARD.format(rank)).write_bytes(b"%d %d" % (step, rank) * 1000)
        (folder / "common").write_text(f"from machine {rank}")
        if rank == 0:
            (folder / "model").write_bytes(b"%d" % step * 1000)
        self.made.commit(folder, step, score)

    def share(self) -> Any:
        found = []
        for self.sharding in ("zero2", "none"):
            self.output = replace(self.output, uri=f"{self.uri}/{self.sharding}")
            self.made = self.anew()
            found.append(self.share_one())
        return found

    def share_one(self) -> Any:
        self.made.newest()  # nothing; what the first history left on the disk goes
        self.save(1, 0.5)
        self.save(2, 0.25)
        self.made.wait(required=True)
        forget_local(self.output)
        folder = self.anew().newest()
        assert folder is not None
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        common = (folder / "common").read_text()
        return {"folder": folder.name, "best": self.made.best(), "common": common, "files": files}

    def die(self) -> Any:
        self.save(1)
        self.made.wait(required=True)
        parts.CLOSING_SECONDS = 0.5
        if ranks.rank() == 1:
            self.storage.fault = lambda: os.kill(os.getpid(), signal.SIGKILL)
        self.save(2)
        try:
            self.made.wait(required=True)
        finally:
            self.made.close()

    def resume(self) -> Any:
        return newest(self.output, sharding=self.sharding)

    def errors(self) -> Any:
        self.save(1)
        self.save(2)
        self.made.wait(required=True)
        if ranks.rank() == 1:
            self.storage.fault = refuse
        refused = self.error_of_saving()
        self.made.close()
        self.made = self.anew()
        self.save(1000)
        unsent = self.error_of(lambda: self.made.wait(required=True))
        self.storage.fault = None
        if ranks.rank() == 0:
            damage(self.output, 2, SHARD.format(1))  # only machine 1 reads it
        forget_local(self.output)
        before = newest(self.output, sharding=self.sharding)
        if ranks.rank() == 0:
            damage(self.output, 1, SHARD.format(1))
        forget_local(self.output)
        none = self.error_of(lambda: newest(self.output, sharding=self.sharding))
        differing = replace(self.output, run_key=f"key {ranks.rank()}")
        return [refused, unsent, before, none, self.error_of(lambda: newest(differing, sharding=self.sharding))]

    def error_of_saving(self) -> list[str]:
        """Save until it fails: the error of an upload comes up some commits later."""
        parts.CLOSING_SECONDS = 0.5
        for step in range(3, 1000):
            error = self.error_of(partial(self.save, step))
            if error:
                return error
            time.sleep(0.05)
        return []

    def error_of(self, work: Callable[[], Any]) -> list[str]:
        try:
            work()
        except Exception as error:
            return [type(error).__name__, str(error)]
        return []


def deny() -> None:
    raise ReasrmError("S3 answered 418 (418)")


def refuse() -> None:
    raise InvalidInput("S3 refuses")


def main() -> None:
    import torch.distributed

    scenario, meeting, uri, workdir = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=ranks.rank(), world_size=ranks.world_size()
    )
    print(json.dumps(getattr(Machine(uri, Path(workdir)), scenario)()))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
