"""The door to a KFP server: who asks, what is repeated, and what its answers are taken for."""

import base64
import socket
import time

import pytest

from components.core.errors import InvalidInput, Transient
from pipeline.client import endpoint
from pipeline.client.endpoint import Conflict, NotAllowed, NotFound, Uncertain, open_client


def test_says_which_version_answers(kfp_server, kfp):
    kfp_server.version, kfp_server.multi_user = "2.16.0", False
    assert kfp.health() == endpoint.Health("2.16.0", False, "database")
    kfp_server.version = "unknown"
    assert kfp.health().version == ""


def test_environment_names_server_namespace_and_token(kfp_server, monkeypatch):
    kfp_server.token = "t0ken"
    monkeypatch.setenv("REASRM_KFP_HOST", f"{kfp_server.url}/")
    monkeypatch.setenv("REASRM_KFP_NAMESPACE", "team")
    monkeypatch.setenv("REASRM_KFP_TOKEN", "t0ken\n")
    kfp = open_client()
    assert (kfp.host, kfp.namespace) == (kfp_server.url, "team")
    assert kfp.find_experiment("none") is None


def test_token_file_is_read_for_each_question(kfp_server, tmp_path, monkeypatch):
    monkeypatch.setenv("REASRM_KFP_TOKEN", "of the environment")
    file = tmp_path / "token"
    file.write_text("first\n")
    kfp = open_client(kfp_server.url, namespace="team", token_file=file)
    for token in ("first", "second"):
        file.write_text(token)
        kfp_server.token = token
        assert kfp.find_experiment("none") is None


def test_token_that_is_given_wins(kfp_server, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("of the environment")
    monkeypatch.setenv("REASRM_KFP_TOKEN_FILE", str(tmp_path / "token"))
    kfp_server.token = "given"
    assert open_client(kfp_server.url, namespace="team", token="given").find_experiment("none") is None


def test_unknown_user_is_told_how_to_get_a_token_and_never_sees_it(kfp_server):
    kfp_server.token = "right"
    token = (
        r"401.*set \$REASRM_KFP_TOKEN.*bound to kubeflow-edit.*kubectl create token default-editor --namespace team "
    )
    with pytest.raises(NotAllowed, match=token) as none:
        open_client(kfp_server.url, namespace="team").health()
    assert "expired" not in str(none.value)
    assert "port-forward" not in str(none.value)  # this is one already
    with pytest.raises(InvalidInput, match="expired") as wrong:
        open_client(kfp_server.url, token="hf_wrongwrongwrongwrong").health()
    assert "wrongwrong" not in str(wrong.value)
    assert len(kfp_server.requests) == 2  # asking again would not help


def test_missing_permission_names_role_and_namespace(kfp_server, kfp):
    kfp_server.forbid("GET .*runs")
    with pytest.raises(NotAllowed, match=r"not authorized.*kubeflow-edit in the namespace team.*create token"):
        kfp.rows(kfp.runs.run_service_list_runs, "runs", namespace="team")


def test_login_page_is_no_answer(kfp_server, kfp):
    kfp_server.login_page = True
    with pytest.raises(NotAllowed, match=r"login page.*REASRM_KFP_TOKEN"):
        kfp.rows(kfp.runs.run_service_list_runs, "runs", namespace="team")


def test_login_elsewhere_may_take_a_cookie_or_be_gone_around(kfp_server, monkeypatch):
    kfp_server.login_page = True
    monkeypatch.setenv("http_proxy", kfp_server.url)
    with pytest.raises(NotAllowed, match=r"login page.*REASRM_KFP_COOKIE.*port-forward"):
        open_client("http://kubeflow.example.com").health()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<a href='index.html'>It works, and the codex too</a>", "web page, so its API is elsewhere"),
        (b"<form class='login-form'>", "login page"),
        (b"<h1>Sign in to your account</h1>", "login page"),
    ],
)
def test_login_pages_are_known_by_whole_words(kfp_server, kfp, body, words):
    kfp_server.page = body
    with pytest.raises(InvalidInput, match=words):
        kfp.health()


@pytest.mark.parametrize("body", [{"hello": "other service"}, ["a list"], "text"])
def test_another_service_with_json_is_no_kfp(kfp_server, kfp, body):
    kfp_server.other = body
    for ask in (kfp.health, lambda: kfp.call(kfp.runs.run_service_get_run, "x"), lambda: kfp.ensure_experiment("x")):
        with pytest.raises(InvalidInput, match=r"answers, but not as KFP does|not of KFP's API"):
            ask()


