import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = ("prepare", "traces", "filter", "sft", "grpo", "benchmark", "publish")
TASKS = (*STAGES, "report")
HEAVY = {"torch", "transformers", "trl", "vllm", "mlflow", "boto3", "datasets", "pyarrow", "matplotlib"}
SOURCES = sorted(path for folder in ("components", "pipeline") for path in (ROOT / folder).rglob("*.py"))
ONLY_IN = {
    "boto3": {"components/adapters/storage.py"},
    "botocore": {"components/adapters/storage.py"},
    "mlflow": {"components/adapters/tracking.py"},
    "kubernetes": {"components/adapters/kubernetes/cluster.py"},
    "kfp_server_api": {f"pipeline/client/{name}.py" for name in ("endpoint", "submit", "schedules/live")},
    "aiohttp": {"components/adapters/teachers/client.py", "components/adapters/teachers/batch_http.py"},
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] in {"components", "pipeline"}}


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def may_import(path: Path, name: str) -> bool:
    """Imports go one way: pipeline -> config and component -> core; run -> adapters -> core; no stage to another."""
    folder, *rest = path.relative_to(ROOT).parts
    target = name.split(".")
    if folder == "pipeline":
        return target[0] == "pipeline" or target[1] in {"core", "adapters"} or target[2] in {"config", "component"}
    if target[0] == "pipeline":
        return False
    if rest[0] == "core":
        return target[1] == "core"
    if rest[0] == "adapters":
        return target[1] in {"core", "adapters"}
    return len(target) == 1 or target[1] in {"core", "adapters", rest[0]}


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_imports_go_one_way(path):
    assert [name for name in own(path) if name != "components" and not may_import(path, name)] == []


@pytest.mark.parametrize("package", ONLY_IN)
def test_the_outside_world_has_one_door_each(package):
    users = {name for name, path in zip(names(SOURCES), SOURCES, strict=True) if package in tops(path)}
    assert users
    assert users <= ONLY_IN[package]


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_core_needs_only_the_standard_library_and_pydantic():
    for path in (ROOT / "components" / "core").rglob("*.py"):
        foreign = tops(path) - set(sys.stdlib_module_names) - {"pydantic", "components"}
        assert foreign == set(), path


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_nothing_is_printed_outside_the_command_line(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
    printing = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert printing == [] or path.name in {"cli.py", "entry.py"}


def test_configuration_and_components_load_nothing_heavy():
    modules = [f"components.{task}.component" for task in TASKS] + [f"components.{stage}.config" for stage in STAGES]
    modules += [f"components.core.{path.stem}" for path in (ROOT / "components" / "core").glob("*.py")]
    modules += ["pipeline.config", "pipeline.dag", "pipeline.placement", "pipeline.local", "pipeline.screen"]
    modules += ["components.adapters.entry", "components.adapters.stage"]
    code = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert HEAVY & set(json.loads(done.stdout)) == set()


def test_every_stage_is_a_folder_of_the_same_shape():
    for stage in STAGES:
        files = {path.name for path in (ROOT / "components" / stage).iterdir()}
        assert files >= {"__init__.py", "__main__.py", "component.py", "config.py", "run.py"}, stage
