"""The one door to a Kubeflow Pipelines server: where it is, who asks, and what its answers mean.

It uses the generated client `kfp_server_api` and not `kfp.Client`, which prints and keeps a file in the user's home.
"""

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from components.core.errors import InvalidInput, Transient
from components.core.redact import redact
from pipeline.client import advice, proxy
from pipeline.client.advice import CA_FILE, COOKIE, HOST, NAMESPACE, TOKEN, TOKEN_FILE, UI_HOST

logger = logging.getLogger(__name__)

MOUNTED_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Where Kubeflow mounts a token for its API into pods that ask for one."""
TIMEOUT = 30.0
ATTEMPTS = 5
LONGEST = 60.0
"""Seconds after which a question that was not answered is not asked again."""
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each later pause is twice as long, up to LONGEST_PAUSE."""
LONGEST_PAUSE = 8.0
PAGE = 100
_IDS = {
    "V2beta1Experiment": "experiment_id",
    "V2beta1Pipeline": "pipeline_id",
    "V2beta1PipelineVersion": "pipeline_version_id",
    "V2beta1RecurringRun": "recurring_run_id",
    "V2beta1Run": "run_id",
}
"""What an answer of KFP never lacks, by its model."""
# Done twice they do the same as done once. Creating and retrying a run are not.
_REPEATABLE = re.compile(r"_(get|list|delete|enable|disable|terminate)_")


class NotFound(InvalidInput):
    """The server has no such thing."""


class Conflict(InvalidInput):
    """The server has something of that name already."""


class NotAllowed(InvalidInput):
    """The server does not know who asks, or does not let them do this; a token that expired is of this kind."""


class Uncertain(Transient):
    """The connection ended before the answer: whether it was done is not known."""


@dataclass(frozen=True)
class Health:
    """What a server says of itself; `version` is empty if it does not say."""

    version: str
    multi_user: bool
    pipeline_store: str


