"""Schedules as code: the file, the plan, and the apply against a server over HTTP."""

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from kfp_server_api import models

from components.core.errors import InvalidInput, ReasrmError, Transient
from pipeline.client import endpoint
from pipeline.client.endpoint import open_client
from pipeline.client.schedules.apply import ROUNDS, apply_plan
from pipeline.client.schedules.cron import parse_cron
from pipeline.client.schedules.desired import describe, desired, next_run, start_to_send
from pipeline.client.schedules.live import Server
from pipeline.client.schedules.model import Schedule, load_schedules
from pipeline.client.schedules.plan import Actual, make_plan
from pipeline.client.submit import ensure_version
from pipeline.commands.schedule import schedule as command

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)  # a Wednesday
EXAMPLE = Path(__file__).parents[3] / "pipeline" / "schedules.example.toml"
ENABLE, DISABLE, DELETE, CREATE = (
    r"POST .*recurringruns/[^/]+:enable",
    r"POST .*recurringruns/[^/]+:disable",
    r"DELETE .*recurringruns",
    r"POST .*recurringruns$",
)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0)
    for name in (endpoint.HOST, endpoint.NAMESPACE, endpoint.TOKEN, endpoint.TOKEN_FILE, endpoint.UI_HOST):
        monkeypatch.delenv(name, raising=False)


def package(**parameters):
    inputs = {name: {"parameterType": "STRING"} for name in ("seed", "sft_config", "data_until")}
    spec = {"pipelineInfo": {"name": "reasrm"}, "root": {"inputDefinitions": {"parameters": inputs}}}
    return yaml.safe_dump(spec | {"components": parameters}).encode()


def make(name="weekly", *, content="1", seed="0", epochs=1, group="", mlflow="", **settings):
    if not {"cron", "interval"} & settings.keys():
        settings["cron"] = "0 0 3 * * mon"
    if settings.get("version") == "latest":
        settings.setdefault("pipeline", "mine")
    return describe(
        Schedule.model_validate({"name": name, "recipe": "demo", **settings}),
        group,
        package=package(code=content),
        parameters={"seed": seed, "sft_config": json.dumps({"epochs": epochs}), "data_until": "schedule"},
        experiment="reasrm",
        service_account="reasrm",
        mlflow_experiment=mlflow,
    )


def actual(wanted, key="old", *, enabled=True, running=(), age=0, **changes):
    """A recurring run as an earlier apply made it."""
    values = {
        "id": key,
        "name": wanted.name,
        "description": wanted.description,
        "enabled": enabled,
        "created_at": NOW - timedelta(hours=age),
        "fields": dict(wanted.fields),
        "parameters": dict(wanted.parameters),
        "running": running,
    }
    return Actual(**values | changes)


# ---- cron


@pytest.mark.parametrize(
    ("text", "sent", "first"),
    [
        ("0 0 3 * * mon", "0 0 3 * * mon", "2026-11-30T03:00:00"),
        ("0 3 * * 1", "0 0 3 * * 1", "2026-11-30T03:00:00"),
        ("30 15 6,18 ? * 2-6", "30 15 6,18 ? * 2-6", "2026-11-25T18:15:30"),
        ("@weekly", "0 0 0 * * 0", "2026-11-29T00:00:00"),
        ("0 10/25 * * * *", "0 10/25 * * * *", "2026-11-25T12:10:00"),
        ("0 0 0 29 2 ?", "0 0 0 29 2 ?", "2028-02-29T00:00:00"),
        ("0 0 0 1 * fri", "0 0 0 1 * fri", "2026-11-27T00:00:00"),  # either of the two days
        ("0 0 0 13 * ?", "0 0 0 13 * ?", "2026-12-13T00:00:00"),
        ("0 0 12 25 NOV *", "0 0 12 25 NOV *", "2027-11-25T12:00:00"),  # after now, not at it
    ],
)
def test_cron_is_read_as_the_server_reads_it(text, sent, first):
    cron = parse_cron(text)
    assert cron.expression == sent
    assert cron.next(NOW) == datetime.fromisoformat(f"{first}+00:00")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 0 3 * * 7", "Sunday is 0"),
        ("0 0 24 * * *", "hour '24': 24 is not in 0 to 23"),
        ("0 0 3 * * fri-mon", "backwards"),
        ("0 0 3 L * *", "day of the month 'L'"),
        ("0 0 3 * *  mon#1", "'mon#1' is not a number or sun"),
        ("0 */0 3 * * *", "step '0'"),
        ("* * * * * *", "several times a minute"),
        ("0 0 0 31 2 ?", "no month has"),
        ("0 0 3 * * 1 2026", "has 7 fields"),
        ("3 * *", "has 3 fields"),
        ("@every 24h", "@weekly"),
        ("TZ=Asia/Tokyo 0 0 3 * * *", "write six fields"),
        ("0 0 3 1,,2 * *", "''"),
        ("0 0 ٣ * * *", "not a number"),
    ],
)
def test_cron_that_the_server_would_not_take_is_refused(text, said):
    with pytest.raises(ValueError, match=r".*") as error:
        parse_cron(text)
    assert said in str(error.value)


