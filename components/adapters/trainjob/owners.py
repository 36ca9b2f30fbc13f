"""The pods that wait for a TrainJob: its owners, so that it ends when the last of them is deleted.

A pod that is started again for the same work becomes an owner too, and takes away those that have ended. Who stops
waiting and sees another one alive only takes its own name away.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from components.adapters.kubernetes import PODS, TRAIN_JOBS, Cluster, Conflict, Object, in_cluster
from components.core.errors import InvalidInput

logger = logging.getLogger(__name__)

POD_NAME, POD_UID = "KFP_POD_NAME", "KFP_POD_UID"
_ATTEMPTS = 20


@dataclass(frozen=True)
class Owner:
    """A pod."""

    name: str
    uid: str

    def reference(self) -> Object:
        """Return what an object says of this owner."""
        return {"apiVersion": PODS.api_version, "kind": PODS.name, "name": self.name, "uid": self.uid}


def this_pod(cluster: Cluster, environment: Mapping[str, str]) -> Owner | None:
    """Return the pod of this process; None where it is in none, or in one of another namespace.

    The API is asked, because an owner that does not exist has the object deleted at once.
    """
    if not in_cluster() and POD_NAME not in environment:
        return None
    name = environment.get(POD_NAME) or environment.get("HOSTNAME") or os.uname().nodename
    try:
        pod = cluster.get(PODS, name)
    except InvalidInput as error:
        logger.warning("the TrainJob gets no owner, and stays when this pod is deleted: %s", error)
        return None
    if pod is None or environment.get(POD_UID, pod["metadata"]["uid"]) != pod["metadata"]["uid"]:
        logger.warning(
            "the TrainJob gets no owner: there is no pod %s of this process in namespace %s", name, cluster.namespace
        )
        return None
    return Owner(name, pod["metadata"]["uid"])


def references(item: Object) -> list[Object]:
    """Return who owns an object."""
    return list(item["metadata"].get("ownerReferences") or [])


def others(item: Object, me: Owner | None) -> list[Object]:
    """Return the other owners, alive or not."""
    return [one for one in references(item) if me is None or one["uid"] != me.uid]


def others_alive(cluster: Cluster, item: Object, me: Owner | None) -> list[Object]:
    """Return the other owners that have not ended: they wait for this object too."""
    return [one for one in others(item, me) if _is_alive(cluster, one)]


def add(cluster: Cluster, item: Object, me: Owner | None) -> Object | None:
    """Make this pod an owner of a TrainJob, beside those that are alive.

    Returns the TrainJob, or None where it is gone or another one by now.
    """
    return _change(cluster, item, me, [me.reference()]) if me else item


def remove(cluster: Cluster, item: Object, me: Owner | None) -> Object | None:
    """Leave a TrainJob to the owners that are alive; return it, or None where it is gone or another one by now."""
    return _change(cluster, item, me, []) if me else item


def is_ending(item: Object) -> bool:
    """Say whether somebody has asked for the object's end."""
    return bool(item["metadata"].get("deletionTimestamp"))


def _is_alive(cluster: Cluster, reference: Object) -> bool:
    pod = cluster.get(PODS, reference["name"]) if reference["kind"] == PODS.name else None
    return (
        pod is not None
        and pod["metadata"]["uid"] == reference["uid"]
        and not is_ending(pod)
        and (pod.get("status") or {}).get("phase") in ("Pending", "Running")
    )


def _change(cluster: Cluster, item: Object, me: Owner, mine: list[Object]) -> Object | None:
    """Rewrite the owners; when somebody else was quicker, from what he left."""
    name, uid = item["metadata"]["name"], item["metadata"]["uid"]
    found: Object | None = item
    for _ in range(_ATTEMPTS):
        if found is None or found["metadata"]["uid"] != uid:
            return None
        after = [*others_alive(cluster, found, me), *mine]
        if after == references(found):
            return found
        version = found["metadata"]["resourceVersion"]
        try:
            return cluster.patch(TRAIN_JOBS, name, {"metadata": {"ownerReferences": after, "resourceVersion": version}})
        except Conflict:
            found = cluster.get(TRAIN_JOBS, name)
    raise Conflict(f"the owners of TrainJob {name} changed {_ATTEMPTS} times while they were written; run again")