class Kfp:
    """A server's API. `call` is how everything is asked: it repeats what may be repeated and translates errors."""

    def __init__(self, api: Any, host: str, namespace: str, ui_host: str, timeout: float) -> None:
        import kfp_server_api

        self.api, self.host, self.namespace = api, host, namespace
        self.ui_host, self.timeout = ui_host, timeout
        self._waits_told = False
        self.experiments = kfp_server_api.ExperimentServiceApi(api)
        self.pipelines = kfp_server_api.PipelineServiceApi(api)
        self.uploads = kfp_server_api.PipelineUploadServiceApi(api)
        self.runs = kfp_server_api.RunServiceApi(api)
        self.recurring_runs = kfp_server_api.RecurringRunServiceApi(api)

    def call(self, method: Callable[..., Any], *arguments: Any, repeat: bool | None = None, **values: Any) -> Any:
        """Call a method of the generated client.

        What only reads or can be done twice is tried again for a while, and so is what never reached the server;
        `repeat` says otherwise.

        Raises:
            InvalidInput: refused: no permission, a wrong value, not a KFP server (NotFound, Conflict are of its kind).
            Transient: unreachable or out of order, after all attempts; Uncertain if it may have been done all the same.
        """
        import tenacity

        name = getattr(method, "__name__", "")
        again = bool(_REPEATABLE.search(name)) if repeat is None else repeat

        def may_repeat(error: BaseException) -> bool:
            return isinstance(error, _Unreached) or (again and isinstance(error, Transient))

        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_after_delay(LONGEST),
            wait=tenacity.wait_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE),
            retry=tenacity.retry_if_exception(may_repeat),
            before_sleep=self._say_that_it_waits,
            reraise=True,
        )
        for attempt in attempts:
            with attempt:
                try:
                    return self._ask(method, *arguments, **values)
                except NotFound:
                    if "_delete_" in name and attempt.retry_state.attempt_number > 1:
                        return {}  # the first attempt got through
                    raise
        raise AssertionError("tenacity returns or raises")

    def rows(self, method: Callable[..., Any], field: str, *, limit: int | None = None, **query: Any) -> list[Any]:
        """Return the rows of all pages of a list, or the first `limit` of them. Raises as `call`."""
        found: list[Any] = []
        token: str | None = ""
        while token is not None and (limit is None or len(found) < limit):
            size = PAGE if limit is None else min(PAGE, limit - len(found))
            page = self.call(method, page_size=size, page_token=token, **query)
            found += getattr(page, field) or []
            token = page.next_page_token or None
        return found

    def health(self) -> Health:
        """Return what the server says of itself. Raises as `call`."""
        # The generated model leaves out the version, which the server does tell.
        answer = self.call(
            self.api.call_api,
            "/apis/v2beta1/healthz",
            "GET",
            response_type="object",
            auth_settings=["Bearer"],
            _return_http_data_only=True,
            repeat=True,
        )
        if not isinstance(answer, dict) or not {"tag_name", "commit_sha", "multi_user"} & answer.keys():
            raise InvalidInput(f"{self.host} answers, but not as KFP does; {advice.for_address(self.host)}")
        told = str(answer.get("tag_name") or "")
        return Health(
            "" if told == "unknown" else told, bool(answer.get("multi_user")), str(answer.get("pipeline_store") or "")
        )

    def find_experiment(self, name: str) -> Any | None:
        """Return the experiment of this name in the namespace, or None."""
        method = self.experiments.experiment_service_list_experiments
        return self._named(method, "experiments", name, namespace=self.namespace)

    def ensure_experiment(self, name: str) -> Any:
        """Return the experiment of this name in the namespace; it is created if absent."""
        import kfp_server_api

        body = kfp_server_api.V2beta1Experiment(display_name=name, namespace=self.namespace or None)
        create = self.experiments.experiment_service_create_experiment
        return self._found_or_made(
            lambda: self.find_experiment(name), lambda: self.call(create, experiment=body, repeat=True)
        )

    def find_pipeline(self, name: str) -> Any | None:
        """Return the pipeline of this name in the namespace, or None; the UI may show it under another name."""
        method = self.pipelines.pipeline_service_list_pipelines
        return self._named(method, "pipelines", name, by="name", namespace=self.namespace)

    def ensure_pipeline(self, name: str, description: str = "") -> Any:
        """Return the pipeline of this name in the namespace; it is created, without versions, if absent."""
        import kfp_server_api

        body = kfp_server_api.V2beta1Pipeline(
            display_name=name, description=description, namespace=self.namespace or None
        )
        create = self.pipelines.pipeline_service_create_pipeline
        return self._found_or_made(
            lambda: self.find_pipeline(name), lambda: self.call(create, pipeline=body, repeat=True)
        )

    def find_version(self, pipeline_id: str, name: str) -> Any | None:
        """Return the version of this name of a pipeline, or None; the UI may show it under another name."""
        method = self.pipelines.pipeline_service_list_pipeline_versions
        return self._named(method, "pipeline_versions", name, by="name", pipeline_id=pipeline_id)

    def newest_version(self, pipeline_id: str) -> Any | None:
        """Return the version that was uploaded last to a pipeline, or None."""
        method = self.pipelines.pipeline_service_list_pipeline_versions
        query = {"pipeline_id": pipeline_id, "sort_by": "created_at desc"}
        return next(iter(self.rows(method, "pipeline_versions", limit=1, **query)), None)

    def ensure_version(self, pipeline_id: str, name: str, file: Path, description: str = "") -> Any:
        """Return the version of this name of a pipeline; the file is uploaded if there is none."""
        upload = self.uploads.upload_pipeline_version
        values = {"name": name, "display_name": name, "pipelineid": pipeline_id, "description": description}
        return self._found_or_made(
            lambda: self.find_version(pipeline_id, name), lambda: self.call(upload, str(file), repeat=True, **values)
        )

    def ui(self, path: str) -> str:
        """Return the link to a page of the UI, such as `/runs/details/<id>`."""
        host = self.ui_host
        if host.endswith("/pipeline") and not host.endswith("/_/pipeline"):
            host = host.removesuffix("/pipeline") + "/_/pipeline"  # the same page within Kubeflow's dashboard
        space = f"?ns={quote(self.namespace)}" if self.namespace else ""
        return f"{host}/{space}#{path}"

    def _named(
        self, method: Callable[..., Any], field: str, name: str, *, by: str = "display_name", **query: Any
    ) -> Any | None:
        predicate = {"operation": "EQUALS", "key": by, "string_value": name}
        query = {key: value for key, value in query.items() if value}
        rows = self.rows(method, field, filter=json.dumps({"predicates": [predicate]}), **query)
        # The database compares without regard to case.
        return next((row for row in rows if (getattr(row, by) or row.display_name) == name), None)

    def _found_or_made(self, find: Callable[[], Any | None], make: Callable[[], Any]) -> Any:
        """Return what is found, else what is made. Names are unique: who came first, or our lost attempt, is found."""
        found = find()
        if found is not None:
            return found
        try:
            return make()
        except (Conflict, Uncertain) as error:
            found = find()
            if found is not None:
                return found
            if isinstance(error, Conflict):
                raise Conflict(
                    f"{error}; the name is taken, but no list of the server shows it to you: give another name, or "
                    "delete or rename what has it in the UI"
                ) from error
            raise

    def _say_that_it_waits(self, state: Any) -> None:
        """Say once that the server lets us wait, so that a minute of silence is none."""
        error = state.outcome.exception()
        if isinstance(error, _Slow) and not self._waits_told:
            self._waits_told = True
            logger.warning("KFP at %s has not answered for %g s; asking again", self.host, self.timeout)

    def _ask(self, method: Callable[..., Any], *arguments: Any, **values: Any) -> Any:
        import kfp_server_api
        import urllib3

        exceptions = urllib3.exceptions
        # The generated client takes a pair, or whole seconds.
        values["_request_timeout"] = (min(self.timeout, 10.0), self.timeout)
        try:
            answer = method(*arguments, **values)
        except kfp_server_api.ApiException as error:
            raise self._translated(error) from error
        except kfp_server_api.OpenApiException as error:
            raise InvalidInput(f"KFP at {self.host} does not take this: {error}") from error
        except exceptions.ProxyError as error:
            wrong = proxy.explain(error.original_error, self.host)
            if wrong:
                raise InvalidInput(wrong) from error
            raise _Unreached(
                f"cannot connect to the proxy {proxy.place(self.host)} on the way to {self.host}; run this again"
            ) from error
        except (exceptions.NameResolutionError, exceptions.LocationValueError) as error:
            raise InvalidInput(f"there is no host {self.host}; check --host, or ${HOST}") from error
        except (exceptions.NewConnectionError, exceptions.ConnectTimeoutError) as error:
            raise _Unreached(f"cannot connect to KFP at {self.host}; {advice.for_connection(self.host)}") from error
        except exceptions.TimeoutError as error:
            raise _Slow(f"KFP at {self.host} does not answer within {self.timeout:g} s; run this again") from error
        except (exceptions.HTTPError, OSError) as error:
            raise Uncertain(
                f"KFP at {self.host} broke off the connection ({type(error).__name__}); run this again"
            ) from error
        except (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
        ) as error:  # the generated models, reading the answer
            raise InvalidInput(
                f"{self.host} answers with something that is not of KFP's API ({advice.short(error)}); "
                f"{advice.for_address(self.host)}"
            ) from error
        name = _IDS.get(type(answer).__name__)
        if name and not getattr(answer, name):
            raise InvalidInput(f"{self.host} answers, but not as KFP does: no {name}; {advice.for_address(self.host)}")
        return answer

    def _translated(self, error: Any) -> InvalidInput | Transient:
        status, said, headers = error.status or 0, advice.message(error), error.headers or {}
        page = advice.is_html(headers)
        if 300 <= status < 400:
            return NotAllowed(f"{self.host} sends us to {advice.place(headers.get('location', ''))}; {self._who()}")
        if status == 401 or (status == 403 and page):
            return NotAllowed(f"KFP at {self.host} does not know who asks ({status}: {said}); {self._who()}")
        if status in (429, 503):
            return Transient(f"KFP at {self.host} is not ready ({status}: {said}); run this again")
        if status >= 500:
            return Uncertain(f"KFP at {self.host} failed ({status}: {said}); run this again, or look at its log")
        if page:
            what = f"{self.host} is not a KFP server ({status} and a web page)"
            return InvalidInput(f"{what}; {advice.for_address(self.host)}")
        return self._refused(status, said)

    def _who(self) -> str:
        given = bool(self.api.configuration.api_key.get("authorization"))
        return advice.for_identity(self.host, self.namespace, given=given)

    def _refused(self, status: int, said: str) -> InvalidInput:
        kfp = f"KFP at {self.host}"
        if status == 403:
            space = self.namespace or "NAMESPACE (none is given: --namespace)"
            return NotAllowed(
                f"{kfp} does not allow this ({said}); whoever asks has to be bound to kubeflow-edit in the namespace "
                f"{space}: its owner adds you under Manage Contributors in Kubeflow's dashboard, or you use the token "
                f"of an account that is bound, {advice.for_token(self.namespace)}"
            )
        if status == 407:
            return InvalidInput(proxy.refused(self.host))
        if status == 404:
            return NotFound(f"{kfp} has no such thing: {said}")
        if status == 409:
            return Conflict(f"{kfp} has that already: {said}")
        hint = "; give --namespace" if "amespace is empty" in said else ""
        return InvalidInput(f"{kfp} refuses this ({status}): {said}{hint}")