# ---- the file


def write(tmp_path, text):
    path = tmp_path / "schedules.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_says_all_that_is_wrong_in_it_by_the_schedules_names(tmp_path):
    path = write(
        tmp_path,
        '[[schedule]]\nname="weekly"\nrecipe="demo"\ncron="0 0 3 * * 9"\nprofil="cpu"\n'
        '[[schedule]]\nname="Bad Name"\nrecipe="demo"\ninterval="7d"\nmax_concurrency=11\n'
        '[[schedule]]\nname="both"\nrecipe="demo"\ninterval="7d"\ncron="@daily"\n'
        '[[schedule]]\nname="when"\nrecipe="demo"\ninterval="7d"\nstart=2026-01-01T00:00:00\ndata_until="today"\n'
        '[[schedule]]\nname="end"\nrecipe="demo"\ninterval="30s"\nstart=2026-01-02T00:00:00Z\nend=2026-01-01T00:00:00Z\n',
    )
    with pytest.raises(InvalidInput) as error:
        load_schedules(path)
    for said in (
        "schedule weekly.profil: there is no such setting; did you mean profile?",
        "schedule Bad Name.name: String should match",
        "schedule Bad Name.max_concurrency",
        "schedule both: give either cron",
        "schedule when.start: 2026-01-01T00:00:00 has no time zone",
        "schedule when.data_until: 'today' is neither",
        "schedule end: interval '30s'",
    ):
        assert said in str(error.value)


def test_names_are_given_once(tmp_path):
    one = '[[schedule]]\nname="weekly"\nrecipe="demo"\ncron="@weekly"\n'
    with pytest.raises(InvalidInput, match="weekly is given twice"):
        load_schedules(write(tmp_path, one + one))


def test_a_file_that_is_not_there_or_not_toml(tmp_path):
    with pytest.raises(InvalidInput, match="cannot read"):
        load_schedules(tmp_path / "none.toml")
    with pytest.raises(InvalidInput, match="not valid TOML"):
        load_schedules(write(tmp_path, "[["))


def test_latest_needs_a_pipeline_that_nobody_else_uploads_to(tmp_path):
    one = '[[schedule]]\nname="{}"\nrecipe="demo"\ncron="@weekly"\nversion="{}"\n'
    for pipeline in ("", 'pipeline="reasrm"\n'):
        with pytest.raises(InvalidInput, match=r'everybody uploads.*pipeline = "reasrm-weekly"'):
            load_schedules(write(tmp_path, one.format("weekly", "latest") + pipeline))
    shared = 'pipeline="mine"\n'
    with pytest.raises(InvalidInput, match=r"schedule weekly: .*another schedule uploads there too"):
        load_schedules(
            write(tmp_path, one.format("weekly", "latest") + shared + one.format("daily", "pinned") + shared)
        )


def test_five_fields_are_remarked_on():
    assert make(cron="0 3 * * 1").schedule.remarks() == (
        "weekly: cron '0 3 * * 1' is read as minute first and sent as '0 0 3 * * 1'",
    )
    assert make(cron="0 0 3 * * 1").schedule.remarks() == ()


def test_the_example_compiles_and_is_true():
    found = desired(load_schedules(EXAMPLE), EXAMPLE.parent)
    first, weekly, monthly = found
    assert (first.enabled, first.schedule.recipe, first.schedule.profile) == (False, "smoke-cluster", "cpu")
    for dated in (weekly, monthly):
        assert dated.parameters["data_until"] == "schedule"
        sources = json.loads(dated.parameters["preference_data"])
        assert [source["uri"] for source in sources] == ["s3://reasrm/preferences/"]
    assert weekly.fields["no_catchup"] is True
    assert weekly.fields["max_concurrency"] == 1
    assert weekly.fields["content"] and not monthly.fields["content"]
    assert next_run(weekly.schedule, NOW) == datetime(2026, 11, 30, 3, tzinfo=UTC)
    assert len(weekly.description.splitlines()) == 3


