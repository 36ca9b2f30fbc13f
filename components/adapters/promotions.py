"""Who is champion: a log in S3 that decides, and the aliases of MLflow's registry, which follow it.

MLflow cannot move an alias only if it is where one thinks it is; S3 can write an object only if it is not there yet. So
each change of the champion is a record `<root>/<model>/<alias>/<number>.json` that names the champion it replaces, and
of two runs that both want the next number one gets it. The alias is moved after its record; whoever comes next finishes
what was begun (`settle`). An alias that was moved in MLflow itself becomes a record of its own, so that nobody's
decision is undone.

A registered model says in a tag where its log is, from before the first record on. So the log stays with a model that
is renamed, and one that takes over a name begins its own.
"""

import getpass
import logging
import re
import socket
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from pydantic import ValidationError

from components.adapters import model_versions
from components.adapters.model_versions import VersionInfo
from components.adapters.registry import DIGEST_TAG, artifact_of
from components.core.errors import Damaged, InvalidInput, Transient
from components.core.schema import Record

if TYPE_CHECKING:
    from components.adapters.storage import Storage

logger = logging.getLogger(__name__)

NONE = "none"
"""Stands for the digest of the champion where there is none; the benchmark writes the same."""
CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
UNKNOWN = "unknown"
"""Stands for the digest of a version that this pipeline did not register."""
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
    place: str
    """S3 prefix of the logs of this model's aliases."""
    _known: dict[str, Promotion] = field(default_factory=dict, compare=False, repr=False)
    """Records by uri; they never change."""

    @property
    def uri(self) -> str:
        """Where the records lie."""
        return f"{self.place.rstrip('/')}/{self.alias}"

    @property
    def previous(self) -> str:
        """The alias of whom the champion replaced."""
        return PREVIOUS if self.alias == CHAMPION else f"{PREVIOUS}-{self.alias}"

    @property
    def mark(self) -> str:
        """The tag of the registered model with the number of the last record that the aliases followed."""
        return f"reasrm.promotion.{self.alias}"

    def read(self) -> list[Promotion]:
        """Return all records in order. Raises Damaged for one that is none, Transient without S3."""
        found = [item.uri for item in self.storage.list(f"{self.uri}/") if _NUMBER.search(item.uri)]
        return [self._read(uri) for uri in sorted(found)]

    def _read(self, uri: str) -> Promotion:
        if uri not in self._known:
            wrong = ""
            try:
                record = Promotion.model_validate_json(self.storage.read_bytes(uri) or b"")
                wrong = "" if uri == self._uri(record.number) else f"it says that it is number {record.number}"
            except ValidationError as error:
                wrong = str(error)
            if wrong:
                raise Damaged(f"{uri} is no record of a promotion ({wrong}); put the right one there, or delete it")
            self._known[uri] = record
        return self._known[uri]

    def _uri(self, number: int) -> str:
        return f"{self.uri}/{number:06d}.json"

    def untold(self) -> Promotion | None:
        """Return the last rollback if nobody was told that it was done: who asked for it will ask again.

        Others may have finished it, or changed the champion since. Raises Damaged or Transient, as `read` does.
        """
        last = next((record for record in reversed(self.read()) if record.kind == "rollback"), None)
        return None if last is None or self.storage.exists(self._told(last.number)) else last

    def tell(self, keys: Collection[str]) -> None:
        """Note that whoever asked for the rollbacks with these keys was told of them; call it after the words are out.

        Where S3 does not take the note, the next who asks is told again.
        """
        for record in self.read():
            if record.key in keys and record.kind == "rollback":
                self.storage.write_bytes(self._told(record.number), b"told\n")

    def _told(self, number: int) -> str:
        return f"{self.uri}/{number:06d}.told"

    def settle(self) -> list[Promotion]:
        """Finish what an interrupted promotion left and take note of what was done by hand; return all records.

        Raises Transient or InvalidInput, as MLflow and S3 do.
        """
        for _ in range(TRIES):
            # In this order: an alias moves after its record and before its mark.
            history = self.read()
            marked = int((model_versions.model_tags(self.model) or {}).get(self.mark, "0"))
            pointed = model_versions.get_alias(self.model, self.alias)
            last = history[-1] if history else None
            champion = last.champion.version if last else ""
            if (pointed.version if pointed else "") == champion:
                if last and marked < last.number:
                    self._follow()
                return history
            if last and marked < last.number and self._is_unfinished(last, pointed):
                logger.warning(
                    "%s@%s: finishing promotion %s, which was interrupted", self.model, self.alias, last.number
                )
                self._follow()
                continue
            now = self.holder(pointed) if pointed else Holder()
            record = self._next(history, now, "by hand", "unknown", "moved in MLflow itself", uuid.uuid4().hex)
            if self._write(record):
                logger.warning("%s@%s was moved by hand to version %r", self.model, self.alias, now.version or NONE)
                self._follow()
        raise Transient(f"{self.model}@{self.alias} keeps changing; run again")

    def _is_unfinished(self, last: Promotion, pointed: VersionInfo | None) -> bool:
        """Tell whether the alias is still where it was before the last record: whoever wrote that did not move it.

        If it is anywhere else somebody moved it since, which counts for more.
        """
        if last.champion and model_versions.get_version(self.model, last.champion.version) is None:
            return False
        before = model_versions.get_version(self.model, last.replaces.version) if last.replaces else None
        return (pointed.version if pointed else "") == (before.version if before else "")

    def holder(self, version: VersionInfo) -> Holder:
        """Return a version with the digest of its model; without a tag or a manifest the digest is unknown."""
        digest = version.tags.get(DIGEST_TAG, "")
        if not digest and version.source_uri.startswith("s3://"):
            manifest = self.storage.open(artifact_of(version))
            digest = manifest.digest if manifest else ""
        return Holder(version=version.version, digest=digest or UNKNOWN)

    def move(
        self, version: VersionInfo, *, kind: Kind, by: str, why: str, key: str, compared: str | None = None
    ) -> Outcome:
        """Make a version champion, unless the champion is another one than it was compared with.

        `compared` is the digest of that one, NONE if there was none, None if it does not matter. Doing it again with
        the same `key` changes nothing. Raises Transient or InvalidInput.
        """
        tried = False
        for _ in range(TRIES):
            history = self.settle()
            mine = next((record for record in history if record.key == key), None)
            now = history[-1].champion if history else Holder()
            if mine is not None:  # with `tried`: S3 took the record, and its answer was lost
                return Outcome(True, self._named(mine.replaces), moved=tried)
            if now.version == version.version:
                return Outcome(True, self._named(former(history)))
            if compared is not None and compared != now.digest:
                was = f"version {now.version}" if now else "none"
                reason = f"the champion changed meanwhile (it is {was} now): benchmark again"
                return Outcome(False, self._named(now), reason)
            record, tried = self._next(history, self.holder(version), kind, by, why, key), True
            if self._write(record):
                self._follow()
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
        return self.storage.write_bytes(self._uri(record.number), data, if_absent=True)

    def _follow(self) -> None:
        """Let aliases and tags say what the log says; whoever was overtaken meanwhile follows the newer record."""
        while True:
            # Of now, not of one's own record: an alias that is set back would be taken for one that was moved by hand.
            history = self.read()
            record = history[-1]
            self._point(self.alias, record.champion)
            self._point(self.previous, former(history))
            self._tag(record, history)
            if self.read()[-1].number == record.number:
                break
        model_versions.tag_model(self.model, {self.mark: str(record.number)})

    def _point(self, alias: str, holder: Holder) -> None:
        if holder and model_versions.get_version(self.model, holder.version):
            model_versions.set_alias(self.model, alias, holder.version)
        else:
            model_versions.delete_alias(self.model, alias)

    def _tag(self, record: Promotion, history: list[Promotion]) -> None:
        tags: dict[str, str | None] = {"reasrm.promoted_by": record.by, "reasrm.promoted_why": record.why}
        if record.replaces and not _goes_back(record, history):
            tags[FORMER] = self._named(record.replaces)
        if record.champion and model_versions.get_version(self.model, record.champion.version):
            model_versions.tag_version(self.model, record.champion.version, tags | {ROLLED_BACK: None})
        taken = taken_away(history, record.replaces)
        if taken is not None and model_versions.get_version(self.model, record.replaces.version):
            model_versions.tag_version(
                self.model, record.replaces.version, {ROLLED_BACK: f"by {taken.by}: {taken.why}"}
            )

    def _named(self, holder: Holder) -> str:
        return f"{self.model}/{holder.version}" if holder else ""


