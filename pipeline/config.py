"""A run's whole configuration: the plain parameters that KFP's UI shows, and the settings of each stage.

A recipe is a TOML file of both. What several stages must agree on stands at its top and is handed to each of them. With
`extends` a recipe says only how it differs from another one.
"""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from components.benchmark.config import Config as BenchmarkConfig
from components.core.errors import InvalidInput
from components.core.sources import BenchmarkSettings, Day, Source
from components.core.teachers import BatchTeacher, Cascade
from components.core.verdict import Grammar
from components.filter.config import Config as FilterConfig
from components.grpo.config import Config as GrpoConfig
from components.prepare.config import Config as PrepareConfig
from components.publish.config import Config as PublishConfig
from components.sft.config import Config as SftConfig
from components.traces.config import Config as TracesConfig

RECIPES = Path(__file__).parent / "recipes"
MAX_PARAMETER_BYTES = 10_000
PROFILE_BYTES = 700  # what the parameters of a profile can take
MAX_PARTS = 16  # KFP has trouble with long loops
PARTS = ("traces_parts", "benchmark_parts")

# Stage -> its setting -> the plain parameter that it comes from; `components/<stage>/component.py` does the same.
SHARED: Mapping[str, Mapping[str, str]] = {
    "prepare": {
        "sources": "preference_data",
        "data_until": "data_until",
        "benchmarks": "benchmarks",
        "seed": "seed",
    },
    "traces": {"teacher": "teacher", "grammar": "grammar"},
    "filter": {"grammar": "grammar"},
    "sft": {"base_model": "base_model", "seed": "seed"},
    "grpo": {"grammar": "grammar", "seed": "seed"},
    "benchmark": {"base_model": "base_model", "benchmarks": "benchmarks", "grammar": "grammar", "seed": "seed"},
    "publish": {"model_name": "model_name"},
}
JSON_PARAMETERS = frozenset({"preference_data", "benchmarks", "teacher"})
DECIDED_BY_GATE = {"publish": {"promote"}}