def test_what_only_this_machine_has_is_no_schedule(tmp_path):
    path = write(tmp_path, '[[schedule]]\nname="weekly"\nrecipe="smoke"\nprofile="cpu"\ncron="@weekly"\n')
    with pytest.raises(InvalidInput, match=r"schedule weekly: base_model = .*, preference_data = .* pods"):
        desired(load_schedules(path), tmp_path)


# ---- times


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"cron": "@weekly"}, None),
        ({"cron": "@weekly", "start": NOW + timedelta(days=1)}, NOW + timedelta(days=1)),
        ({"cron": "@weekly", "start": NOW - timedelta(days=9)}, None),
        ({"interval": "7d", "start": NOW - timedelta(days=9)}, NOW - timedelta(days=2)),
        ({"interval": "7d", "start": NOW + timedelta(days=9)}, NOW + timedelta(days=9)),
    ],
)
def test_a_start_that_has_passed_does_not_make_a_replacement_run_at_once(settings, sent):
    assert start_to_send(make(**settings).schedule, NOW) == sent


def test_next_run_keeps_to_start_and_end():
    start = datetime(2026, 12, 7, 3, tzinfo=UTC)
    assert next_run(make(start=start).schedule, NOW) == start
    assert next_run(make(end=NOW + timedelta(days=1)).schedule, NOW) is None
    assert next_run(make(interval="7d", start=NOW - timedelta(days=9)).schedule, NOW) == NOW + timedelta(days=5)
    assert next_run(make(interval="7d").schedule, NOW) is None


# ---- the plan


def actions(plan):
    return [(change.action, change.name) for change in plan.changes]


def test_plan_creates_leaves_and_prunes():
    gone, mine = make("gone"), make()
    found = [actual(gone)]
    assert actions(make_plan([mine], found)) == [("create", "weekly"), ("left", "gone")]
    assert actions(make_plan([mine], found, prune=True)) == [("create", "weekly"), ("delete", "gone")]
    assert make_plan([gone], found).empty
    assert make_plan([], found).empty
    assert not make_plan([], found, prune=True).empty


def test_plan_names_each_setting_that_changes():
    old, new = make(seed="0", epochs=1), make(seed="1", epochs=3, cron="0 0 4 * * mon", content="2")
    (change,) = make_plan([new], [actual(old)]).changes
    assert change.action == "replace"
    assert [(one.name, one.old, one.new) for one in change.fields] == [
        ("cron", "0 0 3 * * mon", "0 0 4 * * mon"),
        ("content", old.fields["content"], new.fields["content"]),
        ("parameters.seed", "0", "1"),
        ("parameters.sft_config.epochs", 1, 3),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"content": "2"},
        {"seed": "1"},
        {"mlflow": "other"},
        {"start": NOW},
        {"end": NOW},
        {"max_concurrency": 2},
        {"no_catchup": False},
        {"pipeline": "another"},
        {"description": "Other words."},
        {"version": "latest"},
        {"interval": "7d"},
    ],
)
def test_whatever_changes_is_a_replacement(change):
    assert actions(make_plan([make(**change)], [actual(make())])) == [("replace", "weekly")]


def test_content_does_not_matter_to_a_schedule_that_follows_the_latest_version():
    old, new = (make(version="latest", content=content) for content in "12")
    assert make_plan([new], [actual(old)]).empty


def test_pausing_changes_the_mode_only():
    assert actions(make_plan([make(paused=True)], [actual(make())])) == [("pause", "weekly")]
    assert actions(make_plan([make()], [actual(make(), enabled=False)])) == [("resume", "weekly")]


def test_numbers_that_the_server_gives_back_as_floats_are_the_same():
    (change,) = make_plan([make(seed="1")], [actual(make(), parameters={"seed": 1.0, "sft_config": "{}"})]).changes
    assert "parameters.seed" in {one.name for one in change.fields}
    wanted = make()
    changed = actual(make(cron="@daily"), parameters=dict(wanted.parameters), fields={"max_concurrency": 1.0})
    assert make_plan([wanted], [changed]).changes[0].fields == ()


@pytest.mark.parametrize(
    "foreign",
    [
        {"description": ""},
        {"description": "made by hand"},
        {"name": "Clone of weekly"},  # the UI's clone copies the description
        {"description": "reasrm:weekly:xyz"},
        {"description": make(group="others").description},
    ],
)
def test_what_is_not_ours_is_not_seen(foreign):
    assert actions(make_plan([make()], [actual(make(), **foreign)], prune=True)) == [("create", "weekly")]
    assert make_plan([], [actual(make(), **foreign)], prune=True).changes == ()


