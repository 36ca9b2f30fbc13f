"""Permissions: what the pods' service account and the user have to be allowed, asked of the cluster itself."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.checks.demand import Demand
from pipeline.checks.finding import Finding, missing, ok, unknown, warning
from pipeline.checks.objects import INSTALL

if TYPE_CHECKING:
    from components.adapters.kubernetes import Cluster


@dataclass(frozen=True)
class Permission:
    """A thing to be allowed in a namespace; `group` is empty for the core API."""

    verb: str
    resource: str
    group: str = ""
    subresource: str = ""

    def __str__(self) -> str:
        resource = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        return f"{self.verb} {resource}.{self.group}" if self.group else f"{self.verb} {resource}"


def _each(verbs: str, resource: str, group: str = "", subresource: str = "") -> tuple[Permission, ...]:
    return tuple(Permission(verb, resource, group, subresource) for verb in verbs.split())


ANY_RUN = (*_each("create patch", "workflowtaskresults", "argoproj.io"), *_each("get", "configmaps"))
"""Of every pod of a run: Argo's wait container reports results, KFP's launcher reads its settings."""
TRAINING = (
    *_each("create get list watch patch delete", "trainjobs", "trainer.kubeflow.org"),
    *_each("get", "trainingruntimes", "trainer.kubeflow.org"),
    *_each("get list watch", "pods"),
    *_each("get", "pods", subresource="log"),
    *_each("list", "events"),
    *_each("create get delete", "configmaps"),
)
"""Of the pod that starts a TrainJob, follows it and says why it waits."""
USER = (
    *_each("create get list", "experiments", "pipelines.kubeflow.org"),
    *_each("create get list terminate retry", "runs", "pipelines.kubeflow.org"),
    *_each("create get list", "pipelines", "pipelines.kubeflow.org"),
    *_each("create get list enable disable delete", "jobs", "pipelines.kubeflow.org"),
)
"""Of who submits and schedules, where KFP is installed for several users; recurring runs are `jobs` there."""
_REMEDY = f"{INSTALL}, which has the Role; for TrainJobs with the component training. Or ask who runs the namespace"


def of_pods(demand: Demand) -> tuple[Permission, ...]:
    """Return what the service account of a run needs."""
    return ANY_RUN + TRAINING if demand.trainjob else ANY_RUN


def check_pod(cluster: "Cluster", demand: Demand) -> Iterator[Finding]:
    """Ask whether this very pod's service account, which is the run's, may do what the run's pods do."""

    def allowed(permission: Permission) -> bool:
        return _may_i(cluster, permission)

    yield _compare("permissions of this pod", of_pods(demand), allowed, missing, _REMEDY)


def check_account(cluster: "Cluster", demand: Demand) -> Iterator[Finding]:
    """Ask on behalf of the pods' service account; that alone takes a permission that not every user has."""
    from components.adapters.kubernetes import Forbidden, Kind

    reviews = Kind("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False)
    account, namespace = demand.service_account, cluster.namespace
    name = f"permissions of {account}"

    def allowed(permission: Permission) -> bool:
        attributes = {
            "namespace": namespace,
            "verb": permission.verb,
            "group": permission.group,
            "resource": permission.resource,
            "subresource": permission.subresource,
        }
        spec = {
            "user": f"system:serviceaccount:{namespace}:{account}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"],
            "resourceAttributes": attributes,
        }
        body = {"apiVersion": reviews.api_version, "kind": reviews.name, "spec": spec}
        return bool(cluster.create(reviews, body)["status"].get("allowed"))

    try:
        yield _compare(name, of_pods(demand), allowed, missing, _REMEDY)
    except Forbidden as error:
        yield unknown(name, f"you may not ask for another's permissions ({error}); a run's preflight asks for its own")


def check_user(cluster: "Cluster") -> Iterator[Finding]:
    """Ask whether the user may submit and schedule; only an installation for several users looks at it."""

    def allowed(permission: Permission) -> bool:
        return _may_i(cluster, permission)

    remedy = "ask for the ClusterRole kubeflow-edit in this namespace, if KFP is installed for several users"
    yield _compare("your permissions", USER, allowed, warning, remedy)


def _may_i(cluster: "Cluster", permission: Permission) -> bool:
    return bool(
        cluster.can_i(permission.verb, permission.group, permission.resource, subresource=permission.subresource)
    )


def _compare(
    name: str,
    wanted: Iterable[Permission],
    allowed: Callable[[Permission], bool],
    otherwise: Callable[[str, str, str], Finding],
    remedy: str,
) -> Finding:
    every = list(wanted)
    refused = [permission for permission in every if not allowed(permission)]
    if refused:
        return otherwise(name, f"not allowed: {', '.join(map(str, refused))}", remedy)
    return ok(name, f"all {len(every)} that a run needs")
