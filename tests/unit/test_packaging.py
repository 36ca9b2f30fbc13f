import importlib.metadata
from pathlib import Path

import components
import pipeline

ROOT = Path(__file__).parents[2]


def test_both_packages_are_those_of_this_repository():
    assert Path(components.__file__).parents[1] == ROOT
    assert Path(pipeline.__file__).parents[1] == ROOT


def test_no_other_distribution_claims_the_package_names():
    owners = importlib.metadata.packages_distributions()
    for name in ("pipeline", "components"):
        assert set(owners.get(name, [])) <= {"reasrm"}


def test_no_test_folder_shadows_a_package():
    assert list((ROOT / "tests").rglob("__init__.py")) == []
    assert {path.name for path in (ROOT / "tests").iterdir()} & {"pipeline", "components"} == set()