def test_what_a_broken_off_apply_left_is_tidied_up():
    old, new = make(), make(seed="1")
    found = [actual(old, "a", age=3), actual(new, "b", enabled=False, age=2)]
    (change,) = make_plan([new], found).changes
    assert (change.action, change.keep.id, [one.id for one in change.remove]) == ("resume", "b", ["a"])
    (twice,) = make_plan([new], [actual(new, "c"), actual(new, "d", enabled=False)]).changes
    assert (twice.action, twice.keep.id) == ("tidy", "c")
    waits = [actual(new, "c"), actual(old, "a", enabled=False, running=("run-1",))]
    assert make_plan([new], waits).empty


# ---- the apply


@pytest.fixture
def server(kfp_server):
    return Server(open_client(kfp_server.url, namespace="team"))


def apply(server, *wanted, prune=False, group="", said=None):
    plan = make_plan(wanted, server.read(), group=group, prune=prune)
    apply_plan(server, plan, NOW, (said if said is not None else []).append)
    return plan


def rows(kfp_server, *, enabled=None):
    found = [row for row in kfp_server.recurring_runs.values() if "reasrm:" in row.description]
    return [row for row in found if enabled is None or (row.status == "ENABLED") == enabled]


def writes(kfp_server):
    return [
        f"{request.method} {request.path.rpartition('/')[2].rpartition(':')[2]}"
        for request in kfp_server.requests
        if request.method != "GET"
    ]


def parameters(row):
    return row.runtime_config.parameters


def test_create_sends_what_the_file_says(kfp_server, server):
    start = NOW + timedelta(days=3)
    apply(server, make(start=start, max_concurrency=2, no_catchup=True, mlflow="judges", description="Weekly."))
    (row,) = rows(kfp_server)
    (asked,) = kfp_server.asked(CREATE)
    (version,) = kfp_server.versions.values()
    assert row.status == "ENABLED"
    assert asked.body["mode"] == "DISABLE"  # until it is known to be the only one
    assert asked.body["display_name"] == "weekly"
    assert asked.body["description"].startswith("Weekly.\n")
    assert asked.body["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * mon", "start_time": start.isoformat()}}
    assert asked.body["max_concurrency"] == "2"
    assert asked.body["no_catchup"] is True
    assert asked.body["service_account"] == "reasrm"
    assert asked.body["plugins_input"] == {"mlflow": {"experiment_name": "judges"}}
    assert asked.body["runtime_config"]["parameters"]["data_until"] == "schedule"
    assert asked.body["pipeline_version_reference"] == {
        "pipeline_id": version.pipeline_id,
        "pipeline_version_id": version.pipeline_version_id,
    }
    assert kfp_server.experiments[row.experiment_id].display_name == "reasrm"
    assert kfp_server.packages[version.pipeline_version_id] == package(code="1")


def test_an_interval_is_sent_as_one(kfp_server, server):
    apply(server, make(interval="7d"))
    (asked,) = kfp_server.asked(CREATE)
    assert asked.body["trigger"] == {"periodic_schedule": {"interval_second": "604800"}}
    assert make_plan([make(interval="7d")], server.read()).empty


def test_the_second_apply_does_nothing(kfp_server, server):
    wanted = [make(), make("daily", cron="@daily", paused=True), make("new", version="latest")]
    apply(server, *wanted)
    before = len(writes(kfp_server))
    plan = apply(server, *wanted)
    assert plan.empty
    assert actions(plan) == [("unchanged", name) for name in ("weekly", "daily", "new")]
    assert len(writes(kfp_server)) == before
    assert {row.display_name: row.status for row in rows(kfp_server)} == {
        "weekly": "ENABLED",
        "daily": "DISABLED",
        "new": "ENABLED",
    }


def test_single_user_mode_has_no_namespaces(kfp_server):
    kfp_server.multi_user = False
    server = Server(open_client(kfp_server.url))
    apply(server, make())
    assert make_plan([make()], server.read()).empty


def test_many_schedules_are_more_than_a_page(kfp_server, server):
    kfp_server.page_size = 2
    wanted = [make(f"n{number}") for number in range(5)]
    apply(server, *wanted)
    assert make_plan(wanted, server.read()).empty


