"""Submit a compiled pipeline: its content becomes a version once, and each submission one run of that version."""

import json
import tempfile
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.core.errors import InvalidInput, Transient
from pipeline.client import endpoint
from pipeline.client.endpoint import Kfp, Uncertain
from pipeline.compiler import version_hash
from pipeline.config import MAX_PARAMETER_BYTES, RunConfig

RECENT = 20
"""How many of an experiment's newest runs are searched for one whose creation was not answered."""
AGAIN = "-again-"
"""What comes after the name of a version whose content was uploaded before: KFP's newest is the last one uploaded."""
DESCRIPTION = "Reasoning reward model: distil judgments, filter, SFT, GRPO, benchmark, register."


@dataclass(frozen=True)
class RunRef:
    """A run that was created, and where it can be looked at."""

    run_id: str
    name: str
    url: str
    pipeline_id: str
    version_id: str
    version: str


@dataclass(frozen=True)
class Outlook:
    """What a submission would do; ids are empty for what is not there yet."""

    pipeline_id: str
    version: str
    version_id: str
    experiment_id: str
    parameters: dict[str, Any]


def content_name(package: bytes, pipeline_name: str) -> str:
    """Return the name of the version that holds this package: equal content has equal names."""
    return f"{pipeline_name}-{version_hash(package)}"


def submit(
    kfp: Kfp,
    config: RunConfig,
    package: bytes,
    *,
    pipeline_name: str,
    experiment: str,
    service_account: str,
    run_name: str,
    description: str = "",
) -> RunRef:
    """Create a run of this package and return it.

    The package is uploaded if the server does not have it, the experiment made if absent. If the answer to the creation
    is lost, the run is looked for, so that one submission does not become two runs.

    Raises:
        InvalidInput: the server refuses it.
        Transient: the server cannot be reached; nothing was started.
        Uncertain: whether the run was created is not known.
    """
    import kfp_server_api

    parameters = overrides(package, config)
    version = ensure_version(kfp, package, pipeline_name=pipeline_name, description=description)
    group = kfp.ensure_experiment(experiment)
    mark = f"submission {uuid.uuid4()}"
    body = kfp_server_api.V2beta1Run(
        display_name=run_name,
        description=f"{description}\n{mark}".strip(),
        experiment_id=group.experiment_id,
        pipeline_version_reference=kfp_server_api.V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.pipeline_version_id
        ),
        runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=parameters) if parameters else None,
        service_account=service_account,
    )
    run = _create(kfp, body, mark)
    return RunRef(
        run.run_id,
        run.display_name,
        run_url(kfp, run.run_id),
        version.pipeline_id,
        version.pipeline_version_id,
        version.name or version.display_name,
    )


def outlook(kfp: Kfp, config: RunConfig, package: bytes, *, pipeline_name: str, experiment: str) -> Outlook:
    """Return what `submit` would do, changing nothing. Raises as `submit`."""
    name = content_name(package, pipeline_name)
    pipeline, group = kfp.find_pipeline(pipeline_name), kfp.find_experiment(experiment)
    version = kfp.find_version(pipeline.pipeline_id, name) if pipeline else None
    return Outlook(
        pipeline.pipeline_id if pipeline else "",
        name,
        version.pipeline_version_id if version else "",
        group.experiment_id if group else "",
        overrides(package, config),
    )


def ensure_version(kfp: Kfp, package: bytes, *, pipeline_name: str, description: str = "") -> Any:
    """Return the version that holds this package; it is uploaded if the server does not have it. Raises as `submit`."""
    pipeline = kfp.ensure_pipeline(pipeline_name, DESCRIPTION)
    return _upload(kfp, pipeline.pipeline_id, content_name(package, pipeline_name), package, description)


def holds(version: Any, package: bytes, pipeline_name: str) -> bool:
    """Say whether a version is this package, uploaded for the first time or once more."""
    name, content = version.name or version.display_name or "", content_name(package, pipeline_name)
    return name == content or name.startswith(f"{content}{AGAIN}")