def former(history: list[Promotion]) -> Holder:
    """Return whom the present champion replaced when it was promoted: where a rollback goes."""
    now = history[-1].champion if history else Holder()
    for record in reversed(history):
        if record.champion.version == now.version and not _goes_back(record, history):
            return record.replaces
    return Holder()


def taken_away(history: list[Promotion], version: Holder) -> Promotion | None:
    """Return the record by which a person took a version's place away, unless it was given back since.

    The same model under another number is the same: a version can be deleted and its model registered again.
    """
    for record in reversed(history):
        if _is_same(record.champion, version):
            return None
        if _is_same(record.replaces, version) and _goes_back(record, history):
            return record
    return None


def _is_same(one: Holder, other: Holder) -> bool:
    known = one.digest not in {NONE, UNKNOWN}
    return bool(one and other) and (one.version == other.version or (known and one.digest == other.digest))


def _goes_back(record: Promotion, history: list[Promotion]) -> bool:
    """Tell whether a record takes a version's place away rather than giving a place to a new one.

    In MLflow itself that is moving the alias back to one that was champion before, or removing it.
    """
    if record.kind == "by hand":
        earlier = {one.champion.version for one in history if one.number < record.number}
        return not record.champion or record.champion.version in earlier
    return record.kind == "rollback"


