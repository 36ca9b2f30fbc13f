import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.adapters.models import resolve
from components.adapters.sources import digest
from pipeline import cli
from pipeline.config import load_recipe

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "run", "compile", "ui", "recipes", "judge", "serve", "lineage", "promote", "rollback", "submit", "status",
    "schedule", "retention", "doctor", "upload",
)  # fmt: skip


@pytest.fixture
def reasrm(capsys):
    """Run the command line in this process; gives exit code, standard output and standard error."""

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return call


def test_help_teaches_with_examples(reasrm):
    code, out, _ = reasrm("--help")
    assert code == 0
    assert "reasrm run --recipe demo" in out
    for command in COMMANDS:
        assert f"  {command} " in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(reasrm, command):
    code, out, _ = reasrm(command, "--help")
    assert code == 0
    assert out.startswith(f"Usage: reasrm {command}")


def test_help_loads_nothing_heavy():
    code = "import sys, pipeline.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"kfp", "pydantic", "rich", "mlflow", "boto3", "torch"} & set(done.stdout.split()) == set()


def test_recipes_are_listed_with_their_first_line(reasrm):
    code, out, _ = reasrm("recipes")
    assert code == 0
    assert "demo " in out and "SmolLM2" in out


def test_what_the_user_must_change_is_one_line_and_exit_code_2(reasrm, tmp_path):
    code, out, err = reasrm("run", "--recipe", "demo", "--set", "sft.epoch=2", "--dir", str(tmp_path))
    assert (code, out) == (2, "")
    assert err == "error: recipe demo: there is no setting sft.epoch; did you mean sft.epochs?\n"
    assert list(tmp_path.iterdir()) == []


def test_a_base_model_that_is_not_there_is_said_before_anything_starts(reasrm, tmp_path):
    code, _, err = reasrm("run", "--recipe", "smoke", "--set", "base_model=/no/such/model", "--dir", str(tmp_path))
    assert code == 2
    assert "base model '/no/such/model' does not exist" in err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_a_usage_error(reasrm):
    code, _, err = reasrm("run", "--recipes", "demo")
    assert code == 2
    assert "--recipe" in err


def test_compile_writes_and_checks(reasrm, tmp_path):
    path = tmp_path / "p.yaml"
    code, out, _ = reasrm("compile", "--recipe", "smoke", "--output", str(path))
    assert code == 0
    assert str(path) in out
    assert reasrm("compile", "--recipe", "smoke", "--check", str(path))[0] == 0
    code, _, err = reasrm("compile", "--recipe", "smoke", "--set", "seed=5", "--check", str(path))
    assert code == 1
    assert "is not what the code compiles to" in err


@pytest.mark.parametrize("options", [[], ["--output", "a", "--check", "b"]])
def test_compile_wants_one_of_output_and_check(reasrm, options):
    code, _, err = reasrm("compile", "--recipe", "smoke", *options)
    assert code == 2
    assert "either --output FILE or --check FILE" in err


def test_compile_says_when_it_cannot_write(reasrm, tmp_path):
    code, _, err = reasrm("compile", "--recipe", "smoke", "--output", str(tmp_path / "no" / "p.yaml"))
    assert code == 2
    assert "cannot write" in err


def test_anything_unforeseen_keeps_its_traceback_in_a_file(reasrm, monkeypatch):
    def broken():
        raise ZeroDivisionError("by nought")

    monkeypatch.setitem(cli.cli.commands, "broken", cli.click.Command("broken", callback=broken))
    code, _, err = reasrm("broken")
    assert code == 1
    assert "ZeroDivisionError: by nought" in err
    kept = Path(err.split("traceback: ")[1].strip())
    assert "in broken" in kept.read_text("utf-8")
    kept.unlink()


def test_an_interrupt_says_that_work_is_kept(reasrm, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.cli.commands, "stopped", cli.click.Command("stopped", callback=interrupted))
    code, _, err = reasrm("stopped")
    assert code == 130
    assert "run the same command again" in err


def test_compiled_defaults_are_the_recipes(reasrm, tmp_path):
    import yaml

    path = tmp_path / "p.yaml"
    reasrm("compile", "--recipe", "smoke", "--set", "sft.epochs=3", "--output", str(path))
    spec = next(yaml.safe_load_all(path.read_text("utf-8")))
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    expected = load_recipe("smoke", ["sft.epochs=3"]).stage_settings("sft")
    assert json.loads(parameters["sft_config"]["defaultValue"]) == expected


def test_compile_for_gitops_writes_resources(reasrm, tmp_path):
    path = tmp_path / "resources.yaml"
    arguments = ["--recipe", "smoke", "--profile", "cpu", "--gitops", "--namespace", "team", "--output", str(path)]
    assert reasrm("compile", *arguments)[0] == 0
    kinds = [one["kind"] for one in yaml.safe_load_all(path.read_text("utf-8"))]
    assert kinds == ["Pipeline", "PipelineVersion"]


def test_upload_puts_a_model_and_data_where_a_recipe_finds_them(reasrm, s3, tiny_model, tmp_path):
    code, out, _ = reasrm("upload", str(tiny_model), f"{s3.prefix}/models/tiny")
    assert (code, out.strip()) == (0, f"{s3.prefix}/models/tiny")
    fetched = resolve(out.strip(), s3.storage, tmp_path / "model")
    assert (fetched / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    assert reasrm("upload", str(tiny_model), f"{s3.prefix}/models/tiny")[0] == 0  # the same again is no error
    code, out, _ = reasrm("upload", "samples/pairs.jsonl.gz", f"{s3.prefix}/data/")
    assert out.strip() == f"{s3.prefix}/data/pairs.jsonl.gz"
    assert digest(out.strip(), s3.storage) == digest("samples/pairs.jsonl.gz", s3.storage)


def test_upload_says_what_it_cannot_take(reasrm, s3, tiny_model, tmp_path):
    assert "not on S3" in reasrm("upload", str(tiny_model), "/models/tiny")[2]
    assert "no file" in reasrm("upload", str(tmp_path / "none"), f"{s3.prefix}/none")[2]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}", "utf-8")
    (tmp_path / "other" / "model.safetensors").write_bytes(b"other")
    assert reasrm("upload", str(tiny_model), f"{s3.prefix}/taken")[0] == 0
    code, _, err = reasrm("upload", str(tmp_path / "other"), f"{s3.prefix}/taken")
    assert code == 2
    assert "another model lies at" in err
