"""Kubernetes secrets: whether they are there with the keys that a run needs. No value is ever looked at."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from components.core.errors import InvalidInput
from pipeline.checks.demand import Demand
from pipeline.checks.endpoints import addresses
from pipeline.checks.finding import Finding, missing, ok, unknown, warning
from pipeline.config import RunConfig
from pipeline.profile import KEYS

if TYPE_CHECKING:
    from components.adapters.kubernetes import Cluster

AWS_ENDPOINT = "AWS_ENDPOINT_URL_S3"
CLOUD_IDENTITIES = ("eks.amazonaws.com/role-arn", "iam.gke.io/gcp-service-account", "azure.workload.identity/client-id")
"""Annotations by which a service account gets credentials of a cloud without a secret."""


def needed_keys(config: RunConfig | None) -> dict[str, tuple[str, ...]]:
    """Return the keys without which a run fails, by kind of secret; S3 at AWS needs no endpoint."""
    called = addresses(config) if config else []
    keys = dict.fromkeys(address.api_key_env for address in called if address.api_key_env)
    return {
        "store": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        "tracking": ("MLFLOW_TRACKING_URI",),
        "teacher": tuple(keys),
    }


def check_keys(config: RunConfig) -> Iterator[Finding]:
    """See that every key that an endpoint wants is among those that pods get."""
    for key in needed_keys(config)["teacher"]:
        if key not in KEYS["teacher"]:
            yield missing(
                f"key {key}",
                f"an endpoint wants {key}, but pods get only {' and '.join(KEYS['teacher'])}",
                "set api_key_env to one of these, and put the key into the teacher's secret under that name",
            )


def remedy(namespace: str, name: str, keys: tuple[str, ...], *, there: bool = False) -> str:
    """Return how a secret comes to be, or gets more keys, without its values in a shell's history."""
    if AWS_ENDPOINT not in keys and "AWS_ACCESS_KEY_ID" in keys:
        keys = (AWS_ENDPOINT, *keys)
    lines = ", ".join(f"{key}=..." for key in keys)
    if there:
        return f"add {lines} (base64) below data: kubectl -n {namespace} edit secret {name}"
    aside = " (no endpoint for AWS itself)" if AWS_ENDPOINT in keys else ""
    return (
        f"write {lines}{aside} into a file {name}.env, then: "
        f"kubectl -n {namespace} create secret generic {name} --from-env-file={name}.env"
    )


def check_secrets(cluster: "Cluster", demand: Demand, config: RunConfig | None) -> Iterator[Finding]:
    """See that each secret is there with the keys that this run needs."""
    from components.adapters.kubernetes import Forbidden

    for kind, needed in needed_keys(config).items():
        name, where = demand.secrets[kind], cluster.namespace
        if not needed:
            continue
        try:
            keys = cluster.secret_keys(name)
        except Forbidden as error:
            yield unknown(f"secret {name}", f"may not be looked at: {error}", remedy(where, name, needed))
            continue
        absent = tuple(key for key in needed if key not in (keys or ()))
        if not absent:
            yield ok(f"secret {name}", f"has {', '.join(needed)}")
            continue
        what = "is not there" if keys is None else f"has no key {', '.join(absent)}"
        if kind == "store" and _has_cloud_identity(cluster, demand):
            yield ok(f"secret {name}", f"{what}; the service account has an identity of the cloud instead")
        elif kind == "tracking" and keys is not None:
            yield warning(f"secret {name}", what, remedy(where, name, absent, there=True))
        else:
            mend = remedy(where, name, needed) if keys is None else remedy(where, name, absent, there=True)
            yield missing(f"secret {name}", what, mend)


def _has_cloud_identity(cluster: "Cluster", demand: Demand) -> bool:
    from components.adapters.kubernetes import SERVICE_ACCOUNTS

    try:
        account: dict[str, Any] = cluster.get(SERVICE_ACCOUNTS, demand.service_account) or {}
    except InvalidInput:
        return False
    annotations = account.get("metadata", {}).get("annotations") or {}
    return any(name in annotations for name in CLOUD_IDENTITIES)
