"""`reasrm serve`: a judge as an HTTP service."""

import os
from typing import Any

import click

from pipeline.commands.judge_options import MODELS, found_judge, judge_options

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@click.command(
    epilog="\b\nExamples:\n"
    "  reasrm serve --model reasrm-demo@champion\n"
    "  reasrm serve --model s3://bucket/judge --engine vllm --host 0.0.0.0 --token-env JUDGE_TOKEN\n"
    "  reasrm serve --model judge --base-url http://vllm:8000/v1 --concurrency 64\n\n"
    "\b\nThen:\n"
    "  curl localhost:8080/compare -H 'content-type: application/json' \\\n"
    '    -d \'{"conversation": "1 + 1 = ?", "response_a": "2", "response_b": "3"}\'\n'
    "  http://localhost:8080/docs has everything else\n\n" + MODELS
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is all.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--token-env", default="", metavar="NAME", help="Variable with the token that callers must show.")
@click.option("--no-token", is_flag=True, help="Listen beyond this machine without a token.")
@click.option("--max-answers", default=16, show_default=True, type=click.IntRange(2, 256), help="Most in one /rank.")
@click.option("--max-votes", default=8, show_default=True, type=click.IntRange(1, 64), help="Most in one request.")
@click.option(
    "--max-judgments", default=1024, show_default=True, type=click.IntRange(2), help="Most that may wait; then 429."
)
@click.option("--max-body-bytes", default=2**20, show_default=True, type=click.IntRange(1024, 4 * 2**20))
@click.option("--request-seconds", default=600.0, show_default=True, help="Then a request is given up with 504.")
@click.option(
    "--shutdown-seconds",
    default=30,
    show_default=True,
    type=click.IntRange(0),
    help="For what is under way at SIGTERM.",
)
@judge_options
def serve(host: str, port: int, token_env: str, no_token: bool, **options: Any) -> None:
    """Serve a judge over HTTP until Ctrl-C or SIGTERM.

    POST /compare takes a conversation and two answers: both orders, --votes each, verdict, confidence and reasoning.
    POST /rank gives each of n answers a reward. GET /health, /ready and /metrics are for whoever runs it; /docs and
    /openapi.json describe it. See docs/serving.md for TRL, verl and OpenRLHF.
    """
    from components.core.errors import InvalidInput
    from components.core.records import explain

    try:
        import fastapi  # noqa: F401 - looked for before a model is fetched
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InvalidInput(f"the service needs more ({error}); run: pip install 'reasrm[serve]'") from error
    from pipeline.serving.server import listen
    from pipeline.serving.server import serve as run
    from pipeline.serving.service import Service
    from pipeline.serving.settings import ServiceSettings

    limits = {name: options.pop(name) for name in _LIMITS}
    try:
        settings = ServiceSettings(host=host, port=port, token=_token(host, token_env, no_token), **limits)
    except ValueError as error:
        raise InvalidInput(explain(error)) from error
    sock = listen(settings)
    opener, asking, name, _ = found_judge(options)
    address, bound = sock.getsockname()[:2]
    where = f"[{address}]" if ":" in address else address
    click.echo(f"{name} is being loaded; serving on http://{where}:{bound} (/ready says when, /docs what)", err=True)
    service = Service(opener, asking, name, settings)
    run(service, sock)
    cut = f"{service.num_cut} requests were not done within --shutdown-seconds and were told to come again (503)"
    click.echo(f"stopped; {cut if service.num_cut else 'all requests that were under way are answered'}", err=True)


_LIMITS = ("max_answers", "max_votes", "max_judgments", "max_body_bytes", "request_seconds", "shutdown_seconds")


def _token(host: str, token_env: str, no_token: bool) -> str:
    """Return the token that callers must show. Raises InvalidInput where none would let anyone in."""
    from components.core.errors import InvalidInput

    if token_env:
        token = os.environ.get(token_env, "").strip()
        if not token:
            raise InvalidInput(f"{token_env} is not set or empty; put the token that callers must show into it")
        return token
    if host not in LOOPBACK and not no_token:
        raise InvalidInput(
            f"on {host} anyone who reaches this machine could use the judge; name the variable with a token as "
            "--token-env, or say --no-token"
        )
    return ""