def newest(kfp_server):
    """The content that the next run of a schedule with `latest` takes."""
    version = max(kfp_server.versions.values(), key=lambda version: version.created_at)
    return kfp_server.packages[version.pipeline_version_id]


def test_latest_names_no_version_and_pinned_does(kfp_server, server):
    apply(server, make("pinned"), make("latest", version="latest"))
    found = {row.display_name: row.pipeline_version_reference for row in rows(kfp_server)}
    names = {key: version.display_name for key, version in kfp_server.versions.items()}
    assert found["latest"].pipeline_version_id is None
    assert found["latest"].pipeline_id != found["pinned"].pipeline_id
    assert names[found["pinned"].pipeline_version_id].endswith(make().fields["content"])


def test_applying_makes_what_the_file_compiles_to_the_newest_version(kfp_server, server):
    for content in ("1", "2", "1"):  # the third is uploaded again, because a newer one lies over it
        wanted = make(version="latest", content=content)
        plan = make_plan([wanted], server.read(), outdated=server.outdated([wanted]))
        apply_plan(server, plan, NOW, [].append)
        assert newest(kfp_server) == package(code=content)
    assert len(kfp_server.versions) == 3
    assert len(kfp_server.asked(CREATE)) == 1  # the recurring run itself never changes


def test_plan_tells_that_somebody_else_has_uploaded_a_newer_version(kfp_server, server, kfp):
    wanted = make(version="latest")
    apply(server, wanted)
    assert server.outdated([wanted]) == {}
    theirs = ensure_version(kfp, package(code="theirs"), pipeline_name="mine")
    plan = make_plan([wanted], server.read(), outdated=server.outdated([wanted]))
    (change,) = plan.changes
    assert (change.action, change.outdated, plan.empty) == ("upload", theirs.display_name, False)
    paused = make(version="latest", paused=True)
    (change,) = make_plan([paused], server.read(), outdated=server.outdated([paused])).changes
    assert (change.action, change.outdated) == ("pause", theirs.display_name)
    said = []
    apply_plan(server, plan, NOW, said.append)
    assert said == ["weekly: uploaded what it runs, as the newest version of mine"]
    assert newest(kfp_server) == package(code="1")
    assert server.outdated([wanted]) == {}


def test_an_old_server_takes_pinned_schedules_without_plugins(kfp_server, server):
    kfp_server.version = "2.16.1"
    apply(server, make(mlflow="judges"))
    assert "plugins_input" not in kfp_server.asked(CREATE)[0].body
    assert make_plan([make(mlflow="judges")], server.read()).empty
    with pytest.raises(InvalidInput, match=r"2\.16; version = \"latest\" needs 2\.17"):
        apply(server, make("other", version="latest"))


def test_replace_never_has_two_enabled_nor_loses_the_old_one_too_early(kfp_server, server):
    apply(server, make())
    (old,) = rows(kfp_server)
    kfp_server.requests.clear()
    apply(server, make(seed="1"))
    (new,) = rows(kfp_server)
    assert parameters(new)["seed"] == "1"
    assert new.status == "ENABLED"
    paths = [f"{one.method} {one.path}" for one in kfp_server.requests if one.method != "GET"]
    base = "/apis/v2beta1/recurringruns"
    assert paths == [
        f"POST {base}",
        f"POST {base}/{old.recurring_run_id}:disable",
        f"POST {base}/{new.recurring_run_id}:enable",
        f"DELETE {base}/{old.recurring_run_id}",
    ]
    assert kfp_server.asked(DELETE)[-1].query["propagation_policy"] == "ORPHAN"


def test_a_create_that_fails_leaves_the_old_schedule_alone(kfp_server, server):
    apply(server, make())
    kfp_server.forbid(CREATE)
    with pytest.raises(InvalidInput, match=r"schedule weekly: .*does not allow"):
        apply(server, make(seed="1"))
    (row,) = rows(kfp_server)
    assert (row.status, parameters(row)["seed"]) == ("ENABLED", "0")
    kfp_server.forbidden.clear()
    apply(server, make(seed="1"))
    assert [parameters(row)["seed"] for row in rows(kfp_server, enabled=True)] == ["1"]


def test_a_create_whose_answer_is_lost_is_done_once(kfp_server, server):
    kfp_server.reset(CREATE, after=True)
    apply(server, make())
    assert len(rows(kfp_server)) == len(kfp_server.asked(CREATE)) == 1
    kfp_server.fail(CREATE, 503, times=2)
    apply(server, make(seed="1"))
    assert [parameters(row)["seed"] for row in rows(kfp_server)] == ["1"]


