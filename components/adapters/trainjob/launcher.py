"""The launcher: make a TrainJob or find the one that does this work, wait for it, and clean up behind it.

Whoever comes second finds the TrainJob of the first by its name. A TrainJob that runs is waited for; one that failed,
or that nobody waits for and that was made from other settings, is deleted and made anew: its processes go on from the
last checkpoint in S3.
"""

import logging
import os
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime

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
    connect,
)
from components.adapters.launch import Job, stop_seconds
from components.adapters.stage import Stopped
from components.adapters.trainjob import ends, owners
from components.adapters.trainjob.diagnose import Problem, problems
from components.adapters.trainjob.informer import Broken, Informer, News
from components.adapters.trainjob.informer import Pace as InformerPace
from components.adapters.trainjob.logs import LogFollower, show_tail
from components.adapters.trainjob.owners import Owner
from components.adapters.trainjob.settings import TrainJobSettings
from components.adapters.trainjob.spec import GRACE_SECONDS, HASH, Wanted, build, processes_of
from components.adapters.trainjob.state import Phase, State, condition, container, index
from components.core.errors import InvalidInput, ReasrmError, Transient

logger = logging.getLogger(__name__)

PODS_LABEL = "jobset.sigs.k8s.io/jobset-name"


@dataclass(frozen=True)
class Pace:
    """Seconds between looks, and how long what is patiently borne is borne."""

    look: float = 15.0
    """Between two looks at why nothing moves."""
    say: float = 300.0
    """After which the state is said again, though it is the same."""
    poll: float = 1.0
    """Between two looks at whether something is gone."""
    gone: float = 900.0
    """How long a deleted TrainJob may take to be gone, beside its pods' time for a checkpoint."""
    fatal: float = 600.0
    """How long a problem that time should not mend may last: a registry may be away."""
    settle: float = 15.0
    """How long pods have to say how they ended after their TrainJob has."""
    overdue: float = 600.0
    """How long after its deadline a TrainJob is ended by the launcher: Trainer should have done it."""
    informer: InformerPace = field(default_factory=InformerPace)


@dataclass(frozen=True)
class TrainJobLauncher:
    """Runs a job's processes as a TrainJob."""

    settings: TrainJobSettings
    cluster: Cluster | None = None
    """Empty: that of this pod, or of kubeconfig."""
    pace: Pace = field(default_factory=Pace)

    def launch(self, job: Job) -> None:
        """Return when the TrainJob is complete.

        Raises:
            InvalidInput: something in the cluster or in `training_job` has to be changed, or the processes say so.
            Transient: this process was stopped, the TrainJob ran out of time, was deleted or lost a machine.
            ReasrmError: what else the processes ended with.
        """
        found = self.cluster or connect(namespace=self.settings.namespace)
        cluster = replace(found, namespace=self.settings.namespace or found.namespace)
        wanted = build(job, self.settings, cluster.namespace, os.environ)
        me = owners.this_pod(cluster, os.environ)
        Attempt(self, cluster, wanted, me, job.nodes, processes_of(job, self.settings)).run()


