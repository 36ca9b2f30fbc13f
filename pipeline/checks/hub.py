"""Datasets and models of the Hugging Face hub: whether they are there and may be read."""

import os
import re
from typing import Literal

from pipeline.checks.finding import Finding, missing, ok, unknown

SECONDS = 5.0
"""Longest wait for an answer."""
_MODEL = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")


def hub_model(reference: str) -> tuple[str, str] | None:
    """Return id and revision of a hub model's reference, or None where it is another kind of reference."""
    found = _MODEL.fullmatch(reference)
    return (found["id"], found["revision"]) if found else None


def check_hub(name: str, repository: str, kind: Literal["dataset", "model"], revision: str, secret: str) -> Finding:
    """Ask for a revision, and of what is gated, whether this token may read it."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    what = f"{kind} {repository}@{revision[:12]}"
    if constants.HF_HUB_OFFLINE:
        return unknown(name, f"{what} was not looked for: HF_HUB_OFFLINE is set")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    page = f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repository}"
    try:
        found = api.repo_info(repository, repo_type=kind, revision=revision, timeout=SECONDS)
        if getattr(found, "gated", False):
            api.auth_check(repository, repo_type=kind)
    except GatedRepoError:
        return missing(
            name,
            f"{what} is gated, and this token may not read it",
            f"accept its terms at {page}, and {_token(secret)}",
        )
    except RevisionNotFoundError:
        return missing(name, f"{repository} has no revision {revision}", f"take a commit of {page}/commits/main")
    except RepositoryNotFoundError:
        return missing(
            name, f"{api.endpoint} has no {what}, or it is private", f"correct its name, or {_token(secret)}"
        )
    except Exception as error:  # the hub's client raises those of several libraries
        reason = " ".join(str(error).split())[:200]
        return unknown(name, f"{api.endpoint} does not answer for {what} ({type(error).__name__}: {reason})")
    return ok(name, f"{what} is there and may be read")


def _token(secret: str) -> str:
    return f"put HF_TOKEN of an account that may read it into the secret {secret}"
