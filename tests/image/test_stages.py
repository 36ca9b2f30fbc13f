"""The stages that need no GPU, each as a process in a container of the light image."""

import json
from pathlib import Path

from components.adapters.storage import Storage
from components.core.manifest import Manifest
from pipeline.config import load_recipe

ROOT = Path(__file__).parents[2]


def test_prepare_traces_and_filter_of_the_smoke_recipe(stage_image, s3, served, tmp_path):
    data = {name: f"{s3.prefix}/{name}" for name in ("pairs.jsonl.gz", "traces.jsonl.gz")}
    for name, uri in data.items():
        Storage.from_env().upload(ROOT / "samples" / name, uri)
    config = load_recipe(
        "smoke", [f'preference_data=["{data["pairs.jsonl.gz"]}"]', f"teacher.uri={data['traces.jsonl.gz']}"]
    )
    tmp_path.chmod(0o777)
    inputs: dict[str, Path] = {}
    for stage, output in (("prepare", "pairs"), ("traces", "traces"), ("filter", "examples")):
        settings = tmp_path / f"{stage}-settings.json"
        settings.write_text(json.dumps(getattr(config, stage).model_dump(mode="json")), "utf-8")
        given = [f"{name}={path}" for name, path in inputs.items()]
        written = tmp_path / f"{output}.json"
        stage_image.run(
            "python3", "-m", f"components.{stage}", "--config", str(settings), "--output", str(written),
            "--artifact-root", s3.prefix, *(["--inputs", *given] if given else []),
            environment=served.environment() | {"REASRM_RUN_ID": s3.prefix}, folder=tmp_path,
        )  # fmt: skip
        inputs[output] = written
        manifest = Manifest.from_bytes(written.read_bytes())
        assert manifest == s3.storage.open(manifest.uri)
        assert s3.storage.verify(manifest) == []
    assert Manifest.from_bytes(inputs["examples"].read_bytes()).statistics["examples"] > 0


def test_the_other_commands_answer(stage_image):
    for command in (["-m", "components.publish"], ["-m", "components.traces"], ["-m", "pipeline.cli", "compile"]):
        assert "usage" in stage_image.run("python3", *command, "--help").lower()


def test_bad_settings_end_with_the_code_that_says_so(stage_image, tmp_path):
    tmp_path.chmod(0o777)
    (tmp_path / "config.json").write_text('{"no_such_setting": 1}', "utf-8")
    options = ["--config", str(tmp_path / "config.json"), "--output", str(tmp_path / "out.json")]
    said = stage_image.run("python3", "-m", "components.filter", *options, folder=tmp_path, code=2)
    assert "no_such_setting" in said
