"""A Kubeflow Pipelines API server on this machine, and the real pipeline to run there."""

import functools
import importlib.util
import sys
from pathlib import Path

import pytest
from kubernetes.config import kube_config

from pipeline import cli
from pipeline.client import endpoint, watch

BEGUN, ENDED, NOT_YET = "2026-11-02T08:00:10Z", "2026-11-02T08:02:40Z", "1970-01-01T00:00:00Z"


@functools.cache
def _load(name):
    """Import a module that lies beside this file: tests are no package."""
    spec = importlib.util.spec_from_file_location(f"kubeflow_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kfp_server(monkeypatch, tmp_path):
    """A running KfpServer without any content; see kfp_server.py for what a test can do to it.

    Pauses are short, and nothing of the environment's own servers and clusters is seen.
    """
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.005)
    for name in ("HOST", "UI", "NAMESPACE", "TOKEN", "TOKEN_FILE", "COOKIE", "CA_FILE"):
        monkeypatch.delenv(f"REASRM_KFP_{name}", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "no-kubeconfig"))
    with _load("kfp_server").KfpServer() as server:
        yield server


@pytest.fixture
def kfp(kfp_server):
    """A client of that server."""
    return endpoint.open_client(kfp_server.url, namespace="team")


@pytest.fixture(scope="session")
def smoke():
    """The smoke recipe and its compiled pipeline."""
    from pipeline.compiler import compile_pipeline
    from pipeline.config import load_recipe
    from pipeline.profile import load_profile

    config = load_recipe("smoke")
    return config, compile_pipeline(config, load_profile("cpu"))


@pytest.fixture
def reasrm(capsys):
    """Run the command line in this process; gives exit code, standard output and standard error."""

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return call


@pytest.fixture
def nodes():
    """A function that gives a run's nodes as KFP 2.17 shows them, from pairs of a stage and its state.

    The states are the API's, or "CACHED": a task's node ends as it begins, and its pod is never made. For each stage
    there is a driver, the task and its pod; "for-loop-2" and the like stand for themselves.
    """

    def make(*pairs):
        found = [_node("reasrm-x7k2p", "RUNNING"), _node("root-driver", "SUCCEEDED"), _node("root", "RUNNING")]
        for name, state in pairs:
            if name.startswith(("for-loop-", "condition-", "exit-handler-")):
                found.append(_node(name, state))
                continue
            found.append(_node(f"{name}-driver", "SUCCEEDED"))
            if state == "CACHED":
                found += [_node(name, "SUCCEEDED", end=BEGUN), _node("executor", "SKIPPED")]
            else:
                found += [_node(name, state), _node("executor", state)]
        return found

    return make


def _node(name, state, end=ENDED):
    over = state in ("SUCCEEDED", "FAILED", "SKIPPED")
    return {"display_name": name, "state": state, "start_time": BEGUN, "end_time": end if over else NOT_YET}
