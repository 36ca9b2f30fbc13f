"""The proxy on the way to a KFP server: which one, with whose credentials, and what its errors mean."""

from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from components.core.errors import InvalidInput

LOCAL = {"localhost", "127.0.0.1", "::1"}


def set_proxy(configuration: Any, host: str) -> None:
    """Send what goes to `host` through the proxy that the environment names for it, with its credentials.

    Raises InvalidInput if that is no http proxy.
    """
    import urllib3

    proxy = _proxy_for(host)
    if proxy is None:
        return
    parts = urlsplit(proxy)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(
            f"{_variable(host)} names no proxy that can be used; write it as http://proxy.example.com:3128"
        )
    configuration.proxy = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        configuration.proxy_headers = urllib3.make_headers(proxy_basic_auth=login)


def explain(error: BaseException, host: str) -> str:
    """Return what to change after an error of the proxy; empty if that may pass by itself."""
    import urllib3

    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return f"there is no proxy {place(host)}; correct {_variable(host)}, or except the host from it with no_proxy"
    return refused(host) if " 407" in str(error) else ""


def refused(host: str) -> str:
    """Return what to change after the proxy did not let us through (407)."""
    return (
        f"the proxy {place(host)} does not know who asks (407); set {_variable(host)} to http://USER:PASSWORD@PROXY, "
        "special characters as %40"
    )


def place(host: str) -> str:
    """Return the proxy's address without credentials; empty if there is none."""
    return urlsplit(_proxy_for(host) or "").netloc.rpartition("@")[2]


def _proxy_for(host: str) -> str | None:
    parts = urlsplit(host)
    if parts.hostname in LOCAL or proxy_bypass(parts.netloc):
        return None
    proxy = getproxies().get(parts.scheme)
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def _variable(host: str) -> str:
    return f"${urlsplit(host).scheme}_proxy"
