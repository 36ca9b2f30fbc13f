"""Quotas and nodes against the machines that a run asks for."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pipeline.checks.demand import Demand
from pipeline.checks.finding import Finding, missing, ok, unknown, warning

if TYPE_CHECKING:
    from components.adapters.kubernetes import Cluster

QUOTA, NODES = "quota", "GPUs"


def check_quota(cluster: "Cluster", demand: Demand) -> Iterator[Finding]:
    """Compare each quota of the namespace with what one piece of training takes."""
    from components.adapters.kubernetes import QUOTAS, Forbidden

    try:
        quotas = cluster.list(QUOTAS).items
    except Forbidden as error:
        yield unknown(QUOTA, str(error))
        return
    needs = _needs(demand)
    found = [
        finding for quota in quotas for finding in _compare(quota["metadata"]["name"], quota.get("status") or {}, needs)
    ]
    yield from found or [
        ok(QUOTA, f"{len(quotas)} in namespace {cluster.namespace}, none too small for {_said(needs)}")
    ]


def _needs(demand: Demand) -> dict[str, float]:
    """Return what quotas count, as numbers (bytes, cores, GPUs)."""
    from components.adapters.kubernetes import quantity

    cpu, memory = quantity(demand.cpu) * demand.machines, quantity(demand.memory) * demand.machines
    needs = {"cpu": cpu, "requests.cpu": cpu, "memory": memory, "requests.memory": memory, "limits.memory": memory}
    return needs | ({f"requests.{demand.gpu_type}": float(demand.gpus * demand.machines)} if demand.gpus else {})


def _compare(name: str, status: Mapping[str, Mapping[str, str]], needs: Mapping[str, float]) -> Iterator[Finding]:
    from components.adapters.kubernetes import quantity

    hard, used = status.get("hard") or {}, status.get("used") or {}
    for resource, need in needs.items():
        if resource not in hard:
            continue
        most, taken = quantity(hard[resource]), quantity(used.get(resource, "0"))
        what = f"{name} allows {hard[resource]} of {resource}, and one piece of training takes {_number(need)}"
        if need > most:
            yield missing(QUOTA, what, f"raise {resource} in the ResourceQuota {name}, or ask for less in the profile")
        elif need > most - taken:
            yield warning(QUOTA, f"{what}; {used.get(resource)} are in use, so it has to wait until some are free")
    if "limits.cpu" in hard:
        yield warning(
            QUOTA,
            f"{name} limits limits.cpu, and pods of a run have no CPU limit: they are refused unless a LimitRange "
            "gives them one",
            f"take limits.cpu out of the ResourceQuota {name}, or add a LimitRange with a default",
        )


def check_gpus(cluster: "Cluster", demand: Demand) -> Iterator[Finding]:
    """Compare the nodes' GPUs with those of a machine; nodes that an autoscaler adds are not there yet."""
    from components.adapters.kubernetes import Forbidden

    if not demand.gpus:
        yield ok(NODES, "none are asked for")
        return
    try:
        nodes = cluster.allocatable(demand.gpu_type)
    except Forbidden as error:
        yield unknown(NODES, f"nodes may not be looked at: {error}")
        return
    fitting = [name for name, count in nodes.items() if count >= demand.gpus]
    what = f"{len(fitting)} nodes have {demand.gpus} {demand.gpu_type} or more, {demand.machines} are needed at a time"
    if len(fitting) >= demand.machines:
        yield ok(NODES, what)
    else:
        most = max(nodes.values(), default=0)
        yield warning(
            NODES,
            f"{what}; the largest has {_number(most)}",
            "see that an autoscaler adds such nodes, or set gpus and gpu_type to what there is",
        )


def _said(needs: Mapping[str, float]) -> str:
    gpus = [f"{_number(need)} {name.removeprefix('requests.')}" for name, need in needs.items() if "/" in name]
    return ", ".join([f"{_number(needs['cpu'])} CPUs", f"{_number(needs['memory'])} of memory", *gpus])


def _number(value: float) -> str:
    for unit, size in (("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