def find_log(storage: "Storage", model: str, alias: str, root: str = "") -> Promotions:
    """Return the log of a registered model, where it was begun; one that is to begin lies below `root`.

    Raises InvalidInput if there is no such model, or nothing that says where its log is to be.
    """
    tags = model_versions.model_tags(model)
    if tags is None:
        raise InvalidInput(f"MLflow's registry has no model {model!r}; check the name")
    if not tags.get(PLACE):
        version = None if root else model_versions.get_version(model, "")
        released = version.tags.get("reasrm.publish_uri", "") if version else ""
        root = root or (beside(released) if released else "")
        if not root:
            raise InvalidInput(f"{model} was not registered by this pipeline; move its aliases in MLflow itself")
        return Promotions(storage, model, alias, _begin(storage, model, root))
    return Promotions(storage, model, alias, tags[PLACE])


def log_places() -> dict[str, str]:
    """Return where the logs of all registered models are that have one, by name. Raises Transient or InvalidInput."""
    return {name: tags[PLACE] for name, tags in model_versions.all_model_tags().items() if tags.get(PLACE)}


def _begin(storage: "Storage", model: str, root: str) -> str:
    """Choose the place of a new log, and write it down before there is a record."""
    place, number = f"{root}/{quote(model, safe='')}", 1
    while storage.list(f"{place}/"):
        # Either of this model, begun a moment ago, or of one that was called so before.
        begun = (model_versions.model_tags(model) or {}).get(PLACE)
        if begun:
            return begun
        number += 1
        place = f"{root}/{quote(model, safe='')}+{number}"
    model_versions.tag_model(model, {PLACE: place})
    return place


def beside(artifact_uri: str) -> str:
    """Return where promotions are recorded, from the uri of any artifact (`<root>/<stage>/<key>`)."""
    return f"{artifact_uri.rstrip('/').rsplit('/', 2)[0]}/promotions"


def who() -> str:
    """Return user and machine, for the record."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
