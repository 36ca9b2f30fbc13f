"""What a user can get wrong, through each stage's command line: one clear line, the exit code, no traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

STAGES = ("prepare", "traces", "filter", "sft", "grpo", "benchmark", "publish")
PAIR = {"id": "1", "prompt": "2 + 2 = ?", "response_a": "4", "response_b": "5", "label": "A"}


def run(stage: str, config: Any, tmp_path: Path, environment: dict[str, str], *more: str) -> tuple[int, str]:
    """Return exit code and the last line of standard error; nothing may have been written as output."""
    path = tmp_path / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    output = tmp_path / "out.json"
    command = [sys.executable, "-m", f"components.{stage}", "--config", str(path), "--output", str(output), *more]
    variables = {**os.environ, "REASRM_WORKDIR": str(tmp_path / "work"), **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert not output.exists()
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip().splitlines()[-1]


def prepare(tmp_path: Path, rows: str, environment: dict[str, str], **settings: Any) -> tuple[int, str]:
    data = tmp_path / "pairs.jsonl"
    data.write_text(rows, encoding="utf-8")
    config = {"sources": [str(data)], "distil_share": 0.4, "heldout_share": 0.2, **settings}
    return run("prepare", config, tmp_path, environment)


@pytest.mark.parametrize("stage", STAGES)
def test_unknown_setting_is_named_before_anything_is_reached(stage: str, tmp_path: Path) -> None:
    nowhere = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
    code, line = run(stage, {"no_such_setting": 1}, tmp_path, nowhere)
    assert code == 2
    assert "no_such_setting" in line
    assert f"stage '{stage}'" in line


def test_configuration_that_is_not_json(tmp_path: Path) -> None:
    code, line = run("filter", "{", tmp_path, {})
    assert code == 2
    assert "is not JSON" in line


def test_missing_manifest(tmp_path: Path) -> None:
    code, line = run("filter", {}, tmp_path, {}, "--inputs", "pairs=/no/such/manifest.json")
    assert code == 2
    assert "/no/such/manifest.json" in line


def test_missing_preference_file(tmp_path: Path, served: Any) -> None:
    config = {"sources": [str(tmp_path / "none.jsonl")]}
    code, line = run("prepare", config, tmp_path, served.environment())
    assert code == 2
    assert "none.jsonl" in line


def test_malformed_rows_over_the_threshold_are_named_by_place(tmp_path: Path, served: Any) -> None:
    rows = "".join(json.dumps(PAIR | {"id": str(n), "prompt": f"{n} + 2 = ?"}) + "\n" for n in range(20))
    bad = json.dumps({"id": "x", "prompt": "?"}) + "\n{not json\n"
    code, line = prepare(tmp_path, rows + bad, served.environment())
    assert code == 2
    assert "pairs.jsonl:21" in line
    assert "pairs.jsonl:22" in line


def test_empty_file(tmp_path: Path, served: Any) -> None:
    code, line = prepare(tmp_path, "", served.environment())
    assert code == 2
    assert "pairs.jsonl" in line


def test_unreachable_s3(tmp_path: Path) -> None:
    gone = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    code, line = prepare(tmp_path, json.dumps(PAIR), gone)
    assert code == 75
    assert "http://127.0.0.1:9 does not answer" in line


def test_refused_credentials_do_not_appear_in_the_message(tmp_path: Path, served: Any) -> None:
    canary = "canary-secret-value-1234"
    code, line = prepare(tmp_path, json.dumps(PAIR), {**served.environment(), "AWS_SECRET_ACCESS_KEY": canary})
    assert code == 2
    assert "AWS_SECRET_ACCESS_KEY" in line
    assert canary not in line


def test_missing_base_model(tmp_path: Path, served: Any) -> None:
    code, line = run("sft", {"base_model": "/no/such/model"}, tmp_path, served.environment())
    assert code == 2
    assert "/no/such/model" in line
