"""Keep secrets out of logs, reports and tracked parameters."""

import logging
import os
import re
from collections.abc import Mapping

MASK = "***"
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL)", re.IGNORECASE)
_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,})"
    r"|(?<=Bearer )[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s:@]+(?=@)"
)


def secret_values(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the values of all environment variables whose name says secret, longest first."""
    variables = os.environ if environment is None else environment
    found = {value for name, value in variables.items() if _SECRET_NAME.search(name) and len(value) >= 8}
    return tuple(sorted(found, key=len, reverse=True))


def redact(text: str, secrets: tuple[str, ...] = ()) -> str:
    """Replace known secret values and anything shaped like a key, a bearer token or a password in a URL."""
    for secret in secrets or secret_values():
        text = text.replace(secret, MASK)
    return _SHAPES.sub(MASK, text)


class RedactFilter(logging.Filter):
    """Redact each log record's message, its exception text included."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record in place; always keeps it."""
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        return True
