"""Who made a registered version champion, why, and in whose place; and who took it away again.

The log of promotions in S3 says it (`components/adapters/promotions.py`), in a record for each change of an alias. When
a record was written is what S3 says of the object. Without a log the version's tags tell of the last promotion.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from components.adapters import model_versions, promotions
from components.adapters.model_versions import VersionInfo
from components.adapters.promotions import Promotion
from components.core.errors import ReasrmError

if TYPE_CHECKING:
    from components.adapters.storage import Storage

logger = logging.getLogger(__name__)
CHAMPION = "champion"


@dataclass(frozen=True)
class Placing:
    """One change of an alias: this version got it (`took`) from another one, or lost it to another one.

    `kind` is that of the record: publish, promote, rollback, or by hand. `other` is that other version, `when` an ISO
    time in UTC; they are empty where there is none, or it is not known.
    """

    alias: str
    took: bool
    kind: str
    by: str
    why: str
    other: str = ""
    when: str = ""

    @property
    def words(self) -> str:
        """Say it in a line."""
        when = f" on {self.when[:16].replace('T', ' ')} UTC" if self.when else ""
        if not self.took:
            to = f" to {self.other}" if self.other else ""
            return f"lost {self.alias}{to}{when} by {self.by} ({self.kind}): {self.why}"
        place = f", in place of {self.other}" if self.other else ""
        return f"{self.alias}{when} by {self.by} ({self.kind}): {self.why}{place}"


class Histories:
    """The logs of promotions, each model's read once. Nothing is written, so a log that is not there stays away."""

    def __init__(self, storage: "Storage") -> None:
        self.storage = storage
        self._known: dict[str, list[tuple[Promotion, datetime | None]]] = {}

    def of(self, version: VersionInfo) -> tuple[Placing, ...]:
        """Return what is known of a version's promotions, oldest first; what cannot be read is told in the log."""
        name = version.name
        if name not in self._known:
            try:
                self._known[name] = list(self._read(name))
            except ReasrmError as error:
                logger.warning("lineage: the log of promotions of %s is left out: %s", name, error)
                self._known[name] = []
        found = [placing for record, when in self._known[name] if (placing := _placing(record, when, version))]
        return tuple(found) or _by_tags(version)

    def _read(self, name: str) -> Iterator[tuple[Promotion, datetime | None]]:
        """Yield the records of all aliases of a model, with when S3 took them in."""
        if not (model_versions.model_tags(name) or {}).get(promotions.PLACE):
            return
        log = promotions.find_log(self.storage, name, CHAMPION)
        for folder in self.storage.folders(log.uri.rpartition("/")[0]):
            log = replace(log, alias=folder.rpartition("/")[2])
            when = {item.uri: item.modified for item in self.storage.list(f"{log.uri}/")}
            yield from ((record, when.get(f"{log.uri}/{record.number:06d}.json")) for record in log.read())


def _placing(record: Promotion, when: datetime | None, version: VersionInfo) -> Placing | None:
    took = record.champion.version == version.version
    if not took and record.replaces.version != version.version:
        return None
    other = record.replaces if took else record.champion
    return Placing(
        alias=record.alias,
        took=took,
        kind=record.kind,
        by=record.by,
        why=record.why,
        other=f"{version.name}/{other.version}" if other else "",
        when=when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z") if when else "",
    )


def _by_tags(version: VersionInfo) -> tuple[Placing, ...]:
    """Return what the tags of a version say of its last promotion; they do not say of which alias, nor when."""
    tags = version.tags
    by, other = tags.get("reasrm.promoted_by"), tags.get(promotions.FORMER, "")
    if by is None:
        return ()
    return (Placing(CHAMPION, True, "as its tags say", by, tags.get("reasrm.promoted_why", ""), other),)
