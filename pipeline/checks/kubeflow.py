"""Kubeflow Pipelines: whether its API answers, and what its version lacks."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.checks import reach
from pipeline.checks.finding import Finding, missing, ok, unknown, warning

if TYPE_CHECKING:
    from pipeline.client.endpoint import Kfp

NAME = "Kubeflow Pipelines"
OLDEST, WHOLE = (2, 16), (2, 17)
"""The oldest version that runs the pipeline, and the one from which on nothing is missing."""
LACKS = (
    "it tells runs no schedule time (the day of the start stands for it), it has no MLflow plugin (reasrm makes its "
    "MLflow runs itself), and in loops it does not resolve names of secrets that are parameters (kubeflow/pipelines "
    "13128), which the tasks traces-part and benchmark-part need"
)


def check_kfp(kfp: "Kfp") -> Iterator[Finding]:
    """Ask the API what it is, and whether it lets this user see runs."""
    reach.connect(kfp.host)
    health = kfp.health()
    yield _version(kfp.host, health.version)
    if health.multi_user and not kfp.namespace:
        yield missing(NAME, f"{kfp.host} is for several users, and no namespace is given", "give --namespace NAME")
        return
    scope: dict[str, Any] = {"namespace": kfp.namespace} if health.multi_user else {}
    kfp.rows(kfp.runs.run_service_list_runs, "runs", limit=1, **scope)
    yield ok(NAME, f"runs can be seen{f' in namespace {kfp.namespace}' if scope else ''}")


def _version(host: str, version: str) -> Finding:
    found = re.match(r"v?(\d+)\.(\d+)", version)
    if found is None:
        return unknown(NAME, f"{host} answers, but does not tell its version ({version or 'nothing'})")
    numbers = (int(found[1]), int(found[2]))
    if numbers < OLDEST:
        return missing(NAME, f"{host} is version {version}", "upgrade to 2.16 or later")
    if numbers < WHOLE:
        return warning(NAME, f"{host} is version {version}: {LACKS}", "upgrade to 2.17")
    return ok(NAME, f"{host} is version {version}")