def test_proxy_gets_its_credentials(kfp_server, monkeypatch):
    monkeypatch.setenv("http_proxy", kfp_server.url.replace("//", "//me:pa%40ss@"))
    assert open_client("http://kubeflow.example.com").health().multi_user
    assert kfp_server.headers["proxy-authorization"] == f"Basic {base64.b64encode(b'me:pa@ss').decode()}"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy_that_refuses_is_named_without_its_credentials(kfp_server, monkeypatch, scheme):
    kfp_server.fail(".", 407, times=2)
    monkeypatch.setenv(f"{scheme}_proxy", kfp_server.url.replace("//", "//me:pa55word@"))
    with pytest.raises(InvalidInput, match=rf"the proxy 127\.0\.0\.1:\d+ does not know.*\${scheme}_proxy") as error:
        open_client(f"{scheme}://kubeflow.example.com").health()
    assert "pa55word" not in str(error.value)


def test_proxy_that_is_none(kfp_server, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://me:pa55word@proxy.invalid:3128")
    with pytest.raises(InvalidInput, match=r"there is no proxy proxy\.invalid:3128; correct \$https_proxy"):
        open_client("https://kubeflow.example.com").health()
    monkeypatch.setenv("https_proxy", "socks5://proxy:1")
    with pytest.raises(InvalidInput, match=r"\$https_proxy names no proxy"):
        open_client("https://kubeflow.example.com")


def test_redirect_to_a_login_is_no_answer_and_its_parameters_stay_unseen(kfp_server, kfp):
    kfp_server.redirect = "https://dex.example.com/auth?state=hidden"
    with pytest.raises(
        InvalidInput, match=r"sends us to https://dex\.example\.com/auth; set \$REASRM_KFP_TOKEN"
    ) as error:
        kfp.health()
    assert "hidden" not in str(error.value)


def test_web_page_elsewhere_is_no_kfp(kfp_server):
    with pytest.raises(InvalidInput, match=r"web page, so its API is elsewhere.*another program on that port"):
        open_client(f"{kfp_server.url}/dashboard").health()


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("", r"give --host|Give --host.*\$REASRM_KFP_HOST"),
        ("kubeflow.example.com", "is not a URL"),
        ("http://host:port", "is not a URL"),
        ("https://me:pa55word@host", "holds a password"),
    ],
)
def test_host_that_is_none(kfp_server, host, words):
    with pytest.raises(InvalidInput, match=words) as error:
        open_client(host)
    assert "pa55word" not in str(error.value)


def test_host_as_copied_from_the_browser(kfp_server):
    kfp = open_client("https://kf.example.com/_/pipeline/?ns=team#/runs", namespace="team")
    assert kfp.host == "https://kf.example.com/pipeline"
    assert kfp.ui("/runs/details/7") == "https://kf.example.com/_/pipeline/?ns=team#/runs/details/7"
    assert open_client("http://localhost:8080").ui("/runs/details/7") == "http://localhost:8080/#/runs/details/7"


def test_links_may_lead_elsewhere(kfp_server, monkeypatch):
    monkeypatch.setenv("REASRM_KFP_UI", "https://kf.example.com/pipeline/")
    assert open_client(kfp_server.url).ui("/x") == "https://kf.example.com/_/pipeline/#/x"


def test_host_without_address_is_the_users_to_correct(kfp_server):
    with pytest.raises(InvalidInput, match=r"there is no host http://kubeflow\.invalid"):
        open_client("http://kubeflow.invalid").health()


