"""What every image keeps to, read from the Dockerfiles and locks; tests/image runs them."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from components.core.redact import secret_values
from images import base, build, locks

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "images"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NAMES = ("stage.Dockerfile", "train.Dockerfile")
LABELS = {"title", "description", "version", "revision", "created", "licenses", "base.name"}
CACHES = ("XDG_CACHE_HOME", "HF_HOME", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR")


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments, lines joined and comments dropped."""
    lines = [line for line in (IMAGES / name).read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def arguments(name: str, instruction: str) -> list[str]:
    return [rest for word, rest in instructions(name) if word == instruction]


def variables(name: str, instruction: str) -> dict[str, str]:
    """Variables that the Dockerfile sets with ENV or ARG."""
    words = " ".join(arguments(name, instruction)).split()
    return {word.partition("=")[0]: word.partition("=")[2].strip('"') for word in words}


def requirements(path: Path) -> dict[str, str]:
    """Packages and bounds of a *.in file, without those of the files that it includes."""
    lines = [line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines()]
    return bounds(line for line in lines if line and not line.startswith("--"))


def bounds(texts) -> dict[str, str]:
    found = [Requirement(text) for text in texts]
    return {one.name: str(one.specifier) for one in found if one.name != "reasrm"}


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Packages of a lock: version, and how many digests pip accepts."""
    entries = re.split(r"\n(?=\S)", (IMAGES / f"{name}.lock").read_text("utf-8").strip())
    found = {}
    for entry in entries:
        head = re.match(r"([A-Za-z0-9._-]+)==(\S+) \\\n", entry)
        assert head, f"{name}.lock: not a pinned package with digests: {entry[:80]}"
        assert "/" not in entry, f"{name}.lock names an address: {entry[:80]}"
        found[normal(head[1])] = (head[2], len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry)))
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return {normal(name): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("name", NAMES)
def test_hadolint_has_nothing_to_say(name):
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert hadolint, "hadolint is not installed; it is in the extra `dev`"
    command = [hadolint, "--config", str(IMAGES / ".hadolint.yaml"), "--failure-threshold", "style", name]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=IMAGES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", NAMES)
def test_every_process_is_an_ordinary_user_of_group_0(name):
    assert arguments(name, "USER") == ["10001:0"]
    assert instructions(name)[-1][0] == "CMD"


@pytest.mark.parametrize("name", NAMES)
def test_the_base_is_one_argument_with_a_version(name):
    stages = {"${BASE}"}
    for line in arguments(name, "FROM"):
        source, _, stage = line.partition(" AS ")
        assert source in stages
        stages |= {stage} - {""}
    assert instructions(name)[0] == ("ARG", f"BASE={base.NAME}")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_comes_in_unchecked(name):
    text = (IMAGES / name).read_text("utf-8")
    assert "latest" not in text
    assert not re.search(r"(?m)^#\s*syntax=", text)  # it would pull a program that nobody has pinned
    assert not re.search(r"\b(curl|wget|git)\b|https?://(?!download\.pytorch\.org/whl/cpu$)", text, re.MULTILINE)
    assert arguments(name, "ADD") == []
    commands = [part for line in arguments(name, "RUN") for part in line.split("&& ") if re.search(r"[/ ]pip\s", part)]
    assert len(commands) >= 4
    for command in commands:
        assert "--require-hashes" in command or "--no-index" in command, command


@pytest.mark.parametrize("name", NAMES)
def test_no_secret_has_a_place(name):
    named = variables(name, "ENV") | variables(name, "ARG")
    assert secret_values(dict.fromkeys(named, "something long")) == ()


@pytest.mark.parametrize("name", NAMES)
def test_labels_say_what_it_is(name):
    found = set(re.findall(r"org\.opencontainers\.image\.([a-z.]+)=", " ".join(arguments(name, "LABEL"))))
    assert found == LABELS


@pytest.mark.parametrize("name", NAMES)
def test_all_that_is_written_goes_below_work(name):
    env = variables(name, "ENV")
    assert env["REASRM_WORKDIR"] == "/scratch"
    assert env["HOME"] == "/scratch/home"
    wanted = CACHES if name == "train.Dockerfile" else CACHES[:2]
    assert all(env[cache].startswith("/scratch/cache") for cache in wanted)
    folders = {key for key in env if re.search(r"CACHE|HOME|DIR$|_BASE$", key) and not key.startswith("PIP_")}
    assert {key for key in folders if not env[key].startswith("/scratch")} <= {"CUDA_HOME"}


def test_the_images_differ_only_where_they_must():
    stage, train = (variables(name, "ENV") for name in NAMES)
    for place in ("PIP_NO_CACHE_DIR", "PIP_ONLY_BINARY"):
        stage.pop(place, None)
    assert stage.items() <= train.items()
    last = [[line for line in instructions(name) if line[0] in {"COPY", "WORKDIR", "USER"}][-3:] for name in NAMES]
    assert last[0] == last[1]


def test_the_engine_gets_only_what_the_images_are_made_of():
    lines = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        word for name in NAMES for line in arguments(name, "COPY") if "--from" not in line for word in line.split()[:-1]
    }
    assert {re.sub(r"images/\S+\.lock", "images/*.lock", word) for word in copied} | {"images/wheels"} == allowed


def test_the_images_hold_what_the_extras_name():
    stage = bounds([*PROJECT["dependencies"], *EXTRAS["stage"]])
    kfp = {name: stage.pop(name) for name in sorted(stage) if name.startswith("kfp")}
    assert requirements(IMAGES / "stage.in") == stage
    assert requirements(IMAGES / "kfp.in") == {"kfp": kfp["kfp"]}
    assert requirements(IMAGES / "train-cpu.in") == bounds([*EXTRAS["train"], *EXTRAS["serve"]])
    gpu = requirements(IMAGES / "train-gpu.in")
    assert gpu.pop("vllm").startswith("==")
    assert gpu == bounds(EXTRAS["gpu"])
    assert requirements(IMAGES / "deepspeed.in").items() <= bounds(EXTRAS["train"]).items()


@pytest.mark.parametrize("name", sorted(locks.LOCKS))
def test_a_lock_pins_and_digests_all_that_was_asked_for(name):
    found = locked(name)
    assert all(digests >= 1 for _, digests in found.values())
    files = [name, *{"train-cpu": ["stage"], "train-gpu": ["stage", "train-cpu"]}.get(name, [])]
    for file in files:
        for package, bound in requirements(IMAGES / f"{file}.in").items():
            if package == "deepspeed" and name != "deepspeed":  # built apart
                assert "deepspeed" not in found
            else:
                assert Requirement(f"x{bound}").specifier.contains(found[normal(package)][0]), package


@pytest.mark.parametrize("name", ["stage", "train-cpu", "kfp", "deepspeed"])
def test_an_image_has_the_versions_that_were_tested(name):
    tested = pinned(ROOT / "constraints.txt")
    assert {
        package: version
        for package, (version, _) in locked(name).items()
        if version.removesuffix("+cpu") != tested.get(package, version)
    } == {}


def test_the_gpu_image_has_what_was_tested_where_vllm_lets_it():
    pins = pinned(IMAGES / "train-gpu.pins")
    assert pins.items() <= pinned(ROOT / "constraints.txt").items()
    found = locked("train-gpu")
    assert all(found[package][0] == version for package, version in pins.items() if package != "deepspeed")
    direct = {normal(name) for file in ("train-cpu", "train-gpu") for name in requirements(IMAGES / f"{file}.in")}
    assert direct - set(pins) == {"fastapi", "liger-kernel", "vllm"}


def test_only_the_cpu_image_has_the_cpu_build_of_torch():
    assert locked("train-cpu")["torch"][0].endswith("+cpu")
    assert "+" not in locked("train-gpu")["torch"][0]
    assert "torch" not in locked("stage")
    assert not [package for package in locked("train-cpu") if package.startswith("nvidia")]


def test_images_toml_names_every_image_by_digest_or_version():
    named = tomllib.loads(build.IMAGES.read_text("utf-8"))
    assert set(named) == set(build.FILES)
    for name, section in named.items():
        assert set(section) == {"image"}
        assert re.fullmatch(rf"reasrm/{name}:{PROJECT['version']}|\S+/{name}@sha256:[0-9a-f]{{64}}", section["image"])


def test_a_push_changes_one_line_of_images_toml():
    before = build.IMAGES.read_text("utf-8")
    digest = f"registry.example/reasrm/train@sha256:{'0' * 64}"
    after = build.with_image(before, "train", digest)
    changed = [pair for pair in zip(before.splitlines(), after.splitlines(), strict=True) if pair[0] != pair[1]]
    assert [new for _, new in changed] == [f'image = "{digest}"']
    assert tomllib.loads(after)["train"] == {"image": digest}
    with pytest.raises(build.click.ClickException, match="no section"):
        build.with_image(before, "other", digest)


def test_the_build_command_says_version_revision_and_variant(monkeypatch):
    monkeypatch.setenv(build.BASE_VARIABLE, "mirror.example/python@sha256:1")
    command = build.command("train-cpu", "reasrm/train-cpu:0.1.0", "pip.conf")
    given = dict(part.split("=", 1) for part in command if "=" in part and not part.startswith("id="))
    assert given["VARIANT"] == "cpu"
    assert given["VERSION"] == PROJECT["version"]
    assert given["BASE"] == "mirror.example/python@sha256:1"
    assert {"REVISION", "CREATED"} <= set(given)
    assert command[command.index("--secret") + 1] == "id=pip.conf,src=pip.conf"
    assert command[-1] == "."


@pytest.mark.parametrize(
    "line", ["URIs: http://mirror.example/debian", "deb [arch=amd64] http://mirror.example/debian bookworm main"]
)
def test_the_base_comes_from_the_mirror_of_apt(line, tmp_path, monkeypatch):
    (tmp_path / "sources").write_text(f"# a comment\n{line}\n", "utf-8")
    monkeypatch.setattr(base, "SOURCES", (tmp_path / "none", tmp_path / "sources"))
    assert base.apt_mirror() == "http://mirror.example/debian"


def test_the_base_needs_a_mirror(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "SOURCES", (tmp_path / "none",))
    with pytest.raises(base.click.ClickException, match="--mirror"):
        base.apt_mirror()
