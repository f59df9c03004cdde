"""Each document fits Kubernetes' own schema, as a file and as kustomize renders it."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.launch.k8s.manifests import K8S, OVERLAYS, Document, overlay, read_documents

VERSIONS = ("1.30", "1.37")
"""The oldest that has all we use (a `preStop` that sleeps), and the newest there is a schema for."""
_HASH = re.compile(r"-[0-9a-z]{10}$")

_ENDPOINT: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["port"],
    "properties": {
        "port": {"type": "string"},
        "path": {"type": "string", "pattern": "^/"},
        "interval": {"type": "string", "pattern": "^[0-9]+s$"},
        "authorization": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "type": {"type": "string"},
                "credentials": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["name", "key"],
                    "properties": {"name": {"type": "string"}, "key": {"type": "string"}},
                },
            },
        },
    },
}
POD_MONITOR: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PodMonitor"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["selector", "podMetricsEndpoints"],
            "properties": {
                "selector": {"type": "object", "minProperties": 1},
                "podTargetLabels": {"type": "array", "items": {"type": "string"}},
                "podMetricsEndpoints": {"type": "array", "minItems": 1, "items": _ENDPOINT},
            },
        },
    },
}
"""The part of the Prometheus Operator's schema that we use; what else it allows is refused here."""

FILES = sorted(file for file in K8S.rglob("*.yaml") if file.name != "kustomization.yaml")


def check(document: Document, version: str) -> None:
    if document["kind"] == "PodMonitor":
        jsonschema.validate(document, POD_MONITOR)
    else:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(K8S)))
def test_files_fit_the_schemas(file: Any, version: str) -> None:
    documents = read_documents(file)
    assert documents
    for document in documents:
        check(document, version)


def test_a_field_that_does_not_exist_is_refused() -> None:
    (document, *_) = read_documents(K8S / "base" / "shell-router.yaml")
    document["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="redinessProbe"):
        check(document, VERSIONS[0])


def test_each_file_is_part_of_an_overlay_or_of_an_optional_component() -> None:
    optional = {file for file in FILES if file.parent.name == "worker-autoscaling"}
    assert optional
    used = {repr(document) for name in OVERLAYS for document in overlay(name).documents}
    for file in set(FILES) - optional:
        assert all(repr(document) in used for document in read_documents(file)), file


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_kustomize_renders(name: str) -> None:
    command = next(
        (words for words in (["kubectl", "kustomize"], ["kustomize", "build"]) if shutil.which(words[0])), None
    )
    if command is None:
        pytest.skip("neither kubectl nor kustomize is on PATH; the files themselves are checked")
    made = subprocess.run(
        [*command, str(K8S / "overlays" / name)], capture_output=True, text=True, timeout=60, check=False
    )
    assert made.returncode == 0, made.stderr
    rendered = [document for document in yaml.safe_load_all(made.stdout) if document is not None]
    for document in rendered:
        for version in VERSIONS:
            check(document, version)
    written = overlay(name)
    maps = {each["metadata"]["name"]: each for each in rendered if each["kind"] == "ConfigMap"}
    expected = {(each["kind"], each["metadata"]["name"]) for each in written.documents}
    assert {(each["kind"], each["metadata"]["name"]) for each in rendered if each["kind"] != "ConfigMap"} == expected
    assert {_HASH.sub("", each): set(document["data"]) for each, document in maps.items()} == {
        each: set(files) for each, files in written.files.items()
    }
    namespaces = {each["metadata"].get("namespace") for each in rendered if each["kind"] != "Namespace"}
    assert namespaces == {"graft"}
    (binding,) = (each for each in rendered if each["kind"] == "RoleBinding")
    assert [each["namespace"] for each in binding["subjects"]] == ["graft"]
    for workload in (each for each in rendered if each["kind"] in ("Deployment", "StatefulSet")):
        pod = workload["spec"]["template"]["spec"]
        assert ":" in pod["containers"][0]["image"], "the overlay says which image"
        for volume in pod["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps, "a new configuration rolls the pods"
