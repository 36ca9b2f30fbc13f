import importlib
import json
import tomllib

import pytest

from components.core.errors import InvalidInput
from components.core.manifest import STAGES
from pipeline.compiler import arguments_for
from pipeline.config import DECIDED_BY_GATE, RECIPES, SHARED, RunConfig, load_recipe
from pipeline.dag import build
from pipeline.placement import TABLE, Here
from pipeline.profile import load_profile

COMMON = {
    "config",
    "artifact_root",
    "experiment",
    "content",
    "training_job",
    "parts",
    "since",
    "warm_start",
}  # preflight's too


def test_arguments_are_the_parameters_of_the_pipeline():
    arguments = arguments_for(load_recipe("demo"), load_profile("gpu"))
    assert set(arguments) == set(build().component_spec.inputs)


def test_arguments_lead_back_to_the_same_configuration():
    config = load_recipe("demo", ["traces_parts=3", "data_until=2026-11-16"])
    assert config.arguments()["traces_parts"] == ["1/3", "2/3", "3/3"]
    found = RunConfig.from_arguments(arguments_for(config, load_profile("gpu")))
    assert (config.recipe, found.recipe) == ("demo", "")  # it is in the environment
    assert found == config.model_copy(update={"recipe": ""})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft_config": "{"}, "the parameter sft_config is not JSON"),
        ({"sft_config": '{"epoch": 2}', "seed": -1}, r"(?s)seed: .*did you mean sft\.epochs"),
        ({"traces_parts": ["1/2", "2/3"]}, r"traces_parts is .*; for three parts write"),
        ({"teacher": '{"kind": "owl"}'}, "teacher"),
        ({"data_until": "schedule"}, "data_until"),
    ],
)
def test_wrong_parameters_are_named(changes, message):
    with pytest.raises(InvalidInput, match=message):
        RunConfig.from_arguments(load_recipe("demo").arguments() | changes)


def test_what_is_shared_is_what_the_components_hand_over():
    for stage in STAGES:
        component = getattr(importlib.import_module(f"components.{stage}.component"), stage)
        inputs = component.component_spec.inputs
        plain = {name for name, kind in inputs.items() if not kind.type.startswith("system.")}
        assert plain - COMMON == set(SHARED[stage].values()) | DECIDED_BY_GATE.get(stage, set()), stage


def test_shared_values_reach_every_stage():
    config = load_recipe("demo", ["seed=11", "grammar=think", "base_model=s3://models/base"])
    assert {config.prepare.seed, config.sft.seed, config.grpo.seed, config.benchmark.seed} == {11}
    assert {config.traces.grammar, config.filter.grammar, config.grpo.grammar, config.benchmark.grammar} == {"think"}
    assert config.sft.base_model == config.benchmark.base_model == "s3://models/base"


@pytest.mark.parametrize(
    ("setting", "value"),
    [("sft.epochs=2", 2), ("sft.epochs = 3 ", 3)],
)
def test_settings_from_the_command_line(setting, value):
    assert load_recipe("demo", [setting]).sft.epochs == value


def test_a_cascade_is_a_list_of_tables_and_its_members_can_be_set(tmp_path):
    text = (RECIPES / "demo.toml").read_text("utf-8")
    second = '[[teacher]]\nkind = "openai"\nbase_url = "http://h/v1"\nmodel = "m"\nshow_label = true\n\n[prepare]'
    path = tmp_path / "cascade.toml"
    path.write_text(text.replace("[teacher]", "[[teacher]]").replace("[prepare]", second), "utf-8")
    config = load_recipe(str(path), ["teacher.1.model=n", "teacher.1.calls.concurrency=3"])
    assert [teacher.kind for teacher in config.teacher] == ["recorded", "openai"]
    assert (config.teacher[1].model, config.teacher[1].calls.concurrency) == ("n", 3)
    assert config.traces.teacher == config.teacher
    for setting, words in {
        "teacher.2.model=x": "2 is a value or not there",
        "teacher.1.modl=x": "no setting teacher.modl; did you mean teacher.model",
        "teacher.1.samples=0": "teacher.samples",
    }.items():
        with pytest.raises(InvalidInput, match=words):
            load_recipe(str(path), [setting])