class RunConfig(BaseModel):
    """Everything that decides what a run does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preference_data: tuple[Source, ...] = Field(min_length=1)
    """Preference data: uris, or tables of uri, format, revision, select and weight."""
    data_until: Day = ""
    """Files of preference data whose path names a later day (YYYY-MM-DD) are left alone; empty: all are read."""
    benchmarks: tuple[BenchmarkSettings, ...] = ()
    """Benchmarks: their questions are kept out of training, and the judges are measured on them."""
    base_model: str = Field(min_length=1)
    """The model to start from: a folder, an s3:// uri, or a hub id with @<40-hex revision>."""
    teacher: Cascade
    """Who writes the judgments to learn from: one teacher, or a list asked in turn; none if nothing is distilled."""
    grammar: Grammar = "rubric"
    """The form of a judgment: `rubric` or `think`."""
    model_name: str = Field(min_length=1)
    """Name in the model registry."""
    artifact_root: str = Field("s3://reasrm/artifacts", pattern=r"^s3://[^/]+(/.*)?$")
    """S3 prefix of all artifacts."""
    experiment: str = Field("reasrm", min_length=1)
    """MLflow experiment."""
    seed: int = Field(0, ge=0)
    """Seed of splits, training and intervals."""
    recipe: str = Field("", exclude=True)
    """What runs are shown to come from; empty: the recipe file's name."""
    traces_parts: int = Field(1, ge=1, le=MAX_PARTS)
    """Tasks that ask the teachers at the same time, each for its share of the pairs."""
    benchmark_parts: int = Field(1, ge=1, le=MAX_PARTS)
    """Tasks that judge at the same time, each its share of the questions."""

    prepare: PrepareConfig
    traces: TracesConfig
    filter: FilterConfig
    sft: SftConfig
    grpo: GrpoConfig
    benchmark: BenchmarkConfig
    publish: PublishConfig

    @model_validator(mode="before")
    @classmethod
    def _share(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        shared = {name: field.default for name, field in cls.model_fields.items() if not field.is_required()} | values
        filled = dict(values)
        for stage, names in SHARED.items():
            section = filled.get(stage, {})
            if not isinstance(section, dict):
                continue
            for name, parameter in names.items():
                if name in section:
                    raise ValueError(f"{stage}.{name} is shared: set {parameter} at the top instead")
            filled[stage] = section | {name: shared[p] for name, p in names.items() if p in shared}
        return filled

    @model_validator(mode="after")
    def _fits_into_parameters(self) -> Self:
        size = len(json.dumps(self.arguments(), ensure_ascii=False).encode()) + PROFILE_BYTES
        if size > MAX_PARAMETER_BYTES:
            raise ValueError(f"the parameters take {size} bytes, KFP allows {MAX_PARAMETER_BYTES}: shorten the lists")
        return self

    @model_validator(mode="after")
    def _distils_all_the_way_or_not_at_all(self) -> Self:
        share, epochs = self.prepare.distil_share, self.sft.epochs
        if (share == 0) != (epochs == 0):
            raise ValueError(f"prepare.distil_share is {share:g} and sft.epochs is {epochs}: set both to 0, or neither")
        if share > 0 and not self.teacher:
            raise ValueError(
                f"teacher is an empty list, but prepare.distil_share is {share:g}: name a teacher, or distil nothing"
            )
        return self

    @model_validator(mode="after")
    def _can_be_done_in_parts(self) -> Self:
        if self.traces_parts > 1 and any(isinstance(teacher, BatchTeacher) for teacher in self.teacher):
            raise ValueError(f"traces_parts is {self.traces_parts}: a batch is sent by one task, set traces_parts to 1")
        return self

    @model_validator(mode="after")
    def _gate_can_be_passed(self) -> Self:
        names = [benchmark.name for benchmark in self.benchmarks]
        for name in self.publish.suites:
            if name not in names:
                raise ValueError(f"publish.suites has {name!r}, which is none of the benchmarks ({', '.join(names)})")
        if self.publish.max_flip_rate is not None and not self.benchmark.attacks:
            raise ValueError('publish.max_flip_rate needs benchmark.attacks; set them, or max_flip_rate = "off"')
        champion, guarded = self.benchmark.champion, f"{self.model_name}@{self.publish.alias}"
        if self.publish.margin is not None and champion not in ("", guarded):
            raise ValueError(
                f"benchmark.champion is {champion!r}, but the gate compares with {guarded!r}: set it to that, or "
                'publish.margin = "off"'
            )
        if self.publish.judge not in self.benchmark.models:
            raise ValueError(f"publish.judge is {self.publish.judge!r}: put it into benchmark.models")
        return self

    def arguments(self) -> dict[str, str | int | list[str]]:
        """Return the pipeline's parameters: plain ones, lists as JSON, one JSON text per stage, and what loops go over.

        A loop goes over texts like "2/4", the second of four parts.
        """
        plain = {name: value for name, value in self.model_dump(mode="json").items() if name not in {*SHARED, *PARTS}}
        stages = {f"{stage}_config": self.stage_settings(stage) for stage in SHARED}
        loops: dict[str, list[str]] = {name: _parts(getattr(self, name)) for name in PARTS}
        return loops | {
            name: value if isinstance(value, str | int) else json.dumps(value, sort_keys=True, ensure_ascii=False)
            for name, value in (plain | stages).items()
        }

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "RunConfig":
        """Return the configuration that pipeline parameters stand for; those that are none of ours are left out.

        Raises InvalidInput naming every value that is wrong.
        """
        values: dict[str, Any] = {}
        for name, value in arguments.items():
            stage = name.removesuffix("_config")
            if name in PARTS:
                values[name] = _count_parts(name, value)
            elif name in JSON_PARAMETERS or (stage != name and stage in SHARED):
                values[stage] = _parse(name, value)
            elif name in cls.model_fields:
                values[name] = value
        return _validated(values, "the run's parameters")

    def stage_settings(self, stage: str) -> dict[str, Any]:
        """Return a stage's settings without those that come from the plain parameters or from the gate."""
        config: BaseModel = getattr(self, stage)
        return config.model_dump(mode="json", exclude={*SHARED[stage], *DECIDED_BY_GATE.get(stage, ())})


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the project."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def recipe_path(recipe: str) -> Path:
    """Return the file of a recipe, given by its name or as a path. Raises InvalidInput naming what there is."""
    named, given = RECIPES / f"{recipe}.toml", Path(recipe)
    if recipe in recipe_names():
        return named
    if given.suffix == ".toml" and given.is_file():
        return given
    raise InvalidInput(f"there is no recipe {recipe!r}; there are {', '.join(recipe_names())}, or give a .toml file")


def load_recipe(recipe: str, settings: Iterable[str] = ()) -> RunConfig:
    """Read a recipe (a name or a .toml file) and apply settings such as `sft.epochs=2`.

    Raises InvalidInput naming every value that is wrong, and for an unknown key the closest known one.
    """
    path = recipe_path(recipe)
    values = {"recipe": path.stem} | _read(path)
    for setting in settings:
        _apply(values, setting)
    return _validated(values, f"recipe {recipe}")


def _validated(values: dict[str, Any], what: str) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise InvalidInput(f"{what}: {'; '.join(_explain(error))}") from error


def _parts(count: int) -> list[str]:
    return [f"{number}/{count}" for number in range(1, count + 1)]


def _count_parts(name: str, value: Any) -> int:
    given = _parse(name, value) if isinstance(value, str) else value
    if not isinstance(given, list) or given != _parts(len(given)):
        raise InvalidInput(f'{name} is {value!r}; for three parts write ["1/3", "2/3", "3/3"], in this order')
    return len(given)


def _parse(name: str, text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the parameter {name} is not JSON: {error}") from error


def _read(path: Path, heirs: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return a recipe's values with those of the recipe that it extends; `heirs` are the recipes that extend this one.

    Raises InvalidInput if a file is not TOML, extends what is not there, or extends itself.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not valid TOML: {error}") from error
    if "extends" not in values:
        return values
    parent = values.pop("extends")
    if not isinstance(parent, str):
        raise InvalidInput(f"{path}: extends is {parent!r}; give the name of a recipe, or a .toml file beside this one")
    beside = path.parent / parent
    try:
        source = beside if parent.endswith(".toml") and beside.is_file() else recipe_path(parent)
    except InvalidInput as error:
        raise InvalidInput(f"{path} extends what is not there: {error}") from error
    chain = (*heirs, path.resolve())
    if source.resolve() in chain:
        raise InvalidInput(f"{path} extends {source}, which extends it in turn; take one of the two out")
    return _merge(_read(source, chain), values)


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the values with the changes in them: tables are merged at every depth, anything else is replaced."""
    merged = dict(values)
    for name, change in changes.items():
        old = merged.get(name)
        merged[name] = _merge(old, change) if isinstance(old, dict) and isinstance(change, dict) else change
    return merged


def _apply(values: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not name:
        raise InvalidInput(f"--set {setting!r} is not a setting; write it as sft.epochs=2")
    for place, section in enumerate(sections):
        values = _enter(values, section, [*sections[place + 1 :], name], setting)
    try:
        values[name] = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        values[name] = text.strip()


def _enter(values: Any, section: str, rest: list[str], setting: str) -> dict[str, Any]:
    """Return the table of this name; in a list of tables (teacher.1.model) the name is a number, from 0."""
    if isinstance(values.get(section), list):
        if len(rest) < 2 or not rest[0].isdigit():
            raise InvalidInput(
                f"--set {setting!r}: {section} is a list; write {section}.0.{rest[-1]}, or set all of it"
            )
        return dict(enumerate(values[section]))  # type: ignore[arg-type]
    inner = values.get(int(section)) if section.isdigit() else values.setdefault(section, {})
    if not isinstance(inner, dict):
        raise InvalidInput(f"--set {setting!r}: {section} is a value or not there, not a section")
    return inner


def _explain(error: ValidationError) -> list[str]:
    lines = []
    for detail in error.errors(include_url=False):
        location = [str(part) for part in detail["loc"]]
        if len(location) > 1 and location[1] in SHARED.get(location[0], {}):
            continue  # said once, for the plain parameter
        name = _name(location)
        if detail["type"] == "extra_forbidden":
            lines.append(_unknown(location))
        elif detail["type"] == "missing":
            lines.append(f"{name} is missing; set it in the recipe or with --set {name}=...")
        else:
            value = f" (is {detail['input']!r})" if not isinstance(detail["input"], dict) else ""
            message = detail["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {message}{value}" if name else message)
    return lines


def _unknown(location: list[str]) -> str:
    known = _known_keys(RunConfig)
    section = _name(location[:-1])
    prefix = f"{section}." if section else ""
    name = f"{prefix}{location[-1]}"
    siblings = [key.removeprefix(prefix) for key in known if key.startswith(prefix)]
    siblings = [key for key in siblings if "." not in key]
    close = difflib.get_close_matches(location[-1], siblings, n=1)
    hint = f"did you mean {prefix}{close[0]}?" if close else f"there are {', '.join(prefix + key for key in siblings)}"
    return f"there is no setting {name}; {hint}"


def _name(location: list[str]) -> str:
    """Return the dotted key as a user writes it: pydantic puts places in lists and kinds of union members between."""
    known, name = _known_keys(RunConfig), ""
    for part in location:
        longer = f"{name}.{part}" if name else part
        if longer in known or part == location[-1] == location[0]:
            name = longer
    return name


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return every settable key, dotted; of a union, the keys of all its members."""
    keys = []
    for name, field in model.model_fields.items():
        if name in SHARED.get(prefix.rstrip("."), {}):
            continue
        keys.append(prefix + name)
        for kind in _models_in(field.annotation):
            keys += [key for key in _known_keys(kind, f"{prefix}{name}.") if key not in keys]
    return keys


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _models_in(part)]
