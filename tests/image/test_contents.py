"""What is in each image, and what a process in it may do."""

import json
import re
from pathlib import Path

from images.build import version

ROOT = Path(__file__).parents[2]
LIST = (
    "import importlib.metadata, json\n"
    "print(json.dumps({one.name: one.version for one in importlib.metadata.distributions()}))"
)
MAX_BYTES = {"reasrm/stage": 1.3e9, "reasrm/train-cpu": 3e9}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(image) -> dict[str, str]:
    """Packages that the locks of an image name, with the project itself."""
    names = {"reasrm/stage": ["stage", "kfp"], "reasrm/train-cpu": ["train-cpu", "kfp", "deepspeed"]}
    texts = [(ROOT / "images" / f"{name}.lock").read_text("utf-8") for name in names[image.tag.partition(":")[0]]]
    found = re.findall(r"(?m)^([A-Za-z0-9._-]+)==(\S+)", "\n".join(texts))
    return {normal(name): version for name, version in found} | {"reasrm": version()}


def test_it_holds_what_the_locks_name_and_nothing_else(image):
    found = {normal(name): number for name, number in json.loads(image.run("python3", "-c", LIST)).items()}
    assert found == locked(image)


def test_its_list_of_parts_is_complete(image):
    bill = json.loads(image.run("cat", "/usr/share/reasrm/sbom.json"))
    assert bill["bomFormat"] == "CycloneDX"
    assert {normal(part["name"]): part["version"] for part in bill["components"]} == locked(image)


def test_it_says_what_it_is_and_is_no_larger_than_it_was(image):
    known = image.inspect()
    labels = {
        name.removeprefix("org.opencontainers.image."): value for name, value in known["Config"]["Labels"].items()
    }
    assert labels["version"] == version()
    assert labels["revision"] != "unknown"
    assert known["Config"]["User"] == "10001:0"
    assert known["Size"] < MAX_BYTES[image.tag.partition(":")[0]]


def test_a_process_writes_to_its_work_folder_alone(image):
    folders = "/scratch /scratch/home /scratch/cache /tmp"
    script = f"for folder in {folders}; do mkdir -p $folder && touch $folder/file || exit 1; done"
    image.run("sh", "-c", script)
    found = image.run("sh", "-c", "find / -xdev -writable \\( -type f -o -type d \\) 2>/dev/null || true")
    assert [path for path in found.splitlines() if not path.startswith(("/proc", "/dev", "/scratch", "/tmp"))] == []


def test_nothing_can_be_installed(image):
    assert "No module named pip" in image.run("python3", "-m", "pip", "--version", code=1)


def test_one_image_for_every_project_version_has_its_data_files(image):
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "components").rglob("*") if path.is_file()}
    wanted = {path for path in files if "__pycache__" not in path}
    script = "cd $(python3 -c 'import components, pathlib; print(pathlib.Path(components.__file__).parents[1])')"
    assert wanted <= set(image.run("sh", "-c", f"{script} && find components -type f").split())