def test_a_later_setting_wins_and_text_needs_no_quotes():
    config = load_recipe("demo", ["model_name=one", "model_name=two", "teacher.uri=s3://b/t.jsonl"])
    assert config.model_name == "two"
    assert [teacher.uri for teacher in config.teacher] == ["s3://b/t.jsonl"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("sft.epoch=2", ["no setting sft.epoch", "sft.epochs"]),
        ("stf.epochs=2", ["no setting stf", "sft"]),
        ("prepare.zzzzqq=1", ["no setting prepare.zzzzqq", "prepare.distil_share"]),
        ("sft.max_length=0", ["sft.max_length", "greater than or equal to 16", "0"]),
        ("sft.seed=1", ["sft.seed is shared", "set seed at the top"]),
        ("seed=-1", ["seed", "-1"]),
        ("teacher.url=x", ["no setting teacher.url", "teacher.uri"]),
        ("artifact_root=/tmp/x", ["artifact_root", "/tmp/x"]),
        ("sft", ["'sft'", "sft.epochs=2"]),
        ("seed.x=1", ["seed is a value"]),
        ("grpo.micro_batch_size=5", ["grpo", "1 x 5 must divide prompts_per_step"]),
    ],
)
def test_a_wrong_setting_says_what_and_which_value_and_what_to_do(setting, words):
    with pytest.raises(InvalidInput) as caught:
        load_recipe("demo", [setting])
    for word in words:
        assert word in str(caught.value)


def test_a_wrong_shared_value_is_said_once():
    with pytest.raises(InvalidInput) as caught:
        load_recipe("demo", ["grammar=rubrik"])
    assert str(caught.value).count("rubrik") == 1


def test_an_unknown_recipe_names_what_there_is():
    with pytest.raises(InvalidInput, match=r"no recipe 'nope'; there are .*demo.*smoke"):
        load_recipe("nope")


def test_a_recipe_of_the_users_own(tmp_path):
    text = (RECIPES / "demo.toml").read_text("utf-8")
    (tmp_path / "mine.toml").write_text(text.replace("seed = 7", "seed = 8"), "utf-8")
    assert load_recipe(str(tmp_path / "mine.toml")).seed == 8


def write(folder, name, text):
    path = folder / f"{name}.toml"
    path.write_text(text, "utf-8")
    return str(path)


def test_a_recipe_that_extends_another_says_only_what_differs(tmp_path):
    extended, demo = load_recipe(write(tmp_path, "mine", 'extends = "demo"\n[sft]\nepochs = 2\n')), load_recipe("demo")
    assert extended == demo.model_copy(update={"recipe": "mine", "sft": demo.sft.model_copy(update={"epochs": 2})})


