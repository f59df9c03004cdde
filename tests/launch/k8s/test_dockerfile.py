"""The Dockerfile as far as it can be judged without a daemon: its stages, what it copies, and what it installs."""

from __future__ import annotations

import fnmatch
import re
import tomllib

import pytest
import yaml

from tests.launch.k8s.manifests import K8S, OVERLAYS, ROOT, container_of, overlay

LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()
STAGES = [match for line in LINES if (match := re.fullmatch(r"FROM (\S+) AS (\S+)", line))]
NAMES = [stage[2] for stage in STAGES]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def arguments(instruction: str) -> list[list[str]]:
    """The words of each of these instructions."""
    return [line.split()[1:] for line in LINES if line.startswith(f"{instruction} ")]


def ignored(path: str) -> bool:
    """Whether `.dockerignore` keeps `path`, at the root, from the build: the last rule that fits says."""
    answer = False
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        if rule and not rule.startswith("#") and fnmatch.fnmatch(path, rule.removeprefix("!")):
            answer = not rule.startswith("!")
    return answer


def test_what_is_copied_is_there_and_not_ignored() -> None:
    copies = [words for words in arguments("COPY") if not words[0].startswith("--from=")]
    sources = {source for *sources, _ in copies for source in sources}
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE", "requirements", "cfgs"} <= sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    for path in (".git", ".venv", ".graft", "runs", "tests"):
        assert ignored(path), path


def test_what_serves_is_copied_wherever_graft_is_installed() -> None:
    wanted = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "experiments"} | {"cfgs"}
    text = (ROOT / "Dockerfile").read_text()
    for stage in re.split(r"^FROM ", text, flags=re.MULTILINE):
        if "pip install --no-cache-dir --no-deps ." in stage or '".${EXTRAS}"' in stage:
            copied = {words[1] for words in re.findall(r"^(COPY) (\S+) \2$", stage, re.MULTILINE)}
            assert copied - {"requirements"} == wanted


def test_stages_build_on_stages_or_images() -> None:
    images = {words[0].partition("=")[0] for words in arguments("ARG")}
    for position, stage in enumerate(STAGES):
        base = stage[1]
        assert base in NAMES[:position] or base.removeprefix("${").removesuffix("}") in images
    for first, *_ in arguments("COPY"):
        if first.startswith("--from="):
            assert first.removeprefix("--from=") in NAMES


def test_extras_and_versions_are_those_of_the_project() -> None:
    text = (ROOT / "Dockerfile").read_text()
    extras = set(re.findall(r"\[([a-z-]+)\]", text))
    assert extras == {"gpu", "early-exit"}
    assert extras <= set(PROJECT["optional-dependencies"])
    (version,) = re.findall(r"ARG SGLANG_ROUTER_VERSION=(\S+)", text)
    assert f"sglang-router=={version}" in PROJECT["optional-dependencies"]["gpu"]
    for file in re.findall(r"-r (\S+)", text):
        assert (ROOT / file).is_file()


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_use_images_that_the_dockerfile_makes(name: str) -> None:
    kustomization = yaml.safe_load((K8S / "overlays" / name / "kustomization.yaml").read_text())
    images = {each["name"]: each["newName"] for each in kustomization["images"]}
    assert set(images) == {container_of(each)["image"] for each in overlay(name).workloads()}
    assert {image.removeprefix("graft-") for image in images.values()} <= set(NAMES)


@pytest.mark.parametrize("stage", ["shell-router", "sglang-router", "worker-cpu", "worker"])
def test_images_run_as_a_user_behind_tini(stage: str) -> None:
    text = (ROOT / "Dockerfile").read_text()
    bodies = {each.split()[2]: each for each in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]}
    body = bodies[stage]
    assert "USER 10001:10001" in body
    assert 'ENTRYPOINT ["tini", "--"]' in body + (bodies["python-base"] if body.startswith("python-base") else "")
