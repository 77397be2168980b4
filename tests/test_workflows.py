"""The files under .github can be read, and name nothing that is not there. That they run, only GitHub can tell."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"]
EXPRESSION = re.compile(r"\$\{\{.*?\}\}")


def read(path):
    return yaml.safe_load(path.read_text())


def scripts(workflow):
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


def test_what_is_there():
    assert {path.stem for path in WORKFLOWS} == {"tests", "lint", "wheel", "docs"}
    assert {path.stem for path in FORMS} == {"bug", "feature"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow(path):
    workflow = read(path)
    triggers = workflow[True]  # YAML 1.1 takes the key `on` for a truth value
    assert {"push", "pull_request"} <= set(triggers)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"] and job["timeout-minutes"]
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
        assert job["steps"][0]["uses"].startswith("actions/checkout@")
    for script in scripts(workflow):
        subprocess.run(["bash", "-n", "-c", EXPRESSION.sub("x", script)], check=True)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_workflows_name_exists(path):
    makefile = (ROOT / "Makefile").read_text()
    for script in scripts(read(path)):
        for target in re.findall(r"^make ([\w-]+)", script, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE)
        for name in re.findall(r"\b(?:tests/\w+\.(?:py|txt)|constraints\.txt)", script):
            assert (ROOT / name).is_file()


def test_tests_run_on_each_python_and_with_both_ends_of_the_versions():
    matrix = read(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["tests"]["strategy"]["matrix"]
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert settings["options"]["python_requires"] == f">={matrix['python'][0]}"
    assert matrix["python"] == ["3.11", "3.12", "3.13"]  # as text: 3.10 would be the number 3.1
    assert matrix["constraints"] == ["constraints.txt", "constraints-floor.txt"]


def test_constraints_that_are_not_there_are_told_and_skipped(tmp_path):
    looking, *others = read(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["tests"]["steps"][1:]
    (tmp_path / "there.txt").touch()
    for name, found in {"there.txt": "found=true\n", "absent.txt": ""}.items():
        output = tmp_path / f"output_of_{name}"
        output.touch()
        environment = {"CONSTRAINTS": name, "GITHUB_OUTPUT": str(output), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            ["bash", "-e", "-c", looking["run"]],
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        assert output.read_text() == found
        assert ("::notice::There is no absent.txt" in done.stdout) is not bool(found)
    assert {step["if"] for step in others} == {f"steps.{looking['id']}.outputs.found"}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_form(path):
    form = read(path)
    assert form["name"] and form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
    for page, anchor in re.findall(r"blob/main/([\w/.]+)(?:#([\w-]+))?", path.read_text()):
        headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE)
        assert not anchor or anchor in [heading.lower().replace(" ", "-") for heading in headings]
