"""Who is champion: a log in S3 that decides, and the aliases of MLflow's registry, which follow it.

MLflow cannot move an alias only if it is where one thinks it is; S3 can write an object only if it is not there yet. So
each change of the champion is a record `<root>/<model>/<alias>/<number>.json` that names the champion it replaces, and
of two runs that both want the next number one gets it. The alias is moved after its record; whoever comes next finishes
what was begun (`settle`). An alias that was moved in MLflow itself becomes a record of its own, so that nobody's
decision is undone.
"""

import getpass
import logging
import re
import socket
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from pydantic import ValidationError

from components.adapters import tracking
from components.adapters.tracking import VersionInfo
from components.core.errors import Damaged, InvalidInput, Transient
from components.core.schema import Record

if TYPE_CHECKING:
    from components.adapters.storage import Storage

logger = logging.getLogger(__name__)

NONE = "none"
"""Stands for the digest of the champion where there is none; the benchmark writes the same."""
PREVIOUS, CHALLENGER = "previous", "challenger"
ROLLED_BACK = "reasrm.rolled_back"
FORMER = "reasrm.former_version"
PLACE = "reasrm.promotions"
TRIES = 20
_NUMBER = re.compile(r"/(\d+)\.json$")

Kind = Literal["publish", "promote", "rollback", "by hand"]


class Holder(Record):
    """A version and the digest of its model's manifest; an empty version stands for none."""

    version: str = ""
    digest: str = NONE

    def __bool__(self) -> bool:
        return bool(self.version)


class Promotion(Record):
    """One change of the champion. `key` names the piece of work that made it, `by` and `why` are for readers."""

    number: int
    model: str
    alias: str
    champion: Holder
    replaces: Holder
    kind: Kind
    by: str
    why: str
    key: str


@dataclass(frozen=True)
class Outcome:
    """Whether a version is champion, whom it replaced, and if not, why. `moved`: it was not champion before."""

    promoted: bool
    replaces: str = ""
    reason: str = ""
    moved: bool = False