class _Unreached(Transient):
    """The question never left this machine."""


class _Slow(Uncertain):
    """The server took the question and did not answer in time."""


def open_client(
    host: str = "",
    *,
    namespace: str = "",
    token: str = "",
    token_file: Path | None = None,
    ca_file: Path | None = None,
    timeout: float = TIMEOUT,
) -> Kfp:
    """Return the API of the server at `host`; nothing is asked yet. `timeout` is in seconds, for one answer.

    Without arguments: the host is $REASRM_KFP_HOST; the token that of $REASRM_KFP_TOKEN, of the file
    $REASRM_KFP_TOKEN_FILE, or the one that Kubeflow mounts into a pod; the namespace $REASRM_KFP_NAMESPACE. A token's
    file is read for each question, because mounted tokens are replaced. $REASRM_KFP_COOKIE is sent where a login gives
    a cookie, $REASRM_KFP_UI is where links lead if the UI has another address.

    Raises:
        InvalidInput: there is no host, it is not a URL, or a file cannot be read.
    """
    import kfp_server_api

    host = _host(host or os.environ.get(HOST, ""))
    configuration = kfp_server_api.Configuration(host=host)
    configuration.retries = False  # ours are seen, and they know what may be repeated
    proxy.set_proxy(configuration, host)
    authority = ca_file or _path(CA_FILE)
    if authority is not None:
        _read(authority, "the certificate")
        configuration.ssl_ca_cert = str(authority)
    _identify(configuration, token, token_file)
    api = kfp_server_api.ApiClient(configuration, cookie=os.environ.get(COOKIE) or None)
    api.user_agent = f"reasrm/{version('reasrm')}"
    namespace = namespace or os.environ.get(NAMESPACE, "")
    api.rest_client = _without_pages(configuration, host, namespace)
    ui_host = (os.environ.get(UI_HOST) or host).rstrip("/")
    return Kfp(api, host, namespace, ui_host, timeout)