def test_tables_are_merged_at_every_depth_and_lists_are_replaced(tmp_path):
    parent = """extends = "demo"
preference_data = ["one.jsonl", "two.jsonl"]
[grpo.rewards]
form = 0.25
[grpo.rollouts]
batch_size = 8
[[benchmarks]]
name = "X"
uri = "s3://bucket/x"
"""
    write(tmp_path, "parent", parent)
    child = write(
        tmp_path,
        "child",
        'extends = "parent.toml"\npreference_data = ["three.jsonl"]\nbenchmarks = []\n[grpo.rewards]\nverdict = 0.5\n',
    )
    config = load_recipe(child, ["grpo.rewards.form=0.125"])
    assert [source.uri for source in config.preference_data] == ["three.jsonl"]
    assert config.benchmarks == ()
    assert config.grpo.rewards.weights == {"verdict": 0.5, "form": 0.125}
    assert config.grpo.rollouts.batch_size == 8
    assert config.grpo.steps == load_recipe("demo").grpo.steps


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('extends = "nope"', r"mine\.toml extends what is not there: there is no recipe 'nope'; there are .*demo"),
        ('extends = "nope.toml"', r"mine\.toml extends what is not there: there is no recipe 'nope\.toml'"),
        ('extends = ["demo"]', r"extends is \['demo'\]; give the name of a recipe, or a \.toml file beside this one"),
        ('extends = "mine.toml"', "extends it in turn; take one of the two out"),
        ('extends = "other.toml"', "extends it in turn; take one of the two out"),
        ('extends = "broken.toml"', r"broken\.toml is not valid TOML"),
    ],
)
def test_a_recipe_that_cannot_be_extended_is_named(text, words, tmp_path):
    write(tmp_path, "other", 'extends = "mine.toml"')
    write(tmp_path, "broken", "seed = = 1")
    with pytest.raises(InvalidInput, match=words):
        load_recipe(write(tmp_path, "mine", text))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["prepare.distil_share=0"], r"distil_share is 0 and sft\.epochs is 1: set both to 0, or neither"),
        (["sft.epochs=0"], r"distil_share is 0\.4 and sft\.epochs is 0: set both to 0, or neither"),
        (
            ["teacher=[]"],
            r"teacher is an empty list, but prepare\.distil_share is 0\.4: name a teacher, or distil nothing",
        ),
    ],
)
def test_distilling_half_of_the_way_is_refused(settings, words):
    with pytest.raises(InvalidInput, match=words):
        load_recipe("demo", settings)


def test_a_run_that_distils_nothing_needs_no_teacher():
    config = load_recipe("demo", ["prepare.distil_share=0", "sft.epochs=0", "teacher=[]"])
    assert config.teacher == config.traces.teacher == ()
    assert config.arguments()["teacher"] == "[]"


def test_broken_toml_is_named(tmp_path):
    (tmp_path / "broken.toml").write_text("seed = = 1", "utf-8")
    with pytest.raises(InvalidInput, match=r"broken\.toml is not valid TOML"):
        load_recipe(str(tmp_path / "broken.toml"))


def test_a_missing_value_says_how_to_set_it(tmp_path):
    values = (RECIPES / "demo.toml").read_text("utf-8").replace('model_name = "reasrm-demo"\n', "")
    assert "model_name" not in tomllib.loads(values)
    (tmp_path / "mine.toml").write_text(values, "utf-8")
    with pytest.raises(InvalidInput, match=r"model_name is missing; set it .* --set model_name="):
        load_recipe(str(tmp_path / "mine.toml"))


def test_parameters_that_kfp_would_refuse_are_refused_here():
    many = json.dumps([f"s3://bucket/{'x' * 100}/{i}.jsonl" for i in range(100)])
    with pytest.raises(InvalidInput, match=r"the parameters take \d+ bytes, KFP allows 10000"):
        load_recipe("demo", [f"preference_data={many}"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["publish.suites.RMB=0.5"], r"publish\.suites has 'RMB', which is none of the benchmarks"),
        (["publish.max_flip_rate=0.2", "benchmark.attacks=[]"], r"publish\.max_flip_rate needs benchmark\.attacks"),
        (["benchmark.champion=other@champion"], r"the gate compares with 'reasrm-demo@champion'"),
        (['benchmark.models=["base", "sft"]'], r"publish\.judge is 'grpo': put it into benchmark\.models"),
    ],
)
def test_a_gate_that_nothing_could_pass_is_refused_before_the_run(settings, message):
    with pytest.raises(InvalidInput, match=message):
        load_recipe("demo", settings)


class Noting(Here):
    """Notes which tasks are placed."""

    def __init__(self):
        object.__setattr__(self, "placed", [])

    def place(self, name, task, of_run):
        self.placed.append(name)


@pytest.fixture
def placed():
    noting = Noting()
    build(noting)
    return noting.placed


def test_every_task_has_a_place(placed):
    assert set(placed) == set(TABLE) == {*STAGES, "preflight", "traces_part", "benchmark_part", "gate", "report"}


def test_stages_are_in_the_order_of_the_dag(placed):
    order = [name for name in placed if name in STAGES]
    assert tuple(dict.fromkeys(order)) == STAGES
