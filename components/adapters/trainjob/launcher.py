"""The launcher: a TrainJob does the work; it is waited for, and its end is what this process ends with."""

import logging
import os
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from components.adapters.kubernetes import PODS, TRAIN_JOBS, Cluster, connect
from components.adapters.launch import Job
from components.adapters.stage import Stopped
from components.adapters.trainjob import ends, owners
from components.adapters.trainjob.claim import Claim
from components.adapters.trainjob.diagnose import problems
from components.adapters.trainjob.informer import Broken, Informer, News
from components.adapters.trainjob.logs import LogFollower, show_tail
from components.adapters.trainjob.pace import Pace
from components.adapters.trainjob.settings import TrainJobSettings
from components.adapters.trainjob.spec import PODS_LABEL, build, processes_of
from components.adapters.trainjob.state import Phase, State, container, index
from components.core.errors import InvalidInput, ReasrmError, Transient

logger = logging.getLogger(__name__)


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
            InvalidInput: something in the cluster or the run has to be changed, or the processes say so.
            Transient: this process was stopped, the TrainJob ran out of time, was deleted or lost a machine.
            ReasrmError: what else the processes ended with.
        """
        cluster = self.cluster or connect()
        wanted = build(job, self.settings, cluster.namespace, os.environ)
        me = owners.this_pod(cluster, os.environ)
        claim = Claim(cluster, self.settings, wanted, me, " ".join(job.run_arguments), self.pace)
        Attempt(claim, job.nodes, processes_of(job, self.settings)).run()


@dataclass
class Attempt:
    """One pod's wait for one TrainJob."""

    claim: Claim
    num_nodes: int
    processes: int

    def __post_init__(self) -> None:
        self.cluster, self.pace, self.name = self.claim.cluster, self.claim.pace, self.claim.name
        self.state = State(self.num_nodes)
        self.news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self.log: LogFollower | None = None
        self._said = ("", 0.0)
        self._problems: dict[str, float] = {}
        """Since when each is there, by its key."""

    def run(self) -> None:
        """Make or find the TrainJob, and wait for its end."""
        failed = None
        try:
            with _stopping():
                self.state.train_job = self.claim.take()
                with self._followed():
                    failed = self._wait()
                if failed is None:  # the work is done, whatever comes of this
                    self.claim.leave(self.state.train_job, "Background")
        except _Stop as stop:
            raise Transient(f"stopped by SIGTERM; {self._let_go()}") from stop
        except _Overdue as overdue:
            raise Transient(f"{overdue}; {self._let_go()}") from overdue
        except InvalidInput as error:
            if self.claim.taken is None:
                raise
            raise InvalidInput(f"{error} ({self._let_go()})") from error
        if failed is not None:
            raise failed

    def _let_go(self) -> str:
        return self.claim.leave(self.state.train_job)

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

    def _wait(self) -> ReasrmError | None:
        """Return when the TrainJob has ended: the error that it failed with, or None where it is complete."""
        looked = time.monotonic()
        while True:
            self._take_news(self.pace.look)
            phase = self._phase()
            if phase is Phase.COMPLETE:
                if self.log is not None:
                    self.log.finish(self.pace.settle)
                logger.info("the TrainJob %s is done", self.name)
                return None
            if phase is Phase.GONE:
                raise Transient(
                    f"the TrainJob {self.name} was deleted while it was waited for, by somebody or by the cluster; run "
                    "again to go on from the last checkpoint"
                )
            if phase is Phase.FAILED:
                return self._failure()
            self._follow_log()
            now = time.monotonic()
            if now - looked >= self.pace.look:
                looked = now
                self._look(phase, now)
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
        found, taken = self.state.train_job, self.claim.taken
        if found is None or taken is None or found["metadata"]["uid"] != taken["metadata"]["uid"]:
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

    def _look(self, phase: Phase, now: float) -> None:
        """See to it that nothing is missing; say why nothing moves. Raises what time does not mend."""
        self._check_deadline()
        if self.state.train_job is not None and phase in (Phase.CREATED, Phase.PENDING, Phase.STARTING):
            try:
                self.claim.keep_files(self.state.train_job)
            except Transient as error:
                logger.debug("cannot look after the files of the TrainJob: %s", error)
        found = problems(self.cluster, self.state, self.name, self.claim.settings, self.pace.recent)
        before, self._problems = self._problems, {}
        for problem in found:
            since = self._problems[problem.key] = before.get(problem.key, now)
            if problem.key not in before:
                logger.warning("the TrainJob %s waits: %s", self.name, problem.text)
            if problem.fatal and now - since >= self.pace.fatal:
                raise InvalidInput(problem.text)

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
            raise _Overdue(f"the TrainJob {self.name} is older than the {limit} s that one attempt has")

    def _say(self, phase: Phase, now: float) -> None:
        pods = self.state.live_pods()
        words = f"{phase.value} ({self.state.num_running()} of {self.num_nodes} machines at work, {len(pods)} pods)"
        if words != self._said[0] or now - self._said[1] >= self.pace.say:
            self._said = (words, now)
            logger.info("the TrainJob %s %s", self.name, words)

    def _failure(self) -> ReasrmError:
        """Return the error that a failed TrainJob stands for; it stays for whoever wants to look at it."""
        deadline = time.monotonic() + self.pace.settle
        while not (self.state.own_pods() and self.state.all_ended()) and time.monotonic() < deadline:
            self._take_news(min(self.pace.poll, self.pace.settle))
        error = ends.error_of(self.state, self.name, self.processes)
        if isinstance(error, InvalidInput):
            self.claim.remember(error)
        failing = ends.first_failing(self.state, self.processes)
        if self.log is not None:
            self.log.finish(self.pace.poll)
        if failing is not None and (self.log is None or failing[1]["metadata"]["uid"] != self.log.uid):
            show_tail(self.cluster, failing[1])
        return error


class _Stop(Exception):
    """This process is asked to end."""


class _Overdue(Exception):
    """The TrainJob is past its deadline, and nobody ends it."""


@contextmanager
def _stopping() -> Iterator[None]:
    """Turn what a signal raises into an exception that is handled here."""
    try:
        yield
    except (Stopped, KeyboardInterrupt) as error:
        raise _Stop from error
