"""`reasrm submit`: what it leaves on the server, and what the user sees."""

import _thread
import re

import pytest

from components.core.errors import InvalidInput, Transient
from pipeline.client.endpoint import Uncertain, open_client
from pipeline.client.submit import content_name, ensure_newest, ensure_version, outlook, submit
from pipeline.config import load_recipe

ARGUMENTS = {"pipeline_name": "reasrm", "experiment": "weekly", "service_account": "reasrm", "run_name": "one"}


def command(server, *arguments):
    return (
        "submit", "--recipe", "smoke-cluster", "--profile", "cpu", "--host", server.url, "--namespace", "team",
        *arguments,
    )  # fmt: skip


def test_run_is_pinned_to_the_version_that_holds_its_content(kfp_server, kfp, smoke):
    config, package = smoke
    ref = submit(kfp, config, package, **ARGUMENTS, description="Recipe smoke.")
    run = kfp_server.runs[ref.run_id]
    assert run.pipeline_version_reference.pipeline_id == ref.pipeline_id
    assert run.pipeline_version_reference.pipeline_version_id == ref.version_id
    assert kfp_server.packages[ref.version_id] == package
    assert ref.version == kfp_server.versions[ref.version_id].display_name == content_name(package, "reasrm")
    assert (run.display_name, run.service_account) == ("one", "reasrm")
    assert run.description.startswith("Recipe smoke.\n")
    assert run.runtime_config is None  # the parameters are the package's defaults
    experiment = kfp_server.experiments[run.experiment_id]
    assert (experiment.display_name, experiment.namespace) == ("weekly", "team")
    assert kfp_server.pipelines[ref.pipeline_id].namespace == "team"
    assert ref.url == f"{kfp_server.url}/?ns=team#/runs/details/{ref.run_id}"


def test_same_content_is_uploaded_once(kfp_server, kfp, smoke):
    config, package = smoke
    first, second = (submit(kfp, config, package, **ARGUMENTS) for _ in range(2))
    assert first.version_id == second.version_id and first.run_id != second.run_id
    assert len(kfp_server.asked("POST .*upload_version")) == 1
    assert len(kfp_server.experiments) == len(kfp_server.pipelines) == 1
    third = ensure_version(kfp, package + b"# changed\n", pipeline_name="reasrm")
    assert third.pipeline_version_id != first.version_id and third.pipeline_id == first.pipeline_id


def test_only_other_values_than_the_packages_are_sent(kfp_server, kfp, smoke):
    _, package = smoke
    other = load_recipe("smoke", ["seed=7", "model_name=another"])
    ref = submit(kfp, other, package, **ARGUMENTS)
    assert kfp_server.runs[ref.run_id].runtime_config.parameters == {"seed": 7, "model_name": "another"}


def test_parameters_that_kfp_does_not_take_are_not_sent(kfp_server, kfp, smoke):
    config, package = smoke
    with pytest.raises(InvalidInput, match="no parameter seed; compile it again"):
        submit(kfp, config, package.replace(b"      seed:", b"      seeds:"), **ARGUMENTS)
    with pytest.raises(InvalidInput, match="is not YAML"):
        submit(kfp, config, b"a: [", **ARGUMENTS)
    with pytest.raises(InvalidInput, match="has no root"):
        submit(kfp, config, b"a: 1", **ARGUMENTS)
    large = config.model_copy(update={"model_name": "m" * 10_001})
    with pytest.raises(InvalidInput, match=r"take \d+ bytes, KFP allows 10000"):
        submit(kfp, large, package, **ARGUMENTS)
    assert kfp_server.requests == []


def test_single_user_server_needs_no_namespace(kfp_server, smoke):
    kfp_server.multi_user = False
    ref = submit(open_client(kfp_server.url), *smoke, **ARGUMENTS)
    assert ref.url == f"{kfp_server.url}/#/runs/details/{ref.run_id}"
    assert list(kfp_server.runs) == [ref.run_id]


def test_lost_answer_does_not_start_a_second_run(kfp_server, kfp, smoke):
    submit(kfp, *smoke, **ARGUMENTS)
    for break_off in (kfp_server.reset, lambda *a, **k: kfp_server.fail(*a, 503, **k)):
        before = set(kfp_server.runs)
        break_off("POST .*/runs$", after=True)
        ref = submit(kfp, *smoke, **ARGUMENTS)
        assert set(kfp_server.runs) - before == {ref.run_id}


def test_server_that_is_not_ready_is_asked_again(kfp_server, kfp, smoke):
    kfp_server.fail("POST .*/runs$", 503, times=3)
    ref = submit(kfp, *smoke, **ARGUMENTS)
    assert list(kfp_server.runs) == [ref.run_id]
    kfp_server.fail("POST .*/runs$", 503, times=100)
    with pytest.raises(Transient, match="not ready"):
        submit(kfp, *smoke, **ARGUMENTS)


def test_run_that_may_have_been_created_is_not_created_again(kfp_server, kfp, smoke):
    kfp_server.reset("POST .*/runs$")
    with pytest.raises(Uncertain, match="look with `reasrm status` before you submit again"):
        submit(kfp, *smoke, **ARGUMENTS)
    assert len(kfp_server.asked("POST .*/runs$")) == 1


def test_outlook_changes_nothing(kfp_server, kfp, smoke):
    names = {"pipeline_name": "reasrm", "experiment": "weekly"}
    before = outlook(kfp, *smoke, **names)
    assert (before.pipeline_id, before.version_id, before.experiment_id) == ("", "", "")
    ref = submit(kfp, *smoke, **ARGUMENTS)
    kfp_server.requests.clear()
    after = outlook(kfp, *smoke, **names)
    assert (after.pipeline_id, after.version_id, after.version) == (ref.pipeline_id, ref.version_id, ref.version)
    assert {request.method for request in kfp_server.requests} == {"GET"}


