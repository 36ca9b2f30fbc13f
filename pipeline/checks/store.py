"""The bucket: whether artifacts can be committed to it."""

import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from components.core.errors import InvalidInput, ReasrmError
from pipeline.checks import reach
from pipeline.checks.finding import Finding, missing, ok, unknown, warning

if TYPE_CHECKING:
    from components.adapters.storage import Storage

BUCKET, LIFECYCLE = "bucket", "lifecycle rule"


def check_bucket(root: str, secret: str) -> Iterator[Finding]:
    """Write, read and delete a small object below `root`, and see that a second writer is turned away."""
    from components.adapters.storage import Storage

    storage = Storage.from_env()
    reach.connect(storage.endpoint)
    try:
        storage.ensure_bucket(root)
    except InvalidInput as error:
        unset = str(error).startswith("no S3 credentials")
        keys = "AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        yield missing(
            BUCKET, str(error), f"put {keys} into the secret {secret}, or export them", "unset" if unset else ""
        )
        return
    uri = f"{root.rstrip('/')}/checks/{uuid.uuid4().hex}"
    yield _commit(storage, uri, root)
    yield _delete(storage, uri, root)


def _commit(storage: "Storage", uri: str, root: str) -> Finding:
    unsafe = "use a server with conditional writes (AWS S3, SeaweedFS, MinIO have them)"
    try:
        first = storage.write_bytes(uri, b"first", if_absent=True)
    except InvalidInput:
        raise
    except ReasrmError as error:  # a server that does not know the condition refuses the request as a whole
        if "NotImplemented" in str(error) or "(501)" in str(error):
            return missing(BUCKET, f"{storage.endpoint} does not know If-None-Match: {error}", unsafe)
        raise
    second = storage.write_bytes(uri, b"second", if_absent=True)
    content = storage.read_bytes(uri)
    if second or not first or content != b"first":
        return missing(
            BUCKET, f"{storage.endpoint} overwrites objects in spite of If-None-Match, so no commit is safe", unsafe
        )
    return ok(BUCKET, f"{root} at {storage.endpoint} can be written, with If-None-Match")


def _delete(storage: "Storage", uri: str, root: str) -> Finding:
    remedy = f"allow s3:DeleteObject below {root}; old checkpoints are deleted"
    try:
        storage.delete([uri])
        if not storage.exists(uri):
            return ok(BUCKET, f"objects of {root} can be deleted")
    except InvalidInput as error:
        return missing(BUCKET, f"the check's own object cannot be deleted: {error}", remedy)
    return missing(BUCKET, f"{uri} is still there after it was deleted", remedy)


def check_lifecycle(root: str) -> Iterator[Finding]:
    """See whether the bucket ends uploads that were never completed; a killed pod leaves some, and they cost."""
    from components.adapters.storage import Storage, split

    storage, (bucket, _) = Storage.from_env(), split(root)
    remedy = (
        f"aws s3api put-bucket-lifecycle-configuration --bucket {bucket} --lifecycle-configuration "
        "file://manifests/base/storage/lifecycle.json (your overlay has a daily job that does it: manifests/README.md)"
    )
    reach.connect(storage.endpoint)
    client = storage.client
    try:
        rules = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    except client.exceptions.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code not in ("NoSuchLifecycleConfiguration", "NoSuchLifecycle"):
            yield unknown(LIFECYCLE, f"{storage.endpoint} does not tell the rules of {bucket} ({code})", remedy)
            return
        rules = []
    if any(_ends_uploads(rule) for rule in rules):
        yield ok(LIFECYCLE, f"{bucket} ends uploads that are not completed")
    else:
        yield warning(LIFECYCLE, f"{bucket} keeps the parts of uploads that were never completed", remedy)


def _ends_uploads(rule: dict[str, Any]) -> bool:
    with suppress(LookupError, TypeError):
        return rule["Status"] == "Enabled" and int(rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"]) > 0
    return False
