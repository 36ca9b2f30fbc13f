"""The images of a profile: whether their names stand for one content."""

from collections.abc import Iterator
from typing import get_args

from components.core.errors import InvalidInput
from pipeline.checks.finding import Finding, missing, ok, warning
from pipeline.profile import Image, Profile

NAME = "images"


def check_images(profile: Profile) -> Iterator[Finding]:
    """See that KFP's cache, which knows an image by its name, cannot take old results for new code."""
    try:
        profile.check_images()
    except InvalidInput as error:
        yield missing(NAME, str(error), "push the images, then write their digests into pipeline/images.toml")
        return
    names = [profile.image(kind) for kind in get_args(Image)]
    homeless = [name for name in names if not _has_registry(name)]
    if homeless:
        what = f"{', '.join(homeless)}: no registry is named, so nodes look at docker.io"
        yield warning(
            NAME, what, "python -m images.build NAME --push REGISTRY writes whole names to pipeline/images.toml"
        )
    else:
        yield ok(NAME, f"{', '.join(names)} are pinned; whether nodes can pull them shows with the first pod")


def _has_registry(image: str) -> bool:
    """Say whether a name begins with a host, as container runtimes tell it: a dot, a port, or localhost."""
    first, _, rest = image.partition("/")
    return bool(rest) and ("." in first or ":" in first or first == "localhost")