@dataclass(frozen=True)
class Promotions:
    """The log of one alias of one registered model."""

    storage: "Storage"
    model: str
    alias: str
    root: str
    """S3 prefix of the logs of all models."""

    @property
    def uri(self) -> str:
        """Where the records lie."""
        return f"{self.root.rstrip('/')}/{quote(self.model, safe='')}/{self.alias}"

    @property
    def mark(self) -> str:
        """The tag of the registered model with the number of the last record that the aliases followed."""
        return f"reasrm.promotion.{self.alias}"

    def read(self) -> list[Promotion]:
        """Return all records in order. Raises Damaged for one that is none, Transient without S3."""
        found = [item.uri for item in self.storage.list(f"{self.uri}/") if _NUMBER.search(item.uri)]
        return [self._read(uri) for uri in sorted(found)]

    def _read(self, uri: str) -> Promotion:
        try:
            return Promotion.model_validate_json(self.storage.read_bytes(uri) or b"")
        except ValidationError as error:
            raise Damaged(
                f"{uri} is no record of a promotion ({error}); put the right one there, or delete it"
            ) from error

    def pending(self) -> Promotion | None:
        """Return the last record if the aliases may not have followed it."""
        history = self.read()
        marked = int((tracking.model_tags(self.model) or {}).get(self.mark, "0"))
        return history[-1] if history and marked < history[-1].number else None

    def settle(self) -> list[Promotion]:
        """Finish what an interrupted promotion left and take note of what was done by hand; return all records.

        Raises Transient or InvalidInput, as MLflow and S3 do.
        """
        for _ in range(TRIES):
            # In this order: an alias moves after its record and before its mark.
            history = self.read()
            marked = int((tracking.model_tags(self.model) or {}).get(self.mark, "0"))
            pointed = tracking.get_alias(self.model, self.alias)
            last = history[-1] if history else None
            champion = last.champion.version if last else ""
            if (pointed.version if pointed else "") == champion:
                if last and marked < last.number:
                    self._follow(last)
                return history
            if last and marked < last.number and (not champion or tracking.get_version(self.model, champion)):
                logger.warning(
                    "%s@%s: finishing promotion %s, which was interrupted", self.model, self.alias, last.number
                )
                self._follow(last)
                continue
            now = self.holder(pointed) if pointed else Holder()
            record = self._next(history, now, "by hand", "unknown", "moved in MLflow itself", uuid.uuid4().hex)
            if self._write(record):
                logger.warning("%s@%s was moved by hand to version %r", self.model, self.alias, now.version or NONE)
                self._follow(record)
        raise Transient(f"{self.model}@{self.alias} keeps changing; run again")

    def holder(self, version: VersionInfo) -> Holder:
        """Return a version with the digest of its model; without a tag or a manifest the digest is unknown."""
        digest = version.tags.get("reasrm.manifest_digest", "")
        if not digest and version.source_uri.startswith("s3://"):
            manifest = self.storage.open(artifact_of(version))
            digest = manifest.digest if manifest else ""
        return Holder(version=version.version, digest=digest or "unknown")

    def move(
        self, version: VersionInfo, *, kind: Kind, by: str, why: str, key: str, compared: str | None = None
    ) -> Outcome:
        """Make a version champion, unless the champion is another one than it was compared with.

        `compared` is the digest of that one, NONE if there was none, None if it does not matter. Doing it again with
        the same `key` changes nothing. Raises Transient or InvalidInput.
        """
        for _ in range(TRIES):
            history = self.settle()
            mine = next((record for record in history if record.key == key), None)
            now = history[-1].champion if history else Holder()
            if mine is None and now.version == version.version:
                mine = next(record for record in reversed(history) if record.champion.version == version.version)
            if mine is not None:
                return Outcome(True, self._named(mine.replaces))
            if compared is not None and compared != now.digest:
                was = f"version {now.version}" if now else "none"
                reason = f"the champion changed meanwhile (it is {was} now): benchmark again"
                return Outcome(False, self._named(now), reason)
            record = self._next(history, self.holder(version), kind, by, why, key)
            if self._write(record):
                self._follow(record)
                return Outcome(True, self._named(now), moved=True)
        raise Transient(f"{self.model}@{self.alias} keeps changing; run again")

    def _next(self, history: list[Promotion], champion: Holder, kind: Kind, by: str, why: str, key: str) -> Promotion:
        return Promotion(
            number=history[-1].number + 1 if history else 1,
            model=self.model,
            alias=self.alias,
            champion=champion,
            replaces=history[-1].champion if history else Holder(),
            kind=kind,
            by=by,
            why=why,
            key=key,
        )

    def _write(self, record: Promotion) -> bool:
        data = (record.model_dump_json(indent=1) + "\n").encode()
        return self.storage.write_bytes(f"{self.uri}/{record.number:06d}.json", data, if_absent=True)

    def _follow(self, record: Promotion) -> None:
        """Let aliases and tags say what the log says; whoever was overtaken meanwhile follows the newer record."""
        while True:
            self._point(self.alias, record.champion)
            history = self.read()
            self._point(PREVIOUS, former(history))
            self._tag(record)
            if history[-1].number == record.number:
                break
            record = history[-1]
        tracking.tag_model(self.model, {self.mark: str(record.number), PLACE: self.root})

    def _point(self, alias: str, holder: Holder) -> None:
        if holder and tracking.get_version(self.model, holder.version):
            tracking.set_alias(self.model, alias, holder.version)
        else:
            tracking.delete_alias(self.model, alias)

    def _tag(self, record: Promotion) -> None:
        tags: dict[str, str | None] = {"reasrm.promoted_by": record.by, "reasrm.promoted_why": record.why}
        if record.replaces and record.kind != "rollback":
            tags[FORMER] = self._named(record.replaces)
        if record.champion and tracking.get_version(self.model, record.champion.version):
            tracking.tag_version(self.model, record.champion.version, tags | {ROLLED_BACK: None})
        if record.kind == "rollback" and tracking.get_version(self.model, record.replaces.version):
            tracking.tag_version(self.model, record.replaces.version, {ROLLED_BACK: f"by {record.by}: {record.why}"})

    def _named(self, holder: Holder) -> str:
        return f"{self.model}/{holder.version}" if holder else ""


def former(history: list[Promotion]) -> Holder:
    """Return whom the present champion replaced when it was promoted: where a rollback goes."""
    now = history[-1].champion if history else Holder()
    for record in reversed(history):
        if record.champion.version == now.version and record.kind != "rollback":
            return record.replaces
    return Holder()


def find_log(storage: "Storage", model: str, alias: str, root: str = "") -> Promotions:
    """Return the log of a registered model, where it was begun; one that is to begin lies below `root`.

    Raises InvalidInput if there is no such model, or nothing that says where its log is to be.
    """
    tags = tracking.model_tags(model)
    if tags is None:
        raise InvalidInput(f"MLflow's registry has no model {model!r}; check the name")
    place = tags.get(PLACE) or root
    if not place:
        version = tracking.get_version(model, "")
        released = version.tags.get("reasrm.publish_uri", "") if version else ""
        place = beside(released) if released else ""
    if not place:
        raise InvalidInput(f"{model} was not registered by this pipeline; move its aliases in MLflow itself")
    return Promotions(storage, model, alias, place)


def beside(artifact_uri: str) -> str:
    """Return where promotions are recorded, from the uri of any artifact (`<root>/<stage>/<key>`)."""
    return f"{artifact_uri.rstrip('/').rsplit('/', 2)[0]}/promotions"


def artifact_of(version: VersionInfo) -> str:
    """Return the uri of the artifact that holds a version's weights."""
    return version.tags.get("reasrm.manifest_uri") or version.source_uri.removesuffix("/model")


def who() -> str:
    """Return user and machine, for the record."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