def test_a_server_that_stays_down_is_transient_and_changes_nothing(kfp_server, server):
    apply(server, make())
    kfp_server.fail(CREATE, 503, times=ROUNDS)
    with pytest.raises(Transient, match="schedule weekly"):
        apply(server, make(seed="1"))
    assert [parameters(row)["seed"] for row in rows(kfp_server, enabled=True)] == ["0"]


def test_503s_are_waited_for(kfp_server, server):
    apply(server, make())
    for pattern in (ENABLE, DISABLE, DELETE, r"GET .*recurringruns", r"GET .*runs$"):
        kfp_server.fail(pattern, 503, times=2)
    apply(server, make(seed="1"))
    (row,) = rows(kfp_server)
    assert (row.status, parameters(row)["seed"]) == ("ENABLED", "1")


def test_if_the_new_one_cannot_be_enabled_the_old_one_goes_on(kfp_server, server):
    apply(server, make())
    kfp_server.fail(ENABLE, 503, times=endpoint.ATTEMPTS)
    said = []
    with pytest.raises(Transient):
        apply(server, make(seed="1"), said=said)
    assert [parameters(row)["seed"] for row in rows(kfp_server, enabled=True)] == ["0"]
    assert "weekly: the old one is enabled again" in said
    apply(server, make(seed="1"))
    assert [(parameters(row)["seed"], row.status) for row in rows(kfp_server)] == [("1", "ENABLED")]


def test_going_back_does_not_trust_a_lost_answer(kfp_server, server):
    apply(server, make())
    kfp_server.fail(ENABLE, 503, times=endpoint.ATTEMPTS, after=True)
    with pytest.raises(Transient):
        apply(server, make(seed="1"))
    assert [parameters(row)["seed"] for row in rows(kfp_server, enabled=True)] == ["0"]


def test_an_apply_that_died_between_its_steps_is_finished_by_the_next(kfp_server, server):
    apply(server, make())
    kfp_server.fail(ENABLE, 503, times=2 * endpoint.ATTEMPTS)
    with pytest.raises(Transient, match="paused now"):
        apply(server, make(seed="1"))
    assert [row.status for row in rows(kfp_server)] == ["DISABLED", "DISABLED"]
    plan = apply(server, make(seed="1"))
    assert actions(plan) == [("resume", "weekly")]
    assert [(parameters(row)["seed"], row.status) for row in rows(kfp_server)] == [("1", "ENABLED")]


def test_a_delete_that_fails_is_made_up_for(kfp_server, server):
    apply(server, make())
    kfp_server.fail(DELETE, 503, times=endpoint.ATTEMPTS)
    with pytest.raises(Transient):
        apply(server, make(seed="1"))
    assert [parameters(row)["seed"] for row in rows(kfp_server, enabled=True)] == ["1"]
    assert actions(apply(server, make(seed="1"))) == [("tidy", "weekly")]
    assert len(rows(kfp_server)) == 1


def start_run(kfp_server, row):
    """What the server's controller does at a slot."""
    key = f"run-{len(kfp_server.runs)}"
    kfp_server.runs[key] = models.V2beta1Run(
        run_id=key,
        display_name=key,
        state="RUNNING",
        experiment_id=row.experiment_id,
        recurring_run_id=row.recurring_run_id,
        created_at=kfp_server.tick(),
    )
    return key


def test_a_run_under_way_outlives_its_schedule(kfp_server, server):
    apply(server, make())
    (old,) = rows(kfp_server)
    run, said = start_run(kfp_server, old), []
    apply(server, make(seed="1"), said=said)
    assert any(f"stays until its run {run} has ended" in line for line in said)
    assert {parameters(row)["seed"]: row.status for row in rows(kfp_server)} == {"0": "DISABLED", "1": "ENABLED"}
    assert make_plan([make(seed="1")], server.read()).empty
    kfp_server.set_state(run, "SUCCEEDED")
    assert actions(apply(server, make(seed="1"))) == [("tidy", "weekly")]
    assert [parameters(row)["seed"] for row in rows(kfp_server)] == ["1"]


