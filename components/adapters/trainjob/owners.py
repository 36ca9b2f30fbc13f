"""The pods that wait for a TrainJob: its owners, so that it ends when the last of them is deleted.

A pod that is started again for the same work becomes an owner too. Who stops waiting and sees another one alive only
takes its own name away.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from components.adapters.kubernetes import PODS, Cluster, Conflict, Kind, Object, in_cluster
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


def others_alive(cluster: Cluster, item: Object, me: Owner | None) -> bool:
    """Say whether another pod that has not ended waits for this object."""
    for reference in references(item):
        if reference["kind"] != PODS.name or (me is not None and reference["uid"] == me.uid):
            continue
        pod = cluster.get(PODS, reference["name"])
        if (
            pod is not None
            and pod["metadata"]["uid"] == reference["uid"]
            and not pod["metadata"].get("deletionTimestamp")
            and (pod.get("status") or {}).get("phase") in ("Pending", "Running")
        ):
            return True
    return False


def add(cluster: Cluster, kind: Kind, item: Object, me: Owner | None) -> Object | None:
    """Make this pod an owner too; return the object, or None where it is gone or another one by now."""
    if me is None:
        return item
    return _change(cluster, kind, item, [me.reference()], ())


def remove(cluster: Cluster, kind: Kind, item: Object, me: Owner | None) -> Object | None:
    """Take this pod from the owners; return the object, or None where it is gone or another one by now."""
    if me is None:
        return item
    return _change(cluster, kind, item, [], (me.uid,))


def _change(cluster: Cluster, kind: Kind, item: Object, more: list[Object], less: tuple[str, ...]) -> Object | None:
    """Rewrite the owners; when somebody else was quicker, from what he left."""
    name, uid = item["metadata"]["name"], item["metadata"]["uid"]
    found: Object | None = item
    for _ in range(_ATTEMPTS):
        if found is None or found["metadata"]["uid"] != uid:
            return None
        before = references(found)
        present = {reference["uid"] for reference in before}
        after = [reference for reference in before if reference["uid"] not in less]
        after += [reference for reference in more if reference["uid"] not in present]
        if after == before:
            return found
        version = found["metadata"]["resourceVersion"]
        try:
            return cluster.patch(kind, name, {"metadata": {"ownerReferences": after, "resourceVersion": version}})
        except Conflict:
            found = cluster.get(kind, name)
    raise Conflict(f"the owners of {kind.name} {name} changed {_ATTEMPTS} times while they were written; run again")


def is_ending(item: Object) -> bool:
    """Say whether somebody has asked for the object's end."""
    return bool(item["metadata"].get("deletionTimestamp"))
