"""The images of a profile: whether their names stand for one content."""

from collections.abc import Iterator
from typing import get_args

from components.core.errors import InvalidInput
from pipeline.checks.finding import Finding, missing, ok
from pipeline.profile import Image, Profile

NAME = "images"


def check_images(profile: Profile) -> Iterator[Finding]:
    """See that KFP's cache, which knows an image by its name, cannot take old results for new code."""
    try:
        profile.check_images()
    except InvalidInput as error:
        yield missing(NAME, str(error), "push the images, then write their digests into pipeline/images.toml")
        return
    names = ", ".join(profile.image(kind) for kind in get_args(Image))
    yield ok(NAME, f"{names} are pinned; whether nodes can pull them shows with the first pod")