def test_pruning_deletes_ours_only(kfp_server, server):
    apply(server, make(), make("old"))
    apply(server, make("old", group="others"), group="others")
    (template, *_) = rows(kfp_server)
    foreign = models.V2beta1RecurringRun(**{name: getattr(template, name) for name in template.openapi_types})
    foreign.recurring_run_id, foreign.description, foreign.display_name = "foreign", "by hand", "old"
    kfp_server.recurring_runs["foreign"] = foreign
    clone = models.V2beta1RecurringRun(**{name: getattr(template, name) for name in template.openapi_types})
    clone.recurring_run_id, clone.display_name = "clone", "Clone of weekly"
    kfp_server.recurring_runs["clone"] = clone
    apply(server, make())
    assert len(rows(kfp_server)) == 4
    apply(server, make(seed="1"), prune=True)
    left = {(row.display_name, row.status) for row in kfp_server.recurring_runs.values()}
    assert left == {
        ("weekly", "ENABLED"),
        ("old", "ENABLED"),
        ("Clone of weekly", "ENABLED"),
    }
    assert foreign.status == clone.status == "ENABLED"
    touched = {request.path for request in kfp_server.requests if request.method != "GET"}
    assert not any("foreign" in path or "clone" in path for path in touched)


def test_pruning_stops_a_schedule_at_once_and_deletes_it_when_its_run_has_ended(kfp_server, server):
    apply(server, make())
    run = start_run(kfp_server, rows(kfp_server)[0])
    apply(server, prune=True)
    assert [row.status for row in rows(kfp_server)] == ["DISABLED"]
    kfp_server.set_state(run, "FAILED", "out of memory")
    apply(server, prune=True)
    assert rows(kfp_server) == []


def test_one_schedule_that_fails_does_not_stop_the_others(kfp_server, server):
    kfp_server.fail(CREATE, 400)
    with pytest.raises(InvalidInput, match="schedule first: "):
        apply(server, make("first"), make("second"))
    assert [row.display_name for row in rows(kfp_server, enabled=True)] == ["second"]


def at_once(*works):
    """Run all at the same time, and return what each raised."""
    errors, ready = [], threading.Barrier(len(works))

    def run(work):
        ready.wait()
        try:
            work()
            errors.append(None)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("attempt", range(3))
def test_two_applies_of_the_same_file_make_one_schedule(kfp_server, server, attempt):
    apply(server, make())
    others = [Server(open_client(kfp_server.url, namespace="team")) for _ in range(3)]
    plans = [(other, make_plan([make(seed="1")], other.read())) for other in others]
    works = [lambda other=other, plan=plan: apply_plan(other, plan, NOW, [].append) for other, plan in plans]
    assert at_once(*works) == [None] * 3
    assert [(parameters(row)["seed"], row.status) for row in rows(kfp_server)] == [("1", "ENABLED")]


def test_of_two_applies_of_different_files_the_later_one_withdraws(kfp_server, server):
    apply(server, make())
    mine, theirs = make(seed="1"), make(seed="2")
    plan = make_plan([mine], server.read())
    apply(Server(open_client(kfp_server.url, namespace="team")), theirs)
    with pytest.raises(Transient, match="somebody else"):
        apply_plan(server, plan, NOW, [].append)
    assert [(parameters(row)["seed"], row.status) for row in rows(kfp_server)] == [("2", "ENABLED")]


@pytest.mark.parametrize("attempt", range(3))
def test_applies_of_different_files_at_once_leave_one_schedule_enabled(kfp_server, server, attempt):
    apply(server, make())
    plans = []
    for seed in "12":
        other = Server(open_client(kfp_server.url, namespace="team"))
        plans.append((other, make_plan([make(seed=seed)], other.read())))
    works = [lambda other=other, plan=plan: apply_plan(other, plan, NOW, [].append) for other, plan in plans]
    errors = at_once(*works)
    assert all(error is None or isinstance(error, Transient) for error in errors)
    assert len(rows(kfp_server, enabled=True)) == 1
    apply(server, make(seed="1"))
    assert [(parameters(row)["seed"], row.status) for row in rows(kfp_server)] == [("1", "ENABLED")]


# ---- the commands


RECIPE = """extends = "demo"
preference_data = ["s3://data/pairs.jsonl.gz"]
base_model = "s3://models/base"

[teacher]
kind = "recorded"
uri = "s3://data/traces.jsonl.gz"
"""
SCHEDULES = """[[schedule]]
name = "weekly"
recipe = "mine.toml"
profile = "cpu"
cron = "0 3 * * 1"
settings = ["sft.epochs=1"]
"""


