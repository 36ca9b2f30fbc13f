"""All checks that can be made from a desk, for `reasrm doctor`: of a cluster, and of what a recipe needs beside it."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from components.core.errors import ReasrmError
from pipeline.checks import (
    endpoints,
    images,
    kubeflow,
    machines,
    objects,
    permissions,
    reach,
    secrets,
    sources,
    store,
    tracker,
)
from pipeline.checks.demand import Demand, demand_of_profile
from pipeline.checks.finding import Finding, unknown
from pipeline.checks.gather import Check, gather, run
from pipeline.config import RunConfig
from pipeline.profile import Profile

if TYPE_CHECKING:
    from components.adapters.kubernetes import Cluster
    from pipeline.client.endpoint import Kfp


REACH_SECONDS = 5.0
"""Longest wait for the first answer of the Kubernetes API."""


@dataclass(frozen=True)
class Desk:
    """What is examined, and how it is reached. Without a recipe's `config` its data and teachers are left out."""

    profile: Profile
    config: RunConfig | None
    open_kfp: "Callable[[str], Kfp]"
    """Given the namespace of the cluster, for where no other is named; empty if the cluster is not reached."""
    connect: "Callable[[], Cluster]"
    namespace: str = ""
    """The namespace of the runs; empty: that of the cluster's context."""

    def examine(self) -> dict[str, list[Finding]]:
        """Return the findings of each check, in the order in which they are read."""
        try:
            demand = demand_of_profile(self.config, self.profile)
        except ReasrmError as error:
            return {"profile": run("profile", partial(_raise, error))}
        cluster, about = self._reach()
        asked = self._cluster(cluster, demand) if cluster else {}
        checks: dict[str, Check] = {
            "KFP": partial(self._kfp, self.namespace or (cluster.namespace if cluster else "")),
            "Kubernetes": lambda: about,
            **asked,
            "images": partial(images.check_images, self.profile),
        }
        outside = self._outside(demand)
        found = gather(checks | {name: check for name, (check, _) in outside.items()})
        return {
            name: [from_here(finding, outside[name][1] if name in outside else "") for finding in findings]
            for name, findings in found.items()
        }

    def _kfp(self, namespace: str) -> Iterator[Finding]:
        try:
            kfp = self.open_kfp(namespace)
        except ReasrmError as error:
            yield unknown(kubeflow.NAME, str(error))
            return
        yield from kubeflow.check_kfp(kfp)

    def _reach(self) -> "tuple[Cluster | None, list[Finding]]":
        """Ask the Kubernetes API one thing, once; without an answer nothing more is asked of it."""
        reached: list[Cluster] = []

        def ask() -> Iterator[Finding]:
            from components.adapters.kubernetes import Patience

            cluster = self.connect()
            yield from objects.check_version(replace(cluster, patience=Patience(0.0)))
            reached.append(cluster)

        (findings,) = gather({"Kubernetes": ask}, REACH_SECONDS).values()
        if reached:
            return reached[0], findings
        remedy = "see that `kubectl get namespace` works, or give --context"
        return None, [unknown("Kubernetes", findings[-1].what, remedy)]

    def _cluster(self, cluster: "Cluster", demand: Demand) -> dict[str, Check]:
        return {
            "kinds": partial(objects.check_kinds, cluster, demand),
            "service account": partial(objects.check_account, cluster, demand),
            "user": partial(permissions.check_user, cluster),
            "pods": partial(permissions.check_account, cluster, demand),
            "secrets": partial(secrets.check_secrets, cluster, demand, self.config),
            "quota": partial(machines.check_quota, cluster, demand),
            "GPUs": partial(machines.check_gpus, cluster, demand),
        }

    def _outside(self, demand: Demand) -> Mapping[str, tuple[Check, str | None]]:
        """Return what does not need the cluster's API, each with the address that it asks: None is S3 at AWS.

        That is asked where no other is named, which may as well mean that nobody has named it here.
        """
        root, experiment = (_setting(self.config, name) for name in ("artifact_root", "experiment"))
        s3 = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
        mlflow = os.environ.get("MLFLOW_TRACKING_URI", "")
        checks: dict[str, tuple[Check, str | None]] = {
            "bucket": (partial(store.check_bucket, root, demand.secrets["store"]), s3),
            "lifecycle": (partial(store.check_lifecycle, root), s3),
            "MLflow": (partial(tracker.check_mlflow, experiment, demand.secrets["tracking"]), mlflow),
        }
        if self.config is None:
            return checks
        checks["keys"] = (partial(secrets.check_keys, self.config), "")
        for address in endpoints.addresses(self.config):
            check = partial(endpoints.check_address, address, demand.secrets["teacher"])
            checks[f"{address.role} {address.url} {address.model}"] = (check, address.url)
        for place in sources.places(self.config):
            check = partial(sources.check_place, place, demand.secrets["hub"])
            checks[f"{place.setting} {place.uri}"] = (check, s3 if place.uri.startswith("s3://") else "")
        return checks


def from_here(finding: Finding, address: str | None) -> Finding:
    """Return what a finding means at a desk, whose variables and network are not those of a pod."""
    if finding.status != "missing" or not finding.cause:
        return finding
    if finding.cause == "unset":
        return replace(finding, status="unknown", what=f"{finding.what} (here; pods have variables of their own)")
    if address is None and finding.cause == "unreachable":
        return replace(
            finding,
            status="unknown",
            what=f"{finding.what} (AWS_ENDPOINT_URL_S3 is not set here; pods have variables of their own)",
            remedy="to have it looked at from here, set AWS_ENDPOINT_URL_S3 and the keys",
        )
    if reach.is_inside(address or ""):
        return replace(finding, status="unknown", what=f"{finding.what} (from here; it is an address of the cluster)")
    return finding


def _setting(config: RunConfig | None, name: str) -> str:
    return str(getattr(config, name) if config else RunConfig.model_fields[name].default)


def _raise(error: ReasrmError) -> Iterable[Finding]:
    raise error