def ensure_newest(kfp: Kfp, package: bytes, *, pipeline_name: str) -> tuple[Any, bool]:
    """Return the newest version of a pipeline, which holds this package, and whether it had to be uploaded for that.

    A package that was uploaded before is uploaded once more, under another name, if there are newer ones. Raises as
    `submit`.
    """
    pipeline = kfp.ensure_pipeline(pipeline_name, DESCRIPTION)
    newest = kfp.newest_version(pipeline.pipeline_id)
    if newest is not None and holds(newest, package, pipeline_name):
        return newest, False
    name = content_name(package, pipeline_name)
    if kfp.find_version(pipeline.pipeline_id, name) is not None:
        name += f"{AGAIN}{datetime.now(UTC):%Y%m%d%H%M%S}"
    return _upload(kfp, pipeline.pipeline_id, name, package), True


def _upload(kfp: Kfp, pipeline_id: str, name: str, package: bytes, description: str = "") -> Any:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "pipeline.yaml"  # the server goes by the ending
        file.write_bytes(package)
        return kfp.ensure_version(pipeline_id, name, file, description)


def check_places(config: RunConfig) -> None:
    """Raise InvalidInput if a run would read something that only this machine has."""
    from pipeline.compiler import local_paths

    unseen = list(local_paths(config))
    if unseen:
        raise InvalidInput(
            f"{', '.join(unseen)}: on this machine, where the pods of a run do not see it; put it on S3 (reasrm upload "
            "--help) and name that place in the recipe or its settings"
        )


def overrides(package: bytes, config: RunConfig) -> dict[str, Any]:
    """Return those of the run's parameters that are not the package's defaults already.

    Raises InvalidInput if the package has no such parameter, or they are larger than KFP takes.
    """
    inputs = package_spec(package)["root"].get("inputDefinitions", {}).get("parameters", {})
    wanted = config.arguments()
    unknown = sorted(set(wanted) - set(inputs))
    if unknown:
        raise InvalidInput(f"the compiled pipeline has no parameter {unknown[0]}; compile it again with this reasrm")
    changed = {name: value for name, value in wanted.items() if inputs[name].get("defaultValue") != value}
    size = len(json.dumps(changed).encode())
    if size > MAX_PARAMETER_BYTES:
        raise InvalidInput(f"the parameters take {size} bytes, KFP allows {MAX_PARAMETER_BYTES}: shorten the lists")
    return changed


def package_spec(package: bytes) -> dict[str, Any]:
    """Return the PipelineSpec of a compiled package. Raises InvalidInput if it is none."""
    import yaml

    try:
        spec = next(iter(yaml.load_all(package, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))))
    except (yaml.YAMLError, StopIteration) as error:
        raise InvalidInput(f"the compiled pipeline is not YAML: {error}") from error
    if not isinstance(spec, dict) or "root" not in spec:
        raise InvalidInput("the compiled pipeline has no root; compile it with reasrm compile")
    return spec


def run_url(kfp: Kfp, run_id: str) -> str:
    """Return the link to a run's page."""
    return kfp.ui(f"/runs/details/{run_id}")


def _create(kfp: Kfp, body: Any, mark: str) -> Any:
    import tenacity

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(endpoint.ATTEMPTS),
        wait=tenacity.wait_exponential(multiplier=endpoint.FIRST_PAUSE, max=endpoint.LONGEST_PAUSE),
        retry=tenacity.retry_if_exception(lambda error: type(error) is Transient),
        reraise=True,
    )
    return retrying(_create_once, kfp, body, mark)


def _create_once(kfp: Kfp, body: Any, mark: str) -> Any:
    """Create the run, or find the one that an unanswered attempt has created."""
    try:
        return kfp.call(kfp.runs.run_service_create_run, run=body)
    except Transient as error:
        query = {"experiment_id": body.experiment_id, "sort_by": "created_at desc"}
        recent = kfp.rows(kfp.runs.run_service_list_runs, "runs", limit=RECENT, **query)
        for run in recent:
            if mark in (run.description or ""):
                return run
        if isinstance(error, Uncertain):
            raise Uncertain(
                f"{error}. The run is not in the list; it may still appear: look with `reasrm status` before you "
                "submit again"
            ) from error
        raise
