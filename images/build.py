"""Build an image, and push it: `python -m images.build NAME [--push REGISTRY]`.

A push writes the image's digest to pipeline/images.toml, from where every compiled pipeline takes it.
"""

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path

import click

from pipeline.revision import git, revision

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "images"
IMAGES = ROOT / "pipeline" / "images.toml"
DOCKER_VARIABLE = "REASRM_DOCKER"
"""The engine's command, where `docker` is not the one that builds."""
BASE_VARIABLE = "REASRM_IMAGE_BASE"
"""The base image, by digest or from another registry; otherwise the Dockerfile's."""
FILES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "stage": ("stage.Dockerfile", {}),
    "train": ("train.Dockerfile", {"VARIANT": "gpu"}),
    "train-cpu": ("train.Dockerfile", {"VARIANT": "cpu"}),
}


@click.command()
@click.argument("name", type=click.Choice(list(FILES)))
@click.option("--push", metavar="REGISTRY", help="push there, and write the digest to pipeline/images.toml")
@click.option("--pip-config", type=click.Path(exists=True), help="pip.conf of an index of your own; not kept")
def main(name: str, push: str | None, pip_config: str | None) -> None:
    """Build the image NAME from the working tree."""
    tag = build(name, pip_config=pip_config)
    click.echo(f"built {tag}")
    if push:
        image = push_image(tag, push)
        IMAGES.write_text(with_image(IMAGES.read_text(encoding="utf-8"), name, image), encoding="utf-8")
        click.echo(f"pushed {image}")


def build(name: str, *, pip_config: str | None = None) -> str:
    """Build an image from the working tree and return its tag."""
    tag = f"reasrm/{name}:{version()}"
    subprocess.run(command(name, tag, pip_config), cwd=ROOT, check=True, env=os.environ | {"DOCKER_BUILDKIT": "1"})
    return tag


def command(name: str, tag: str, pip_config: str | None = None) -> list[str]:
    """Return the command that builds an image."""
    file, arguments = FILES[name]
    arguments = {**arguments, "VERSION": version(), "REVISION": revision()}
    arguments["CREATED"] = git("log", "-1", "--format=%cI")
    if os.environ.get(BASE_VARIABLE):
        arguments["BASE"] = os.environ[BASE_VARIABLE]
    if name == "train-cpu" and any(FOLDER.glob("wheels/torch-*")):
        arguments["TORCH_INDEX"] = ""
    given = [part for key, value in arguments.items() for part in ("--build-arg", f"{key}={value}")]
    secret = ["--secret", f"id=pip.conf,src={pip_config}"] if pip_config else []
    return [engine(), "build", "--file", f"images/{file}", "--tag", tag, *given, *secret, "."]


def push_image(tag: str, registry: str) -> str:
    """Push an image and return its name with its digest."""
    there = f"{registry.rstrip('/')}/{tag}"
    subprocess.run([engine(), "tag", tag, there], check=True)
    subprocess.run([engine(), "push", "--quiet", there], check=True)
    shown = subprocess.run(
        [engine(), "image", "inspect", "--format", "{{join .RepoDigests \"\\n\"}}", there],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return next(line for line in shown.stdout.splitlines() if line.startswith(f"{there.rpartition(':')[0]}@sha256:"))


def with_image(text: str, name: str, image: str) -> str:
    """Return images.toml with another image of that name; comments stay."""
    changed, count = re.subn(rf'(?m)^(\[{re.escape(name)}\]\nimage = )".*"$', rf'\g<1>"{image}"', text)
    if count != 1:
        raise click.ClickException(f"{IMAGES} has no section [{name}] that begins with its image")
    return changed


def version() -> str:
    """Return the project's version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return str(project["project"]["version"])


def engine() -> str:
    """Return the container engine's command."""
    return os.environ.get(DOCKER_VARIABLE) or shutil.which("docker") or "docker"


if __name__ == "__main__":
    main()
