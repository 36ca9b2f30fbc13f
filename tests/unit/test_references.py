"""Registered models as people write them: one form for settings, commands and judges."""

import pytest
from pydantic import TypeAdapter, ValidationError

from components.adapters.registry import find_version
from components.core.errors import InvalidInput
from components.core.references import ModelName, parse_name
from components.prepare.config import Config
from pipeline.commands.promotion import parse_version


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        ("my judge", ModelName("my judge")),
        ("models:/judge", ModelName("judge")),
        ("judge/3", ModelName("judge", version="3")),
        ("models:/my.judge-2/12", ModelName("my.judge-2", version="12")),
        ("judge@champion", ModelName("judge", alias="champion")),
        ("judge@2026-11", ModelName("judge", alias="2026-11")),
        ("judge@", None),
        ("judge@a@b", None),
        ("judge@a/3", None),
        ("judge/three", None),
        ("judge/3\n", None),
        ("judge:3", None),
        ("it's", None),
        ("a\nb/3", None),
        ("", None),
        ("models:/", None),
    ],
)
def test_a_registered_model_has_one_form_wherever_it_is_named(reference: str, named: ModelName | None) -> None:
    assert parse_name(reference) == named
    since = TypeAdapter(Config).validate_python
    settings = {"sources": ["x.jsonl"], "since": reference}
    if named is not None:
        assert since(settings).since == reference
    elif reference:
        with pytest.raises(ValidationError, match="since"):
            since(settings)
        with pytest.raises(InvalidInput, match="is no registered model; write name@champion"):
            find_version(reference)
    if named is not None and named.version:
        assert parse_version(reference) == (named.name, named.version)
    else:
        with pytest.raises(InvalidInput, match="is no model version; write name/3"):
            parse_version(reference)