def test_waits_until_the_run_has_succeeded(kfp_server, reasrm, nodes):
    kfp_server.steps = [
        lambda run: kfp_server.set_tasks(run, nodes(("preflight", "RUNNING"))),
        lambda run: kfp_server.set_state(run, "RUNNING"),
        lambda run: kfp_server.set_tasks(run, nodes(("preflight", "SUCCEEDED"), ("prepare", "CACHED"))),
        lambda run: kfp_server.set_state(run, "SUCCEEDED"),
    ]
    code, out, _ = reasrm(*command(kfp_server))
    (run,) = kfp_server.runs.values()
    assert code == 0
    assert re.fullmatch(r"smoke-cluster-\d{8}-\d{6}", run.display_name)
    assert run.description.startswith("Recipe smoke-cluster, profile cpu.")
    assert kfp_server.experiments[run.experiment_id].display_name == "reasrm-smoke"
    lines = out.splitlines()
    assert lines[0].startswith(f"reasrm {run.display_name}  {run.run_id}  pending  {kfp_server.url}/?ns=team#")
    assert lines[1:4] == ["preflight: running", "preflight: done", "prepare: taken from KFP's cache"]
    assert lines[-1] == f"succeeded  {kfp_server.url}/?ns=team#/runs/details/{run.run_id}"


def test_without_waiting_id_and_link_are_all(kfp_server, reasrm):
    code, out, _ = reasrm(
        *command(kfp_server, "--no-wait", "--run-name", "mine", "--experiment", "e", "--pipeline-name", "p")
    )
    (run,) = kfp_server.runs.values()
    assert (code, out) == (0, f"{run.run_id}  {kfp_server.url}/?ns=team#/runs/details/{run.run_id}\n")
    assert run.display_name == "mine"
    assert [row.display_name for row in kfp_server.experiments.values()] == ["e"]
    assert [row.display_name for row in kfp_server.pipelines.values()] == ["p"]


def test_dry_run_says_what_would_be_done(kfp_server, reasrm):
    code, out, _ = reasrm(*command(kfp_server, "--dry-run"))
    assert code == 0
    assert re.search(r"version +reasrm-[0-9a-f]{12}: would be made \(\d+\.\d kB\)", out)
    assert "parameters  all as compiled" in out and "nothing was done" in out
    assert (kfp_server.runs, kfp_server.pipelines, kfp_server.experiments) == ({}, {}, {})


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_what_only_this_machine_has_is_not_submitted(kfp_server, reasrm, more):
    code, _, err = reasrm("submit", "--recipe", "smoke", "--profile", "cpu", "--host", kfp_server.url, *more)
    assert code == 2
    for setting in ("base_model = .reasrm/models/tiny-random", "preference_data = samples/", "teacher = samples/"):
        assert setting in err
    assert "reasrm upload --help" in err
    assert kfp_server.requests == []


def test_ctrl_c_while_the_run_is_created_does_not_advise_to_submit_again(kfp_server, reasrm, monkeypatch):
    def interrupted(request):
        _thread.interrupt_main()
        return create(request)

    create = kfp_server._create_run
    monkeypatch.setattr(kfp_server, "_create_run", interrupted)
    code, _, err = reasrm(*command(kfp_server, "--run-name", "mine"))
    assert (code, len(kfp_server.runs)) == (130, 1)
    assert "a run named mine may have been made: see reasrm status before you submit again" in err
    assert "run the same command" not in err


def test_names_that_were_changed_in_the_ui_are_found(kfp_server, kfp, smoke):
    first = submit(kfp, *smoke, **ARGUMENTS)
    (pipeline,), (version,) = kfp_server.pipelines.values(), kfp_server.versions.values()
    pipeline.display_name, version.display_name = "Reasoning RM", "my good one"
    second = submit(kfp, *smoke, **ARGUMENTS)
    assert (second.version_id, second.version) == (first.version_id, first.version)
    assert len(kfp_server.pipelines) == len(kfp_server.versions) == 1


def test_newest_version_is_uploaded_again_only_if_it_is_another(kfp_server, kfp, smoke):
    package, changed = smoke[1], smoke[1] + b"# changed\n"
    for content, uploads in ((package, True), (package, False), (changed, True), (package, True), (package, False)):
        version, uploaded = ensure_newest(kfp, content, pipeline_name="mine")
        assert uploaded == uploads
        assert kfp_server.packages[version.pipeline_version_id] == content
    names = [version.name for version in kfp_server.versions.values()]
    assert names[:2] == [content_name(package, "mine"), content_name(changed, "mine")]
    assert re.fullmatch(rf"{names[0]}-again-\d{{14}}", names[2])


def test_server_that_is_missing_is_said_before_anything_is_compiled(kfp_server, reasrm):
    code, out, err = reasrm("submit", "--recipe", "smoke-cluster", "--profile", "cpu")
    assert (code, out) == (2, "")
    assert err.startswith("error: where is KFP? Give --host")


def test_help_teaches_with_examples(reasrm):
    code, out, _ = reasrm("submit", "--help")
    assert code == 0
    assert "reasrm submit --recipe smoke-cluster --profile cpu --host http://localhost:8888" in out
    assert "kubectl create token" in out and "Exit codes: 0 succeeded" in out
