"""Carry out a plan. KFP cannot change a recurring run, so a changed one is made anew and the old one retired.

The order: create the new one disabled; disable the old; enable the new; delete the old. So two are never enabled at the
same time, and if the new one cannot be made the old one goes on. After each step the server is asked again what there
is: what a broken off or a simultaneous apply left behind is finished or removed by whoever comes next.
"""

import random
import time
from collections.abc import Callable, Sequence
from datetime import datetime

from components.core.errors import InvalidInput, ReasrmError, Transient
from pipeline.client import endpoint
from pipeline.client.endpoint import NotFound
from pipeline.client.schedules.desired import Desired
from pipeline.client.schedules.live import Server
from pipeline.client.schedules.plan import Actual, Change, Plan, newest, plan_one

ALONE = 3
"""Looks at the server that one schedule needs: before it is created, before it is enabled, and at the result."""
ROUNDS = 8
"""The most looks; those beyond ALONE are for what goes wrong, and for others who apply at the same time."""

Say = Callable[[str], None]


def apply_plan(server: Server, plan: Plan, now: datetime, say: Say) -> None:
    """Do all that a plan says; a schedule that fails does not keep the others from being done.

    Raises:
        InvalidInput: the server refuses something.
        Transient: the server does not answer, or somebody else changes the same schedule; run it again.
    """
    errors = []
    for change in plan.changes:
        try:
            if change.action == "delete":
                _Retirement(server, change.name, say).retire(change.remove)
            elif change.desired is not None and change.changes:
                _Convergence(server, change, change.desired, now, say).run()
        except ReasrmError as error:
            errors.append((change.name, error))
    if errors:
        kind = InvalidInput if any(isinstance(error, InvalidInput) for _, error in errors) else Transient
        raise kind("; ".join(f"schedule {name}: {error}" for name, error in errors)) from errors[0][1]


def switch(server: Server, owned: Sequence[Actual], *, on: bool) -> None:
    """Pause or resume one schedule, given the recurring runs that are its own."""
    keep = newest(owned)
    for one in owned:
        if one.enabled and (one.id != keep.id or not on):
            server.switch(one.id, on=False)
    if on and not keep.enabled:
        server.switch(keep.id, on=True)


def retire(server: Server, name: str, owned: Sequence[Actual], say: Say) -> None:
    """Delete one schedule, given the recurring runs that are its own."""
    _Retirement(server, name, say).retire(owned)


def _rest(number: int) -> None:
    """Wait before a further look; a time by chance, so that two who disturb each other get out of step."""
    pause = min(endpoint.FIRST_PAUSE * 2.0 ** (number - ALONE), endpoint.LONGEST_PAUSE) if number >= ALONE else 0.0
    if pause:
        time.sleep(random.uniform(pause / 2, pause))  # noqa: S311


class _Retirement:
    def __init__(self, server: Server, name: str, say: Say) -> None:
        self.server, self.name, self.say = server, name, say

    def retire(self, old: Sequence[Actual]) -> None:
        """Disable recurring runs, and delete those whose runs have all ended."""
        self.disable(old)
        self.delete(old)

    def disable(self, old: Sequence[Actual]) -> list[Actual]:
        done = []
        for one in old:
            if one.enabled:
                try:
                    self.server.switch(one.id, on=False)
                except NotFound:
                    continue
                done.append(one)
        return done

    def delete(self, old: Sequence[Actual]) -> None:
        for one in old:
            if one.running:
                # Kubernetes deletes the workflows that a recurring run started together with it.
                self.say(
                    f"{self.name}: {one.id} is disabled and stays until its run {one.running[0]} has ended; "
                    "the next apply deletes it"
                )
            else:
                self.server.delete(one.id)
                self.say(f"{self.name}: deleted {one.id}")


class _Convergence:
    """Brings one schedule to what it should be, looking before each step."""

    def __init__(self, server: Server, change: Change, wanted: Desired, now: datetime, say: Say) -> None:
        self.server, self.wanted, self.now, self.say = server, wanted, now, say
        self.planned = {one.id for one in (*change.remove, *((change.keep,) if change.keep else ()))}
        self.made: set[str] = set()
        self.pipeline = wanted.fields["pipeline"]

    def run(self) -> None:
        """Repeat look and step until nothing is left to do."""
        if self.wanted.latest and self.server.upload(self.wanted):
            self.say(f"{self.wanted.name}: uploaded what it runs, as the newest version of {self.pipeline}")
        lost: Transient | None = None
        for number in range(ROUNDS):
            _rest(number if lost is None else number + ALONE)
            owner = (self.wanted.group, self.wanted.name)
            owned = [one for one in self.server.read() if one.owner == owner]
            self._refuse_strangers(owned)
            change = plan_one(self.wanted, owned)
            if not change.changes:
                return
            if change.keep is None:
                try:
                    self.made.add(self.server.create(self.wanted, self.now))
                    self.say(f"{self.wanted.name}: created, disabled for now")
                except Transient as error:  # it may have been made all the same: the next look finds it by its hash
                    lost = error
            else:
                self._change_over(change.keep, change)
        raise lost or Transient("it changes again and again; is somebody else at it? Run this again")

    def _refuse_strangers(self, owned: Sequence[Actual]) -> None:
        """Stop if there is one with other settings that the plan did not show: somebody else applies another file."""
        known = self.planned | self.made
        strangers = [one for one in owned if one.id not in known and one.hash != self.wanted.hash]
        if strangers:
            for one in owned:
                if one.id in self.made and not one.enabled:
                    self.server.delete(one.id)
            raise Transient(
                f"somebody else has just made {strangers[0].id} with other settings; look at the plan again"
            )

    def _change_over(self, keep: Actual, change: Change) -> None:
        old = _Retirement(self.server, self.wanted.name, self.say)
        disabled = old.disable(change.remove)
        if keep.enabled != self.wanted.enabled:
            try:
                self.server.switch(keep.id, on=self.wanted.enabled)
            except NotFound:
                return
            except ReasrmError:
                self._go_back(keep, disabled)
                raise
            self.say(f"{self.wanted.name}: {'enabled' if self.wanted.enabled else 'paused'}")
        old.delete(change.remove)

    def _go_back(self, keep: Actual, disabled: Sequence[Actual]) -> None:
        """Enable the old one again after the new one could not be; only when the new one is off for certain."""
        if not self.wanted.enabled or not disabled:
            return
        try:
            self.server.switch(keep.id, on=False)
            self.server.switch(newest(disabled).id, on=True)
            self.say(f"{self.wanted.name}: the old one is enabled again")
        except ReasrmError as error:
            raise type(error)(f"it is paused now, and starts no runs until an apply succeeds: {error}") from error