def test_refused_connection_is_tried_again_then_transient(kfp_server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(Transient, match=r"cannot connect.*port-forward running"):
        open_client(url).health()


def test_server_without_tls_says_what_to_give(kfp_server):
    with pytest.raises(InvalidInput, match=r"no TLS connection.*--ca-file"):
        open_client(kfp_server.url.replace("http:", "https:")).health()


def test_certificate_that_is_not_there(kfp_server, tmp_path):
    with pytest.raises(InvalidInput, match="cannot read the certificate in"):
        open_client(kfp_server.url, ca_file=tmp_path / "none.pem")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_reading_is_tried_again(kfp_server, kfp, status):
    kfp_server.fail("GET", status, times=endpoint.ATTEMPTS - 1)
    assert kfp.health().version == "2.17.0"
    kfp_server.fail("GET", status, times=endpoint.ATTEMPTS)
    with pytest.raises(Transient, match=str(status)):
        kfp.health()


def test_broken_connection_is_tried_again(kfp_server, kfp):
    kfp_server.reset("GET", times=2)
    assert kfp.health().multi_user


def test_server_that_does_not_answer_is_given_up(kfp_server):
    kfp_server.slow("GET", seconds=120)
    kfp = open_client(kfp_server.url, timeout=0.3)
    began = time.monotonic()
    assert kfp.health().multi_user  # at the second attempt
    assert time.monotonic() - began < 60


def test_waiting_for_a_server_that_hangs_is_told_once_and_bounded(kfp_server, monkeypatch, caplog):
    monkeypatch.setattr(endpoint, "ATTEMPTS", 10**6)
    monkeypatch.setattr(endpoint, "LONGEST", 1.0)
    kfp_server.slow("GET", seconds=120, times=10**6)
    kfp = open_client(kfp_server.url, timeout=0.1)
    began = time.monotonic()
    with pytest.raises(Uncertain, match=r"does not answer within 0\.1 s"):
        kfp.health()
    assert time.monotonic() - began < 60
    assert [record.getMessage() for record in caplog.records] == [
        f"KFP at {kfp_server.url} has not answered for 0.1 s; asking again"
    ]


def test_name_that_somebody_has_whom_we_do_not_see(kfp_server, kfp):
    kfp_server.fail("POST .*pipelines$", 409)
    with pytest.raises(Conflict, match="the name is taken, but no list of the server shows it"):
        kfp.ensure_pipeline("theirs")


def test_creating_is_not_repeated_unless_it_never_arrived(kfp_server, kfp):
    body = {"display_name": "one", "namespace": "team"}
    kfp_server.reset("POST", after=True)
    with pytest.raises(Uncertain, match="broke off"):
        kfp.call(kfp.experiments.experiment_service_create_experiment, experiment=body)
    assert [row.display_name for row in kfp_server.experiments.values()] == ["one"]
    with pytest.raises(Conflict, match="has that already"):
        kfp.call(kfp.experiments.experiment_service_create_experiment, experiment=body)


def test_deleting_twice_is_deleting_once(kfp_server, kfp):
    pipeline = kfp.ensure_pipeline("old")
    kfp_server.fail("DELETE", 502, after=True)
    kfp.call(kfp.pipelines.pipeline_service_delete_pipeline, pipeline.pipeline_id)
    assert kfp_server.pipelines == {}
    with pytest.raises(NotFound, match="has no such thing"):
        kfp.call(kfp.pipelines.pipeline_service_delete_pipeline, pipeline.pipeline_id)


def test_what_the_server_refuses_is_told_in_its_words(kfp_server, kfp):
    with pytest.raises(InvalidInput, match=r"refuses this \(400\): .*unknown field .displayname"):
        kfp.call(kfp.runs.run_service_create_run, run={"displayname": "x"})
    bare = open_client(kfp_server.url)
    with pytest.raises(InvalidInput, match="Namespace is empty; give --namespace"):
        bare.rows(bare.runs.run_service_list_runs, "runs")


def test_all_pages_of_a_list(kfp_server, kfp):
    kfp_server.page_size = 2
    names = [f"e{number}" for number in range(5)]
    for name in names:
        kfp.ensure_experiment(name)
    kfp_server.requests.clear()
    rows = kfp.rows(kfp.experiments.experiment_service_list_experiments, "experiments", namespace="team")
    assert [row.display_name for row in rows] == names
    assert len(kfp_server.requests) == 3
    few = kfp.rows(kfp.experiments.experiment_service_list_experiments, "experiments", namespace="team", limit=3)
    assert [row.display_name for row in few] == names[:3]


def test_names_are_compared_exactly_although_the_server_does_not(kfp_server, kfp):
    upper, lower = kfp.ensure_experiment("Weekly"), kfp.ensure_experiment("weekly")
    assert upper.experiment_id != lower.experiment_id
    assert kfp.ensure_experiment("Weekly").experiment_id == upper.experiment_id


@pytest.mark.parametrize("status", [0, 409, 500, 503])
def test_what_is_made_twice_by_accident_or_by_another_is_found(kfp_server, kfp, status):
    if status:
        kfp_server.fail("POST .*experiments", status, after=True)
    else:
        kfp_server.reset("POST .*experiments", after=True)
    made = kfp.ensure_experiment("one")
    assert list(kfp_server.experiments) == [made.experiment_id]
