"""Recurring runs of a KFP server: read into what a plan compares, and the single steps of an apply."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from components.core.errors import InvalidInput
from pipeline.client.endpoint import Kfp, NotFound
from pipeline.client.schedules.desired import Desired, read_description, start_to_send
from pipeline.client.schedules.plan import Actual
from pipeline.client.submit import holds

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
LATEST_SINCE = (2, 17)
PLUGINS_SINCE = (2, 17)


class Server:
    """The schedules of one namespace. All methods raise as `Kfp.call`."""

    def __init__(self, kfp: Kfp) -> None:
        self.kfp = kfp
        self._version: tuple[int, ...] | None = None

    def read(self) -> tuple[Actual, ...]:
        """Return all recurring runs of the namespace, also those of others."""
        kfp = self.kfp
        scope: dict[str, Any] = {"namespace": kfp.namespace} if kfp.namespace else {}
        rows = kfp.rows(kfp.recurring_runs.recurring_run_service_list_recurring_runs, "recurring_runs", **scope)
        ours = [row for row in rows if "reasrm:" in (row.description or "")]
        experiments = self._names(kfp.experiments.experiment_service_list_experiments, "experiments", ours, scope)
        pipelines = self._names(kfp.pipelines.pipeline_service_list_pipelines, "pipelines", ours, scope)
        running = self._running({row.recurring_run_id for row in ours}, scope)
        return tuple(_actual(row, experiments, pipelines, running.get(row.recurring_run_id, ())) for row in rows)

    def outdated(self, wanted: Sequence[Desired]) -> dict[str, str]:
        """Return the schedules that follow the newest version and do not find their own there: name -> that version."""
        found = {}
        for one in wanted:
            pipeline = self.kfp.find_pipeline(one.fields["pipeline"]) if one.latest else None
            newest = self.kfp.newest_version(pipeline.pipeline_id) if pipeline else None
            if newest is not None and not holds(newest, one.package, one.fields["pipeline"]):
                found[one.name] = str(newest.display_name or newest.name)
        return found

    def upload(self, wanted: Desired) -> bool:
        """Make what a schedule compiles to the newest version of its pipeline; say whether it was not."""
        from pipeline.client.submit import ensure_newest

        return ensure_newest(self.kfp, wanted.package, pipeline_name=wanted.fields["pipeline"])[1]

    def create(self, wanted: Desired, now: datetime) -> str:
        """Create the recurring run, disabled, and upload its pipeline if need be; return its id."""
        import kfp_server_api as models

        kfp, schedule = self.kfp, wanted.schedule
        self.check(wanted)
        pipeline_id, version_id = self._pipeline(wanted)
        times = {"start_time": start_to_send(schedule, now), "end_time": schedule.end}
        cron = schedule.when()
        trigger = (
            models.V2beta1Trigger(cron_schedule=models.V2beta1CronSchedule(cron=cron.expression, **times))
            if cron
            else models.V2beta1Trigger(
                periodic_schedule=models.V2beta1PeriodicSchedule(
                    interval_second=str(schedule.interval_seconds()), **times
                )
            )
        )
        body = models.V2beta1RecurringRun(
            display_name=wanted.name,
            description=wanted.description,
            mode=models.RecurringRunMode.DISABLE,
            experiment_id=kfp.ensure_experiment(wanted.fields["experiment"]).experiment_id,
            pipeline_version_reference=models.V2beta1PipelineVersionReference(
                pipeline_id=pipeline_id, pipeline_version_id=version_id
            ),
            runtime_config=models.V2beta1RuntimeConfig(parameters=dict(wanted.parameters)),
            service_account=wanted.fields["service_account"] or None,
            max_concurrency=str(schedule.max_concurrency),
            no_catchup=schedule.no_catchup,
            trigger=trigger,
            plugins_input=self._plugins(wanted),
        )
        made = kfp.call(kfp.recurring_runs.recurring_run_service_create_recurring_run, body)
        return str(made.recurring_run_id)

    def check(self, wanted: Desired) -> None:
        """Raise InvalidInput if the server is known to be too old for what a schedule asks for."""
        if wanted.latest and not self._is(LATEST_SINCE):
            raise InvalidInput(
                f'schedule {wanted.name}: this KFP server is {".".join(map(str, self._told()))}; version = "latest" '
                'needs 2.17 or later: write version = "pinned" and apply again after each change'
            )

    def switch(self, recurring_run_id: str, *, on: bool) -> None:
        """Enable or disable a recurring run."""
        api = self.kfp.recurring_runs
        method = (
            api.recurring_run_service_enable_recurring_run if on else api.recurring_run_service_disable_recurring_run
        )
        self.kfp.call(method, recurring_run_id)

    def delete(self, recurring_run_id: str) -> None:
        """Delete a recurring run; its past runs, their pods and logs stay (with KFP 2.17 and later)."""
        method = self.kfp.recurring_runs.recurring_run_service_delete_recurring_run
        try:
            self.kfp.call(method, recurring_run_id, propagation_policy="ORPHAN")
        except NotFound:
            return

    def _pipeline(self, wanted: Desired) -> tuple[str, str | None]:
        """Return the ids of the pipeline and of the version: None for the latest."""
        from pipeline.client.submit import ensure_newest, ensure_version

        name = wanted.fields["pipeline"]
        if wanted.latest:
            return ensure_newest(self.kfp, wanted.package, pipeline_name=name)[0].pipeline_id, None
        version = ensure_version(self.kfp, wanted.package, pipeline_name=name)
        return version.pipeline_id, version.pipeline_version_id

    def _plugins(self, wanted: Desired) -> dict[str, Any] | None:
        experiment = wanted.fields["mlflow_experiment"]
        if not experiment or not self._is(PLUGINS_SINCE):
            return None
        return {"mlflow": {"experiment_name": experiment}}

    def _told(self) -> tuple[int, ...]:
        """Return the server's version, empty if it does not say."""
        if self._version is None:
            numbers = self.kfp.health().version.removeprefix("v").split(".")[:2]
            self._version = tuple(int(number) for number in numbers if number.isdecimal())
        return self._version

    def _is(self, version: tuple[int, ...]) -> bool:
        told = self._told()
        return not told or told >= version

    def _names(self, method: Any, field: str, rows: Sequence[Any], scope: Mapping[str, Any]) -> dict[str, str]:
        """Return id -> name of the experiments or the pipelines."""
        if not rows:
            return {}
        found = self.kfp.rows(method, field, **scope)
        return {getattr(row, f"{field[:-1]}_id"): row.display_name for row in found}

    def _running(self, ids: set[str], scope: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        """Return the runs of these recurring runs that have not ended."""
        found: dict[str, tuple[str, ...]] = {}
        if not ids:
            return found
        unlike = [{"operation": "NOT_EQUALS", "key": "state", "string_value": state} for state in ENDED]
        query: dict[str, Any] = {"filter": json.dumps({"predicates": unlike}), **scope}
        for run in self.kfp.rows(self.kfp.runs.run_service_list_runs, "runs", **query):
            if run.recurring_run_id in ids:
                found[run.recurring_run_id] = (*found.get(run.recurring_run_id, ()), run.run_id)
        return found


def _actual(row: Any, experiments: Mapping[str, str], pipelines: Mapping[str, str], running: tuple[str, ...]) -> Actual:
    said, kept = read_description(row.description or "")
    trigger, reference = row.trigger, row.pipeline_version_reference
    cron = trigger.cron_schedule if trigger else None
    periodic = trigger.periodic_schedule if trigger else None
    timed = cron or periodic
    fields: dict[str, Any] = {
        "cron": (cron.cron or "") if cron else "",
        "interval": int(periodic.interval_second or 0) if periodic else 0,
        "end": _time(timed.end_time) if timed else "",
        "no_catchup": bool(row.no_catchup),
        "max_concurrency": int(row.max_concurrency or 0),
        "description": said,
        **kept,
    }
    if reference:
        fields["version"] = "pinned" if reference.pipeline_version_id else "latest"
        fields["pipeline"] = pipelines.get(reference.pipeline_id)
    fields |= {"experiment": experiments.get(row.experiment_id), "service_account": row.service_account}
    if row.plugins_input:
        fields["mlflow_experiment"] = (row.plugins_input.get("mlflow") or {}).get("experiment_name")
    return Actual(
        id=row.recurring_run_id,
        name=row.display_name or "",
        description=row.description or "",
        # An error of its last run hides whether it is enabled: it counts as enabled, so that it is disabled first.
        enabled=row.status != "DISABLED",
        created_at=row.created_at or datetime.fromtimestamp(0, UTC),
        fields={name: value for name, value in fields.items() if value is not None},
        parameters=(row.runtime_config.parameters if row.runtime_config else None) or {},
        running=running,
    )


def _time(moment: datetime | None) -> str:
    """Return a time as in Desired.fields; 1970 is the server's way to say none."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment and moment.timestamp() > 0 else ""
