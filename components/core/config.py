"""The base of every stage's configuration."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class StageConfig(BaseModel):
    """A stage's settings: frozen, and an unknown key is an error.

    `kind` names the artifact that the stage makes. `not_in_key` lists the settings that decide how the work is done
    but not what comes out (concurrency, number of threads), so changing them does not redo finished work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[str]
    not_in_key: ClassVar[frozenset[str]] = frozenset()

    def decisive(self) -> dict[str, Any]:
        """Return the settings that the result depends on, for the run key."""
        return self.model_dump(mode="json", exclude=set(self.not_in_key))
