"""Check that the bucket can be used, and have S3 drop the parts of uploads that were cut off.

Usage: python prepare_bucket.py BUCKET LIFECYCLE.json. Rules of the bucket with other ids stay as they are.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from components.adapters.storage import Storage
from components.core.errors import ReasrmError

logger = logging.getLogger("prepare_bucket")


def current_rules(client: Any, bucket: str) -> list[dict[str, Any]]:
    """Return the bucket's lifecycle rules."""
    try:
        return list(client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"])
    except client.exceptions.ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchLifecycleConfiguration":
            return []
        raise


def prepare(storage: Storage, bucket: str, wanted: list[dict[str, Any]]) -> list[str]:
    """Put the rules beside those that are there and return all ids. Raises InvalidInput or Transient."""
    storage.ensure_bucket(f"s3://{bucket}")
    client = storage.client
    ours = {rule["ID"] for rule in wanted}
    kept = [rule for rule in current_rules(client, bucket) if rule.get("ID") not in ours]
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": kept + wanted})
    return [str(rule.get("ID")) for rule in current_rules(client, bucket)]


def main(bucket: str, lifecycle: str) -> int:
    """Prepare the bucket; the exit code is 2 where the user must change something, 75 where another try may help."""
    try:
        ids = prepare(Storage.from_env(), bucket, json.loads(Path(lifecycle).read_bytes())["Rules"])
    except ReasrmError as error:
        logger.error("%s", error)
        return error.exit_code
    logger.info("bucket %s is ready; its lifecycle rules: %s", bucket, ", ".join(ids))
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    sys.exit(main(*sys.argv[1:]))
