"""Kubeflow Pipelines: whether its API answers, and what its version lacks."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.checks import reach
from pipeline.checks.finding import Finding, missing, ok, unknown

if TYPE_CHECKING:
    from pipeline.client.endpoint import Kfp

NAME = "Kubeflow Pipelines"
OLDEST = (2, 17)
"""Older ones do not resolve names of secrets that are parameters in loops (kubeflow/pipelines 13128)."""
OWN = "kubeflow"
"""The namespace in which KFP is installed, unless its administrator chose another; no API tells it."""


def check_kfp(kfp: "Kfp") -> Iterator[Finding]:
    """Ask the API what it is, and whether it lets this user see runs."""
    reach.connect(kfp.host)
    health = kfp.health()
    yield _version(kfp.host, health.version)
    if health.multi_user and not kfp.namespace:
        yield missing(NAME, f"{kfp.host} is for several users, and no namespace is given", "give --namespace NAME")
        return
    if not health.multi_user and kfp.namespace and not _is_own(kfp.host, kfp.namespace):
        yield missing(
            NAME,
            f"{kfp.host} is for one user: it runs all in its own namespace, {OWN}, and nothing in {kfp.namespace}",
            f"give --namespace {OWN}, and apply manifests/overlays/dev-single-user or one like it there",
        )
    scope: dict[str, Any] = {"namespace": kfp.namespace} if health.multi_user else {}
    kfp.rows(kfp.runs.run_service_list_runs, "runs", limit=1, **scope)
    yield ok(NAME, f"runs can be seen{f' in namespace {kfp.namespace}' if scope else ''}")


def _is_own(host: str, namespace: str) -> bool:
    """Say whether a namespace is KFP's: the usual one, or the one in its service's name (ml-pipeline.NAMESPACE.svc)."""
    return namespace == OWN or namespace in (urlsplit(host).hostname or "").split(".")[1:2]


def _version(host: str, version: str) -> Finding:
    found = re.match(r"v?(\d+)\.(\d+)", version)
    if found is None:
        return unknown(NAME, f"{host} answers, but does not tell its version ({version or 'nothing'})")
    numbers = (int(found[1]), int(found[2]))
    if numbers < OLDEST:
        return missing(
            NAME,
            f"{host} is version {version}, which does not resolve names of secrets in loops: traces-part and "
            "benchmark-part would fail",
            "upgrade to 2.17 or later",
        )
    return ok(NAME, f"{host} is version {version}")
