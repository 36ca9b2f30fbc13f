"""MLflow: whether it answers, is new enough and lets the experiment be read.

Plain REST, because importing MLflow takes longer than all other checks together.
"""

import base64
import json
import os
import re
from collections.abc import Iterator
from urllib.parse import quote, unquote, urlsplit

from components.core.errors import InvalidInput, Transient
from pipeline.checks import reach
from pipeline.checks.finding import Finding, missing, ok, unknown

NAME = "MLflow"
OLDEST = 3
"""Major version that knows logged models, on which scores and lineage stand."""
OTHER_WAYS = (
    "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_SERVER_CERT_PATH",
)  # fmt: skip
"""Variables by which MLflow's client logs in or trusts in ways that this check has not."""


def check_mlflow(experiment: str, secret: str) -> Iterator[Finding]:
    """Ask the server for its version and for the experiment. Nothing is created."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").rstrip("/")
    if not uri:
        remedy = f"put MLFLOW_TRACKING_URI into the secret {secret}, or export it"
        yield missing(NAME, "MLFLOW_TRACKING_URI is not set", remedy, "unset")
        return
    address = urlsplit(uri)
    uri = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()
    try:
        yield _version(uri)
        yield _experiment(uri, experiment)
    except InvalidInput as error:
        if set(OTHER_WAYS) & os.environ.keys():
            yield unknown(NAME, f"{error}; {' and '.join(OTHER_WAYS)} are only known to MLflow's own client")
        else:
            yield missing(NAME, str(error), f"check the secret {secret}")


def _version(uri: str) -> Finding:
    answer = reach.get(f"{uri}/version", _headers())
    found = re.fullmatch(r"(\d+)\.\d+\S*", answer.body[:40].decode(errors="replace").strip())
    if answer.status != 200 or found is None:
        return unknown(NAME, f"{uri} does not tell its version (HTTP {answer.status})")
    if int(found[1]) < OLDEST:
        return missing(NAME, f"{uri} is MLflow {found[0]}, which has no logged models", "upgrade it to 3.10 or later")
    return ok(NAME, f"{uri} is MLflow {found[0]}")


def _experiment(uri: str, experiment: str) -> Finding:
    path = f"/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(experiment, safe='')}"
    answer = reach.get(uri + path, _headers())
    if answer.status in (401, 403):
        raise InvalidInput(
            f"{uri} refuses to tell of the experiment {experiment} (HTTP {answer.status}); check "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    try:
        body = json.loads(answer.body)
        if body.get("error_code") == "RESOURCE_DOES_NOT_EXIST":
            what = f"{uri} has no experiment {experiment} yet; whether a run may create it shows when it does"
            return unknown(NAME, what)
        deleted = body["experiment"]["lifecycle_stage"] == "deleted"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Transient(f"{uri} does not answer as MLflow (HTTP {answer.status}); check the address") from error
    if deleted:
        raise InvalidInput(
            f"the experiment {experiment} at {uri} is deleted, so its name cannot be used: restore it in MLflow, or "
            "set experiment to another name"
        )
    return ok(NAME, f"the experiment {experiment} can be read")


def _headers() -> dict[str, str]:
    """Return what MLflow's client sends of the environment."""
    headers = {}
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    address = urlsplit(os.environ["MLFLOW_TRACKING_URI"])
    if address.username and address.password:
        user, password = unquote(address.username), unquote(address.password)
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN", ""):
        headers["Authorization"] = f"Bearer {token}"
    if user and password:  # they win, as in MLflow's client
        headers["Authorization"] = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
    if workspace := os.environ.get("MLFLOW_WORKSPACE", ""):
        headers["X-MLFLOW-WORKSPACE"] = workspace
    return headers
