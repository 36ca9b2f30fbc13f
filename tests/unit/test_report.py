import pytest

from components.report.run import outcome


@pytest.mark.parametrize("state", ["COMPLETE", "CACHED", "SUCCEEDED"])  # of KFP's backend, and of kfp.local
def test_a_run_that_went_well_is_finished(state):
    assert outcome(state, None) == ("FINISHED", {})


@pytest.mark.parametrize(("state", "status"), [("FAILED", "FAILED"), ("CANCELED", "KILLED"), ("PENDING", "FAILED")])
def test_other_ends(state, status):
    assert outcome(state, "sft: no key=sk-abcdefghijklmnopqrstuvwxyz123456")[0] == status


def test_an_error_is_kept_without_secrets():
    _, tags = outcome("FAILED", "no: Bearer sk-abcdefghijklmnopqrstuvwxyz123456")
    assert "sk-abc" not in tags["reasrm.error"]


def test_what_kfp_does_not_tell_is_not_called_a_failure():
    assert outcome("RUNNING", None) == ("FINISHED", {"reasrm.outcome": "not told by KFP"})
    assert outcome("RUNNING", "sft failed")[0] == "FAILED"