@dataclass
class Attempt:
    """One pod's wait for one TrainJob."""

    launcher: TrainJobLauncher
    cluster: Cluster
    wanted: Wanted
    me: Owner | None
    num_nodes: int
    processes: int

    def __post_init__(self) -> None:
        self.pace = self.launcher.pace
        self.settings = self.launcher.settings
        self.name = self.wanted.name
        self.state = State(self.num_nodes)
        self.news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self.log: LogFollower | None = None
        self.uid = ""
        self._said = ("", 0.0)
        self._problems: dict[Problem, float] = {}
        """Since when each is there."""

    def run(self) -> None:
        """Make or find the TrainJob, and wait for its end."""
        try:
            with _stopping():
                self.state.train_job = self._ensure()
                self.uid = self.state.train_job["metadata"]["uid"]
                with self._followed():
                    self._wait()
                self._clean_up()
        except _Stop as stop:
            raise Transient(f"stopped by SIGTERM; {self._let_go()}") from stop
        except _Overdue as overdue:
            raise Transient(f"{overdue}; {self._let_go()}") from overdue
        except _Hopeless as problem:
            raise InvalidInput(f"{problem} ({self._let_go()})") from problem

    def _ensure(self) -> Object:
        """Return the TrainJob that does this work."""
        self._check_runtime()
        while True:
            found = self._get()
            if found is None:
                made = self._create()
                if made is not None:
                    return made
            elif owners.is_ending(found):
                self._wait_until_gone(found, "the TrainJob %s of an earlier attempt is being ended")
            elif condition(found, "Failed") is not None:
                logger.info("the TrainJob %s of an earlier attempt failed; it is made anew", self.name)
                self._delete(found)
            elif self._may_replace(found):
                logger.info("the TrainJob %s was made from other settings; it is made anew", self.name)
                self._delete(found)
            else:
                attached = owners.add(self.cluster, TRAIN_JOBS, found, self.me)
                if attached is None:
                    continue
                files = self.cluster.get(CONFIG_MAPS, self.name)
                if files is not None:
                    owners.add(self.cluster, CONFIG_MAPS, files, self.me)
                logger.info("the TrainJob %s does this work already; waiting for it", self.name)
                return attached

    def _may_replace(self, found: Object) -> bool:
        same = (found["metadata"].get("annotations") or {}).get(HASH) == self.wanted.digest
        if same or condition(found, "Complete") is not None:
            return False
        if owners.others_alive(self.cluster, found, self.me):
            logger.warning(
                "the TrainJob %s runs with other settings for another run, which waits for it; the work is the same",
                self.name,
            )
            return False
        return True

    def _get(self) -> Object | None:
        try:
            return self.cluster.get(TRAIN_JOBS, self.name)
        except NotServed as error:
            raise InvalidInput(
                f"{error}: Kubeflow Trainer v2.3 (github.com/kubeflow/trainer, manifests/overlays/manager); or leave "
                "training_job empty, which trains in the task's own pod"
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
                "manifests/base there, which has it, or name another one in runtime of training_job"
            )

    def _create(self) -> Object | None:
        """Make the files and the TrainJob; None where somebody else was quicker."""
        owned = {"ownerReferences": [self.me.reference()]} if self.me else {}
        files = {**self.wanted.files, "metadata": {**self.wanted.files["metadata"], **owned}}
        train_job = {**self.wanted.train_job, "metadata": {**self.wanted.train_job["metadata"], **owned}}
        try:
            self.cluster.create(CONFIG_MAPS, files)
        except Conflict:
            present = self.cluster.get(CONFIG_MAPS, self.name)
            if present is not None and present.get("data") != files["data"]:  # of an earlier attempt
                self.cluster.delete(CONFIG_MAPS, self.name)
                return None
            if present is None or owners.add(self.cluster, CONFIG_MAPS, present, self.me) is None:
                return None
        try:
            made = self.cluster.create(TRAIN_JOBS, train_job)
        except Conflict:
            return None
        logger.info(
            "the TrainJob %s in namespace %s is made: %s machines with %s processes each",
            self.name,
            self.cluster.namespace,
            self.num_nodes,
            self.processes,
        )
        return made

    def _delete(self, item: Object) -> None:
        try:
            self.cluster.delete(TRAIN_JOBS, self.name, uid=item["metadata"]["uid"], propagation="Foreground")
        except Conflict:
            return
        self._wait_until_gone(item, "the TrainJob %s is being ended")
        self.cluster.delete(CONFIG_MAPS, self.name)

    def _wait_until_gone(self, item: Object, words: str, seconds: float | None = None) -> None:
        """Wait for the end of an object. Raises Transient when it takes too long."""
        limit = stop_seconds() + GRACE_SECONDS + self.pace.gone if seconds is None else seconds
        began, said = time.monotonic(), -self.pace.say
        while True:
            found = self._get()
            if found is None or found["metadata"]["uid"] != item["metadata"]["uid"]:
                return
            waited = time.monotonic() - began
            if waited > limit:
                finalizers = ", ".join(found["metadata"].get("finalizers") or ()) or "none"
                raise Transient(
                    f"the TrainJob {self.name} is deleted, but not gone after {round(waited)} s: see who holds it "
                    f"(finalizers: {finalizers}), then run again"
                )
            if waited - said >= self.pace.say:
                said = waited
                logger.info(words, self.name)
            time.sleep(self.pace.poll)

    @contextmanager
    def _followed(self) -> Iterator[None]:
        """Follow the TrainJob and its pods."""
        informers = [
            Informer(self.cluster, TRAIN_JOBS, self.news, fields=f"metadata.name={self.name}", pace=self.pace.informer),
            Informer(self.cluster, PODS, self.news, labels=f"{PODS_LABEL}={self.name}", pace=self.pace.informer),
        ]
        for informer in informers:
            informer.start()
        try:
            yield
        finally:
            for informer in informers:
                informer.stop()
            if self.log is not None:
                self.log.stop()

    def _wait(self) -> None:
        """Return when the TrainJob is complete."""
        looked = time.monotonic()
        while True:
            self._take_news(self.pace.look)
            phase = self._phase()
            if phase is Phase.COMPLETE:
                if self.log is not None:
                    self.log.finish(self.pace.settle)
                return
            if phase is Phase.GONE:
                raise Transient(
                    f"the TrainJob {self.name} was deleted while it was waited for, by somebody or by the cluster; run "
                    "again to go on from the last checkpoint"
                )
            if phase is Phase.FAILED:
                self._fail()
            self._follow_log()
            now = time.monotonic()
            if now - looked >= self.pace.look:
                looked = now
                self._look(now)
            self._say(phase, now)

    def _take_news(self, seconds: float) -> None:
        """Wait for news and take in all there are. Raises what ended an informer."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                news = self.news.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return
            if isinstance(news, Broken):
                raise news.error
            self.state.apply(news)
            deadline = 0.0  # the rest that is there

    def _phase(self) -> Phase:
        """Return how far the TrainJob is; another one of its name is not it."""
        found = self.state.train_job
        if found is not None and found["metadata"]["uid"] != self.uid:
            return Phase.GONE
        return self.state.phase()

    def _follow_log(self) -> None:
        """Follow the log of the first machine once it has one."""
        for pod in self.state.live_pods():
            states = container(pod).get("state") or {}
            if index(pod) == 0 and states.keys() & {"running", "terminated"}:
                if self.log is None or self.log.uid != pod["metadata"]["uid"]:
                    if self.log is not None:
                        self.log.stop()
                    self.log = LogFollower(self.cluster, pod, pause=self.pace.poll)
                    self.log.start()
                return

    def _look(self, now: float) -> None:
        """Say why nothing moves. Raises what time does not mend."""
        self._check_deadline()
        found = problems(self.cluster, self.state, self.name, self.settings)
        before, self._problems = self._problems, {}
        for problem in found:
            since = before.get(problem, now)
            self._problems[problem] = since
            if problem not in before:
                logger.warning("the TrainJob %s waits: %s", self.name, problem.text)
            if problem.fatal and now - since >= self.pace.fatal:
                raise _Hopeless(problem.text)

    def _check_deadline(self) -> None:
        train_job = self.state.train_job or {}
        phase = self.state.phase()
        if phase in (Phase.QUEUED, Phase.GONE, Phase.ENDING):
            return
        began = train_job["metadata"]["creationTimestamp"]
        for found in (train_job.get("status") or {}).get("conditions") or ():
            if found["type"] == "Suspended" and found["status"] == "False":
                began = found["lastTransitionTime"]
        limit = train_job["spec"].get("activeDeadlineSeconds")
        if limit and time.time() - datetime.fromisoformat(began).timestamp() > limit + self.pace.overdue:
            raise _Overdue(f"the TrainJob {self.name} has run for more than the {limit} s of timeout_hours")

    def _say(self, phase: Phase, now: float) -> None:
        pods = self.state.live_pods()
        words = f"{phase.value} ({self.state.num_running()} of {self.num_nodes} machines at work, {len(pods)} pods)"
        if words != self._said[0] or now - self._said[1] >= self.pace.say:
            self._said = (words, now)
            logger.info("the TrainJob %s %s", self.name, words)

    def _fail(self) -> None:
        """Raise the error that a failed TrainJob stands for; it stays for whoever wants to look at it."""
        deadline = time.monotonic() + self.pace.settle
        while not (self.state.own_pods() and self.state.all_ended()) and time.monotonic() < deadline:
            self._take_news(min(self.pace.poll, self.pace.settle))
        error = ends.error_of(self.state, self.name, self.processes)
        failing = ends.first_failing(self.state, self.processes)
        if self.log is not None:
            self.log.finish(self.pace.poll)
        if failing is not None and (self.log is None or failing[1]["metadata"]["uid"] != self.log.uid):
            show_tail(self.cluster, failing[1])
        raise error

    def _clean_up(self) -> None:
        """Delete what is done, unless somebody else still waits to see that."""
        try:
            self._leave(keep=self.settings.keep, seconds=None)
        except ReasrmError as error:  # the work is done all the same
            logger.warning("the TrainJob %s is done, but cannot be cleaned up: %s", self.name, error)

    def _let_go(self) -> str:
        """Stop waiting: end the TrainJob, unless somebody else waits for it. Say what was done."""
        try:
            return self._leave(keep=False, seconds=stop_seconds() + GRACE_SECONDS)
        except ReasrmError as error:
            return f"the TrainJob {self.name} could not be ended: {error}"

    def _leave(self, *, keep: bool, seconds: float | None) -> str:
        """Take this pod's name from the TrainJob; delete it where no other pod waits, and wait so long for its end."""
        found = self.cluster.get(TRAIN_JOBS, self.name)
        if found is None or (self.uid and found["metadata"]["uid"] != self.uid):
            return f"the TrainJob {self.name} is gone"
        if keep:
            return f"the TrainJob {self.name} stays"
        if owners.others_alive(self.cluster, found, self.me):
            found = owners.remove(self.cluster, TRAIN_JOBS, found, self.me)
            if found is None or owners.others_alive(self.cluster, found, self.me):
                files = self.cluster.get(CONFIG_MAPS, self.name)
                if files is not None:
                    owners.remove(self.cluster, CONFIG_MAPS, files, self.me)
                return f"the TrainJob {self.name} goes on for another run; run again to wait for it"
        uid = found["metadata"]["uid"]
        try:
            self.cluster.delete(
                TRAIN_JOBS, self.name, uid=uid, propagation="Background" if seconds is None else "Foreground"
            )
        except Conflict:
            return f"the TrainJob {self.name} is gone"
        if seconds is not None:
            self._wait_until_gone(found, "the TrainJob %s is ending; its processes write checkpoints", seconds)
        self.cluster.delete(CONFIG_MAPS, self.name)
        return f"the TrainJob {self.name} was ended; run again to go on from the last checkpoint"


class _Stop(Exception):
    """This process is asked to end."""


class _Overdue(Exception):
    """The TrainJob is past its deadline, and nobody ends it."""


class _Hopeless(Exception):
    """Waiting does not help."""


@contextmanager
def _stopping() -> Iterator[None]:
    """Turn what a signal raises into an exception that is handled here."""
    try:
        yield
    except (Stopped, KeyboardInterrupt) as error:
        raise _Stop from error
