"""Make the base image where no registry is in reach: `python -m images.base`; needs root, mmdebstrap and an engine.

Debian 12 with its own Python 3.11, from the Debian mirror that this machine uses, under the name of the upstream image
that the Dockerfiles start from. For trials and tests: what goes to a cluster starts from the upstream image.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import click

from images.build import engine

NAME = "python:3.11-slim-bookworm"
SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
DOCKERFILE = """
FROM reasrm-base:raw
COPY certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PIP_CERT=/etc/ssl/certs/ca-certificates.crt
RUN rm /usr/lib/python3*/EXTERNALLY-MANAGED \\
    && ln -s /usr/bin/python3 /usr/local/bin/python && ln -s /usr/bin/python3 /usr/local/bin/python3
"""


@click.command()
@click.option("--mirror", help="Debian mirror; default: the one of this machine's apt")
def main(mirror: str | None) -> None:
    """Make the base image from Debian packages."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        folder.chmod(0o755)  # apt downloads as a user of its own
        make_root(folder / "root.tar", mirror or apt_mirror())
        path = "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8"
        subprocess.run([engine(), "import", "--change", path, str(folder / "root.tar"), "reasrm-base:raw"], check=True)
        (folder / "root.tar").unlink()
        shutil.copyfile(CERTIFICATES, folder / "certificates.crt")
        (folder / "Dockerfile").write_text(DOCKERFILE, encoding="utf-8")
        subprocess.run([engine(), "build", "--tag", NAME, str(folder)], check=True)
    click.echo(f"made {NAME}")


def make_root(archive: Path, mirror: str) -> None:
    """Write the root file system of a small Debian 12 with Python."""
    left_out = [f"--dpkgopt=path-exclude=/usr/share/{what}/*" for what in ("doc", "man")]
    command = ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", '--aptopt=Acquire::Languages "none"']
    subprocess.run([*command, *left_out, "bookworm", str(archive), mirror], check=True)


def apt_mirror() -> str:
    """Return the mirror of this machine's apt. Raises click.ClickException where there is none."""
    for path in SOURCES:
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            if line.startswith(("URIs:", "deb ")):
                return next(word for word in line.split() if "://" in word)
    raise click.ClickException("no Debian mirror in /etc/apt; give one with --mirror")


if __name__ == "__main__":
    main()
