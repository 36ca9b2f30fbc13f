"""Make the TrainJob of a piece of work or find the one that does it, and let go of it.

A TrainJob that runs is waited for. One that has ended, or that nobody waits for and that was made from other settings,
is deleted and made anew: its processes go on from the last checkpoint in S3.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from components.adapters.kubernetes import (
    CONFIG_MAPS,
    PODS,
    TRAIN_JOBS,
    TRAINING_RUNTIMES,
    Cluster,
    Conflict,
    Forbidden,
    NotServed,
    Object,
    Propagation,
)
from components.adapters.launch import stop_seconds
from components.adapters.trainjob import owners
from components.adapters.trainjob.owners import Owner
from components.adapters.trainjob.pace import Pace
from components.adapters.trainjob.settings import TrainJobSettings
from components.adapters.trainjob.spec import GRACE_SECONDS, HASH, PODS_LABEL, Wanted
from components.adapters.trainjob.state import condition
from components.core.errors import InvalidInput, ReasrmError, Transient

logger = logging.getLogger(__name__)

FAILURE = "reasrm/failure"
"""Annotation of a TrainJob that failed by something that the user has to change: what, in which run, when."""
_ATTEMPTS = 5


@dataclass
class Claim:
    """One pod's claim to the TrainJob that does its work."""

    cluster: Cluster
    settings: TrainJobSettings
    wanted: Wanted
    me: Owner | None
    run: str
    """Names the run among those of the same work."""
    pace: Pace
    taken: Object | None = None
    """The TrainJob as it was when this pod began to wait for it."""

    @property
    def name(self) -> str:
        """Return the TrainJob's name."""
        return self.wanted.name

    def take(self) -> Object:
        """Return the TrainJob that does this work, with this pod as an owner.

        Raises InvalidInput, too, where it failed in this very run by something that the user has to change.
        """
        self._check_runtime()
        while True:
            taken = self._try()
            if taken is not None:
                self.taken = taken
                self.keep_files(taken)
                return taken
            time.sleep(self.pace.poll)

    def keep_files(self, train_job: Object) -> None:
        """Make the files that the TrainJob's pods mount, unless they are there. They go when it goes."""
        if _digest(train_job) != self.wanted.digest:
            return  # another run's, which has other files
        uid = train_job["metadata"]["uid"]
        owner = {"apiVersion": TRAIN_JOBS.api_version, "kind": TRAIN_JOBS.name, "name": self.name, "uid": uid}
        metadata = {**self.wanted.files["metadata"], "ownerReferences": [owner]}
        for _ in range(_ATTEMPTS):
            found = self.cluster.get(CONFIG_MAPS, self.name)
            try:
                if found is None:
                    self.cluster.create(CONFIG_MAPS, {**self.wanted.files, "metadata": metadata})
                elif uid not in {one["uid"] for one in owners.references(found)}:  # of an earlier TrainJob
                    self.cluster.delete(CONFIG_MAPS, self.name, uid=found["metadata"]["uid"])
                    continue
            except Conflict:  # somebody else was quicker
                continue
            return
        raise Transient(f"the ConfigMap {self.name} is made and deleted by somebody all the time; run again")

    def leave(self, seen: Object | None, propagation: Propagation = "Foreground") -> str:
        """Ask for the end of the TrainJob, unless another pod waits for it; say what was done.

        The end is not waited for, and nothing is asked before where `seen` has no other owner: a pod of KFP's that is
        told to stop has less than a second.
        """
        try:
            seen = seen or self.taken or self._taken_unawares()
            if seen is None:
                return "no TrainJob was begun"
            if owners.others(seen, self.me) and self._is_left_to_others(seen):
                return f"the TrainJob {self.name} goes on for another run; run again to wait for it"
            there = self.cluster.delete(TRAIN_JOBS, self.name, uid=seen["metadata"]["uid"], propagation=propagation)
        except Conflict:
            there = False
        except ReasrmError as error:
            logger.warning("the TrainJob %s stays: %s", self.name, error)
            return f"the TrainJob {self.name} could not be ended: {error}"
        if not there:
            return f"the TrainJob {self.name} is gone"
        return f"the TrainJob {self.name} is being ended; run again to go on from the last checkpoint"

    def remember(self, error: InvalidInput) -> None:
        """Note why a TrainJob failed, for the retries of this run."""
        told = json.dumps({"run": self.run, "time": time.time(), "message": str(error)}, ensure_ascii=False)
        try:
            self.cluster.patch(TRAIN_JOBS, self.name, {"metadata": {"annotations": {FAILURE: told}}})
        except ReasrmError as problem:
            logger.warning("why the TrainJob %s failed is not noted at it: %s", self.name, problem)

    def _try(self) -> Object | None:
        """Return the TrainJob; None where it has to be looked for again."""
        found = self._get()
        if found is None:
            # Trainer and JobSet know objects by their names: new ones beside the old pods would be taken for theirs.
            self._wait_until_gone(self._pods_left, f"pods of an earlier TrainJob {self.name}")
            return self._create()
        if not owners.is_ending(found):
            why = self._why_anew(found)
            if not why:
                logger.info("the TrainJob %s does this work already; waiting for it", self.name)
                return owners.add(self.cluster, found, self.me)
            logger.info("the TrainJob %s %s; it is made anew", self.name, why)
            try:
                self.cluster.delete(TRAIN_JOBS, self.name, uid=found["metadata"]["uid"], propagation="Foreground")
            except Conflict:
                return None
        self._wait_until_gone(lambda: self._left(found), f"the TrainJob {self.name} of an earlier attempt")
        return None

    def _why_anew(self, found: Object) -> str:
        """Say why a TrainJob is of no use; empty where it is waited for."""
        same = _digest(found) == self.wanted.digest
        if condition(found, "Failed") is not None:
            if same:
                self._raise_again(found)
            return "of an earlier attempt failed"
        if condition(found, "Complete") is not None:
            return "of an earlier attempt is done, and its result is not there any more"
        if same:
            return ""
        if owners.others_alive(self.cluster, found, self.me):
            logger.warning(
                "the TrainJob %s runs with other settings for another run, which waits for it; the work is the same",
                self.name,
            )
            return ""
        return "was made from other settings"

    def _raise_again(self, found: Object) -> None:
        """Raise what a TrainJob of this run failed with, if nothing can have changed since."""
        told = json.loads((found["metadata"].get("annotations") or {}).get(FAILURE, "{}"))
        if told.get("run") != self.run or time.time() - told["time"] > self.pace.again:
            return
        raise InvalidInput(
            f"{told['message']} (the TrainJob {self.name} of this run failed so already, and is not tried again within "
            f"{round(self.pace.again / 60)} minutes: change what it says and submit again; or, if it is mended "
            f"outside of the run, `kubectl -n {self.cluster.namespace} delete trainjob {self.name}` and retry)"
        )

    def _get(self) -> Object | None:
        try:
            return self.cluster.get(TRAIN_JOBS, self.name)
        except NotServed as error:
            raise InvalidInput(
                f"{error}: Kubeflow Trainer v2.3 (github.com/kubeflow/trainer, manifests/overlays/manager); or take a "
                'profile with training = "pod", which trains in the task\'s own pod'
            ) from error

    def _check_runtime(self) -> None:
        """Say at once what Trainer's webhook would say less clearly."""
        try:
            runtime = self.cluster.get(TRAINING_RUNTIMES, self.settings.runtime)
        except (Forbidden, NotServed):
            return  # what is asked next says more
        if runtime is None:
            raise InvalidInput(
                f"there is no TrainingRuntime {self.settings.runtime} in namespace {self.cluster.namespace}: apply "
                "manifests/components/training there, or name another one in [trainjob] runtime of the profile"
            )

    def _create(self) -> Object | None:
        """Make the TrainJob; None where somebody else was quicker. Its pods wait for their files."""
        owned = {"ownerReferences": [self.me.reference()]} if self.me else {}
        metadata = {**self.wanted.train_job["metadata"], **owned}
        try:
            made = self.cluster.create(TRAIN_JOBS, {**self.wanted.train_job, "metadata": metadata})
        except Conflict:
            return None
        trainer = made["spec"]["trainer"]
        logger.info(
            "the TrainJob %s in namespace %s is made: %s machines with %s processes each",
            self.name,
            self.cluster.namespace,
            trainer["numNodes"],
            trainer["numProcPerNode"],
        )
        return made

    def _left(self, item: Object) -> str:
        """Say what is left of a TrainJob that is being deleted."""
        found = self._get()
        if found is None or found["metadata"]["uid"] != item["metadata"]["uid"]:
            return ""
        return f"finalizers: {', '.join(found['metadata'].get('finalizers') or ()) or 'none'}"

    def _pods_left(self) -> str:
        """Say which pods are left of a TrainJob that is gone."""
        pods = self.cluster.list(PODS, labels=f"{PODS_LABEL}={self.name}").items
        if not pods or self._get() is not None:  # those of a new one are its own
            return ""
        return ", ".join(pod["metadata"]["name"] for pod in pods)

    def _wait_until_gone(self, left: Callable[[], str], what: str) -> None:
        """Wait until nothing is left. Raises Transient when it takes too long."""
        limit = stop_seconds() + GRACE_SECONDS + self.pace.gone
        began, said = time.monotonic(), -self.pace.say
        while there := left():
            waited = time.monotonic() - began
            if waited > limit:
                raise Transient(
                    f"{what}: deleted, but not gone after {round(waited)} s ({there}); see who holds it, then run again"
                )
            if waited - said >= self.pace.say:
                said = waited
                logger.info("%s: waiting for the end", what)
            time.sleep(self.pace.poll)

    def _taken_unawares(self) -> Object | None:
        """Return the TrainJob if it is this pod's before `take` knows."""
        found = self.cluster.get(TRAIN_JOBS, self.name) if self.me else None
        mine = found and self.me and self.me.uid in {one["uid"] for one in owners.references(found)}
        return found if mine else None

    def _is_left_to_others(self, seen: Object) -> bool:
        if not owners.others_alive(self.cluster, seen, self.me):
            return False
        left = owners.remove(self.cluster, seen, self.me)
        return left is not None and bool(owners.others_alive(self.cluster, left, self.me))


def _digest(train_job: Object) -> str:
    return str((train_job["metadata"].get("annotations") or {}).get(HASH, ""))