def _host(text: str) -> str:
    if not text:
        raise InvalidInput(f"where is KFP? Give --host https://kubeflow.example.com/pipeline, or set ${HOST}")
    host = re.split("[#?]", text, maxsplit=1)[0].rstrip("/")
    host = host.replace("/_/pipeline", "/pipeline")  # as copied from the browser
    parts = urlsplit(host)
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good:
        raise InvalidInput(f"--host {redact(text)} is not a URL; write it as http://localhost:8888")
    if parts.username or parts.password:
        raise InvalidInput(f"--host {redact(text)} holds a password; give it without, and a token in ${TOKEN}")
    return host


def _identify(configuration: Any, token: str, token_file: Path | None) -> None:
    """Send a token with each question, if there is one: the first of argument, environment and pod."""
    file = token_file
    if file is None and not token:
        token, file = os.environ.get(TOKEN, ""), _path(TOKEN_FILE)
    if file is None and not token and MOUNTED_TOKEN.is_file():
        file = MOUNTED_TOKEN
    if token_file is None and token:
        file = None
    if file is not None:
        source = file
        _read(source, "the token")

        def refresh(settings: Any) -> None:
            settings.api_key["authorization"] = _read(source, "the token")

        configuration.refresh_api_key_hook = refresh
        refresh(configuration)
    elif token:
        configuration.api_key["authorization"] = token.strip()
    configuration.api_key_prefix["authorization"] = "Bearer"


def _without_pages(configuration: Any, host: str, namespace: str) -> Any:
    """Return a REST client that does not take a web page for an answer: a login page comes with status 200."""
    import kfp_server_api
    from kfp_server_api import rest

    class Rest(rest.RESTClientObject):  # type: ignore[misc]
        def request(self, *arguments: Any, **values: Any) -> Any:
            try:
                response = super().request(*arguments, **values)
            except kfp_server_api.ApiException as error:
                if not error.status:
                    why = advice.short(str(error.reason).replace("\n", ": "))
                    raise InvalidInput(
                        f"no TLS connection to {host}: {why}; give the certificate of its authority with --ca-file, or "
                        f"set ${CA_FILE}"
                    ) from error
                error.body = (error.body or b"").decode("utf-8", "replace").encode()  # what comes next needs UTF-8
                raise
            if advice.is_html({"content-type": response.getheader("content-type", "")}):
                text = response.data[:4096].decode("utf-8", "replace").lower()
                if advice.is_login(text):
                    raise NotAllowed(f"{host} answers with a login page; {advice.for_login(host, namespace)}")
                what = f"{host} answers with a web page, so its API is elsewhere"
                raise InvalidInput(f"{what}; {advice.for_address(host)}")
            return response

    return Rest(configuration)


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def _read(path: Path, what: str) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read {what} in {path}: {error}") from error
    if not text:
        raise InvalidInput(f"cannot read {what} in {path}: it is empty")
    return text
