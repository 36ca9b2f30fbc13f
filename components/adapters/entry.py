"""How a stage is started: by a KFP task (`run_component`) or from a command line (`main`).

Both end with the exit codes of `components.core.errors` and one clear line instead of a traceback for what a user can
mend; the traceback of anything else goes to the log.
"""

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from components.adapters import launch, ranks
from components.adapters.follow import follow_stage
from components.adapters.stage import RUN_ID_VARIABLE, RUN_NAME_VARIABLE, StageResult, run_stage, stopping_cleanly
from components.core.errors import InvalidInput, ReasrmError, exit_code
from components.core.manifest import Manifest
from components.core.redact import RedactFilter, redact

logger = logging.getLogger("reasrm")

LOGS_VARIABLE = "REASRM_LOGS"
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")


def run_component(
    stage: str,
    config: str,
    inputs: Mapping[str, Any],
    output: Any,
    *,
    artifact_root: str,
    experiment: str,
    overrides: Mapping[str, Any] | None = None,
    json_overrides: Mapping[str, str] | None = None,
    content: str = "",
    training_job: str = "",
) -> Manifest:
    """Run a stage as a KFP task: read the input artifacts' manifests, write the output artifact's.

    `inputs` and `output` are KFP artifacts whose single file is a manifest. `overrides` are the run's plain
    parameters, which win over the stage's JSON; those in `json_overrides` are JSON text. `content` is the digest of
    what the stage has to find (see `content_of`); `training_job` is the JSON of the TrainJob that trains, empty where
    this task does. Ends the process with the error's exit code on failure.
    """
    with kfp_task(stage):
        settings = parse_settings(stage, config, overrides, json_overrides)
        parents = {name: read_manifest(Path(artifact.path)) for name, artifact in inputs.items()}
        launcher = _launcher(training_job)
        result = _run(stage, settings, parents, artifact_root, experiment, run_id_of(output.uri), content, launcher)
        write_manifest(result.manifest, Path(output.path))
        output.metadata.update(
            uri=result.manifest.uri,
            digest=result.manifest.digest,
            run_key=result.manifest.run_key,
            reused=result.reused,
        )
        return result.manifest


def parse_settings(
    stage: str, config: str, overrides: Mapping[str, Any] | None, json_overrides: Mapping[str, str] | None
) -> dict[str, Any]:
    """Return a stage's settings from its JSON and the run's plain parameters. Raises InvalidInput if it is no JSON."""
    settings = {**_parse_config(stage, config), **(overrides or {})}
    for name, text in (json_overrides or {}).items():
        settings[name] = _parse_json(f"the parameter {name!r}", text)
    return settings