def reasrm(kfp_server, *words, typed=None):
    done = CliRunner().invoke(command, [*words, "--host", kfp_server.url, "--namespace", "team"], input=typed)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_the_commands_from_an_empty_server_to_none_again(kfp_server, tmp_path):
    (tmp_path / "mine.toml").write_text(RECIPE, encoding="utf-8")
    path = write(tmp_path, SCHEDULES)
    shown = reasrm(kfp_server, "plan", "-f", str(path), "--detailed-exitcode")
    assert shown.exit_code == 2
    assert "+ create" in shown.output
    assert "sent as '0 0 3 * * 1'" in shown.output
    assert "1 to create." in shown.output
    assert not kfp_server.asked("POST")

    assert "applied" in reasrm(kfp_server, "apply", "-f", str(path), "--yes").output
    assert "enabled" in reasrm(kfp_server, "list").output
    reasrm(kfp_server, "pause", "weekly")
    assert "paused" in reasrm(kfp_server, "list").output
    paused = reasrm(kfp_server, "plan", "-f", str(path))
    assert (paused.exit_code, "▸ resume" in paused.output) == (0, True)
    reasrm(kfp_server, "resume", "weekly")
    assert [row.status for row in rows(kfp_server)] == ["ENABLED"]

    path.write_text(SCHEDULES.replace("epochs=1", "epochs=3"), encoding="utf-8")
    before = len(writes(kfp_server))
    with pytest.raises(InvalidInput, match="nothing was changed; without a terminal give --yes"):
        reasrm(kfp_server, "apply", "-f", str(path))  # nobody answers the question
    asked = reasrm(kfp_server, "apply", "-f", str(path), typed="n\n")
    assert "parameters.sft_config.epochs: 1 -> 3" in asked.output and "nothing was changed" in asked.output
    assert (asked.exit_code, len(writes(kfp_server))) == (1, before)
    (change,) = json.loads(reasrm(kfp_server, "plan", "--json", "-f", str(path)).stdout)
    assert (change["schedule"], change["action"], change["changes"]) == ("weekly", "replace", True)
    assert {"name": "parameters.sft_config.epochs", "old": 1, "new": 3} in change["fields"]

    path.write_text("", encoding="utf-8")
    left = reasrm(kfp_server, "plan", "-f", str(path), "--detailed-exitcode")
    assert (left.exit_code, "--prune deletes it" in left.output, "Nothing to do" in left.output) == (0, True, True)
    reasrm(kfp_server, "delete", "weekly", "--yes")
    assert rows(kfp_server) == []
    assert "no schedules of this tool" in reasrm(kfp_server, "list").output


def test_a_name_that_is_not_ours_is_not_touched(kfp_server, server):
    apply(server, make(group="team-a"), group="team-a")
    for verb in ("pause", "resume", "delete"):
        with pytest.raises(InvalidInput, match="there are: team-a/weekly"):
            reasrm(kfp_server, verb, "weekly")
    reasrm(kfp_server, "pause", "team-a/weekly")
    assert [row.status for row in rows(kfp_server)] == ["DISABLED"]


def test_a_list_in_a_pipe_is_as_wide_as_its_rows(kfp_server, server):
    apply(server, make("a" * 60, recipe="r" * 60), make("b"))
    ids = {row.display_name: row.recurring_run_id for row in rows(kfp_server)}
    lines = reasrm(kfp_server, "list").output.splitlines()
    assert [line.split()[-1] for line in lines[1:]] == [ids["a" * 60], ids["b"]]
    listed = json.loads(reasrm(kfp_server, "list", "--json").output)
    assert [(one["schedule"], one["id"], one["enabled"], one["cron"]) for one in listed] == [
        (name, ids[name], True, "0 0 3 * * mon") for name in ("a" * 60, "b")
    ]


def test_detailed_exit_codes_tell_errors_from_changes(kfp_server, tmp_path):
    path = write(tmp_path, '[[schedule]]\nname="weekly"\nrecipe="none"\ncron="@weekly"\n')
    for words, code in ((("--detailed-exitcode",), 1), ((), 2)):
        with pytest.raises(ReasrmError) as error:
            reasrm(kfp_server, "plan", "-f", str(path), *words)
        assert error.value.exit_code == code


def test_a_schedule_may_do_without_the_cache(tmp_path):
    (tmp_path / "mine.toml").write_text(RECIPE, encoding="utf-8")
    with_cache, without = (
        desired(load_schedules(write(tmp_path, SCHEDULES + line)), tmp_path)[0] for line in ("", "cache = false\n")
    )
    assert with_cache.hash != without.hash
    assert b"enableCache: true" in with_cache.package and b"enableCache: true" not in without.package
