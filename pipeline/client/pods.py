"""What the pods of a run say: why one does not start, and with which words one ended.

KFP's API (2.16, 2.17) tells that a task failed, but not why; the pods do, to whom may read them.
"""

import threading
from typing import TYPE_CHECKING, Any

from components.core.errors import InvalidInput, ReasrmError
from components.core.redact import redact

if TYPE_CHECKING:
    from components.adapters.kubernetes import Cluster

RUN_LABEL = "pipeline/runid"
STAGE_LABEL = "app.kubernetes.io/component"
LENGTH = 1000
SECONDS = 2.0
"""Longest that a run is kept waiting for what its pods say; what comes later is shown at the next look."""


class PodNotes:
    """Reads the pods of runs through kubeconfig or the service account; says nothing where it cannot."""

    def __init__(self, namespace: str, cluster: "Cluster | None" = None, seconds: float = SECONDS) -> None:
        self.namespace, self.seconds = namespace, seconds
        self._cluster = cluster
        self._able, self._worked = True, False
        self._notes: dict[str, str] = {}
        self._thread: threading.Thread | None = None

    def __call__(self, run_id: str) -> dict[str, str]:
        """Return what each stage's pods say; stages whose pods are well are left out."""
        if self._able and not (self._thread and self._thread.is_alive()):
            # A daemon, because an API that hangs must not keep the process from ending.
            self._thread = threading.Thread(target=self._look, args=(run_id,), daemon=True)
            self._thread.start()
            self._thread.join(self.seconds)
        return self._notes

    def _look(self, run_id: str) -> None:
        from components.adapters.kubernetes import PODS, Patience, connect

        try:
            if self._cluster is None:
                self._cluster = connect(namespace=self.namespace, patience=Patience(total=0.0))
            pods = self._cluster.list(PODS, labels=f"{RUN_LABEL}={run_id}").items
        except ReasrmError as error:
            # No cluster, no permission: the run is shown without. One that was there before may come back.
            self._able = self._worked and not isinstance(error, InvalidInput)
            return
        except Exception:  # a plugin of kubeconfig that fails in a way of its own
            self._able = False
            return
        self._worked = True
        notes: dict[str, str] = {}
        for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp"))):
            stage = pod["metadata"].get("labels", {}).get(STAGE_LABEL, "").replace("_", "-")
            text = pod_note(pod)
            if stage and text:
                notes[stage] = text
            elif pod.get("status", {}).get("phase") in ("Running", "Succeeded"):
                notes.pop(stage, None)  # a later attempt does well
        self._notes = notes


def pod_note(pod: dict[str, Any]) -> str:
    """Return why a pod does not start, or how it ended badly; nothing of one that is well."""
    status = pod.get("status", {})
    if status.get("phase") == "Pending":
        unplaced = [one for one in status.get("conditions") or [] if one.get("type") == "PodScheduled"]
        if unplaced and unplaced[0].get("status") == "False":
            return _words("no node for it", unplaced[0].get("message"))
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for container in sorted(containers, key=lambda one: one.get("name") != "main"):
        state = container.get("state") or {}
        waiting, ended = state.get("waiting"), state.get("terminated")
        if waiting and waiting.get("reason") not in ("PodInitializing", "ContainerCreating"):
            return _words(waiting.get("reason"), waiting.get("message"))
        if ended and ended.get("exitCode"):
            return _words(_ending(ended), ended.get("message"))
    if status.get("phase") == "Failed":
        return _words(status.get("reason") or "failed", status.get("message"))
    return ""


def _ending(ended: dict[str, Any]) -> str:
    reason, code = ended.get("reason") or "Error", ended["exitCode"]
    if reason == "OOMKilled":
        return "killed: it used more memory than its limit"
    return f"exit code {code}" if reason == "Error" else f"{reason}, exit code {code}"


def _words(reason: str | None, message: str | None) -> str:
    text = ": ".join(" ".join(part.split()) for part in (reason, message) if part)
    return redact(text[:LENGTH])