@contextmanager
def kfp_task(name: str) -> Iterator[None]:
    """Run the body of a KFP task; its errors end the process with their exit code.

    Where `REASRM_LOGS` names a folder, all that the process writes from here on goes to `<name>.log` in it.
    """
    folder = os.environ.get(LOGS_VARIABLE)
    if folder:
        sys.stdout.flush()
        sys.stderr.flush()
        log = os.open(Path(folder) / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
    configure_logging()
    try:
        yield
    except BaseException as error:
        _end(name, error)


Command = Callable[[Sequence[str]], None]
"""Something else that a stage's command line does; takes the arguments after its name. Its docstring is its help."""


def main(stage: str, commands: Mapping[str, Command] | None = None) -> NoReturn:
    """Run a stage, or one of its other commands, from the command line; `--help` says how."""
    program = f"python -m components.{stage}"
    if sys.argv[1:] and sys.argv[1] in (commands or {}):
        _run_command(f"{program} {sys.argv[1]}", (commands or {})[sys.argv[1]], sys.argv[2:])
    configure_logging()
    parser = argparse.ArgumentParser(
        prog=program,
        description=sys.modules[f"components.{stage}"].__doc__,
        epilog=_commands_text(program, commands) if commands else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, type=Path, help="the stage's settings, a JSON file")
    parser.add_argument(
        "--inputs", nargs="*", default=[], metavar="NAME=MANIFEST", help="input artifacts: manifest.json files"
    )
    parser.add_argument("--output", required=True, type=Path, help="where to write the output's manifest.json")
    parser.add_argument("--artifact-root", default="s3://reasrm/artifacts", help="S3 prefix of all artifacts")
    parser.add_argument("--experiment", default="reasrm", help="MLflow experiment")
    parser.add_argument("--run-id", default=os.environ.get(RUN_ID_VARIABLE, "manual"), help="the pipeline run's id")
    arguments = parser.parse_args()
    try:
        config = _parse_config(stage, _read_text(arguments.config))
        named = dict(item.split("=", 1) for item in arguments.inputs)
        parents = {name: read_manifest(Path(path)) for name, path in named.items()}
        result = _run(stage, config, parents, arguments.artifact_root, arguments.experiment, arguments.run_id)
        write_manifest(result.manifest, arguments.output)
    except BaseException as error:
        _end(stage, error)
    sys.exit(0)


def _run_command(name: str, command: Command, arguments: Sequence[str]) -> NoReturn:
    try:
        command(arguments)
    except ReasrmError as error:
        print(f"{name}: {redact(str(error))}", file=sys.stderr)  # noqa: T201
        sys.exit(exit_code(error))
    sys.exit(0)


def _commands_text(program: str, commands: Mapping[str, Command]) -> str:
    lines = [f"  {program} {name} --help\n      {command.__doc__}" for name, command in commands.items()]
    return "\n".join(["beside the stage:", *lines])


def _run(
    stage: str,
    config: Mapping[str, Any],
    parents: Mapping[str, Manifest],
    root: str,
    experiment: str,
    run_id: str,
    content: str = "",
    launcher: launch.Launcher | None = None,
) -> StageResult:
    """Run the stage; in a process beside the first of several, do its part and end the process."""
    ranks.forget_strays()
    if ranks.launched():
        launch.end_with_launcher()
    with stopping_cleanly():
        if not ranks.is_main():
            follow_stage(stage, config, parents, artifact_root=root)
            sys.exit(0)
        result = run_stage(
            stage,
            config,
            parents,
            artifact_root=root,
            experiment=experiment,
            run_id=run_id,
            run_name=os.environ.get(RUN_NAME_VARIABLE, ""),
            launcher=launcher,
            content=content,
        )
    logger.info("%s %s: %s", stage, "reused" if result.reused else "done", result.manifest.uri)
    return result


def _launcher(training_job: str) -> launch.Launcher | None:
    if not training_job:
        return None
    from components.adapters.trainjob import launcher_from

    return launcher_from(training_job)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest file. Raises InvalidInput when it is missing or is not one."""
    try:
        return Manifest.from_bytes(path.read_bytes())
    except OSError as error:
        raise InvalidInput(
            f"cannot read the manifest {path}: {error.strerror}; give an existing manifest.json"
        ) from error
    except ValueError as error:
        raise InvalidInput(f"{path} is not a manifest of this pipeline; give the manifest.json of a stage") from error


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write a manifest where the caller wants it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(manifest.to_bytes())


class JsonLines(logging.Formatter):
    """One JSON object a log record, so that a cluster's log store can search by field."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        line: dict[str, Any] = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        if ranks.world_size() > 1:
            line["rank"] = ranks.rank()
        line["message"] = record.getMessage()
        if record.exc_info or record.exc_text:
            line["traceback"] = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]
        return json.dumps(line, ensure_ascii=False)


def configure_logging(level: int = logging.INFO) -> None:
    """Send all logging to stderr as JSON lines through the redaction filter; done once per process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    handler.addFilter(RedactFilter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("botocore", "urllib3", "alembic", "matplotlib", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _parse_config(stage: str, text: str) -> dict[str, Any]:
    value = _parse_json(f"the configuration of stage {stage!r}", text)
    if not isinstance(value, dict):
        raise InvalidInput(f"the configuration of stage {stage!r} must be a JSON object, is {type(value).__name__}")
    return value


def _parse_json(what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{what} is not JSON: {error}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot read the configuration {path}: {error.strerror}") from error


def run_id_of(artifact_uri: str) -> str:
    """Return the pipeline run's id: from the environment, or from the path KFP gives the run's artifacts.

    It is not a parameter of the task, because then KFP's own cache would never hit. KFP's paths are
    <root>/<pipeline>/<run id>/<task>/<attempt>/<artifact>, older ones without the attempt: the run id is the first
    UUID in either.
    """
    named = os.environ.get(RUN_ID_VARIABLE)
    found = _UUID.search(artifact_uri)
    return named or (found.group() if found else "manual")


def _end(stage: str, error: BaseException) -> NoReturn:
    if isinstance(error, SystemExit):
        raise error
    launch.report_failure(error)
    if isinstance(error, ReasrmError):
        logger.error("%s: %s: %s", stage, type(error).__name__, error)
    else:
        logger.error("%s failed", stage, exc_info=error)
    print(f"reasrm {stage}: {redact(str(error) or type(error).__name__)}", file=sys.stderr)  # noqa: T201
    if ranks.world_size() > 1:
        # Python's own way out takes seconds after a training, and can wait for ever on a group that has lost a member.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code(error))
    sys.exit(exit_code(error))
