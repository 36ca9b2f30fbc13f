"""What decides this stage's result beside its configuration and its inputs: a recording's content."""

from typing import TYPE_CHECKING, Any

from components.adapters.sources import digest
from components.core.teachers import RecordedTeacher
from components.traces.config import Config

if TYPE_CHECKING:
    from components.adapters.storage import Storage


def sources(settings: Config, storage: "Storage") -> list[dict[str, Any]]:
    """Return uri and sha256 of the recording, if one is played, for the run key."""
    if not isinstance(settings.teacher, RecordedTeacher):
        return []
    return [{"uri": settings.teacher.uri, "sha256": digest(settings.teacher.uri, storage)}]
