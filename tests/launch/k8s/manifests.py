"""The documents of `launch/k8s`, as files: overlays only collect them, so that they can be read without kustomize."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

ROOT = Path(__file__).resolve().parents[3]
K8S = ROOT / "launch" / "k8s"
OVERLAYS = ("gpu", "cpu")

Document = Mapping[str, Any]
Role = Literal["prefill", "decode"]

_KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "configMapGenerator", "images"}
"""What a kustomization may use. All else would change documents, and the checks here would not see it."""


@dataclass(frozen=True)
class Overlay:
    """What one overlay deploys. `files` has the files of each ConfigMap that it generates, by their keys."""

    name: str
    documents: tuple[Document, ...]
    files: Mapping[str, Mapping[str, Path]]

    def named(self, kind: str, name: str) -> Document:
        (found,) = (each for each in self.kind(kind) if each["metadata"]["name"] == name)
        return found

    def kind(self, kind: str) -> list[Document]:
        return [each for each in self.documents if each["kind"] == kind]

    def component(self, component: str) -> Document:
        """The workload of a component."""
        (found,) = (each for each in self.workloads() if labels_of(each)["app.kubernetes.io/component"] == component)
        return found

    def workloads(self) -> list[Document]:
        return [each for each in self.documents if each["kind"] in ("Deployment", "StatefulSet")]


@functools.cache
def overlay(name: str) -> Overlay:
    documents: list[Document] = []
    files: dict[str, dict[str, Path]] = {}
    for folder in _folders(K8S / "overlays" / name):
        kustomization = read_kustomization(folder)
        for resource in kustomization.get("resources", ()):
            if (folder / resource).is_file():
                documents += read_documents(folder / resource)
        for generated in kustomization.get("configMapGenerator", ()):
            assert set(generated) == {"name", "files"}
            assert generated["name"] not in files
            files[generated["name"]] = {file: folder / file for file in generated["files"]}
    return Overlay(name, tuple(documents), files)


def read_kustomization(folder: Path) -> dict[str, Any]:
    """Raises `AssertionError` for a kustomization that does more than to collect."""
    (kustomization,) = read_documents(folder / "kustomization.yaml")
    assert set(kustomization) <= _KNOWN, folder
    return kustomization


def read_documents(file: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(file.read_text()) if document is not None]


def _folders(folder: Path) -> Iterator[Path]:
    """`folder` and all that its kustomization names."""
    yield folder
    kustomization = read_kustomization(folder)
    for named in (*kustomization.get("resources", ()), *kustomization.get("components", ())):
        if (folder / named).is_dir():
            yield from _folders((folder / named).resolve())


def labels_of(workload: Document) -> dict[str, str]:
    """Those of its pods."""
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def pod_of(workload: Document) -> dict[str, Any]:
    pod: dict[str, Any] = workload["spec"]["template"]["spec"]
    return pod


def container_of(workload: Document) -> dict[str, Any]:
    (container,) = pod_of(workload)["containers"]
    found: dict[str, Any] = container
    return found


def ports_of(workload: Document) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container_of(workload)["ports"]}


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes `labels`."""
    exact = selector.get("matchLabels", {})
    among = selector.get("matchExpressions", ())
    assert all(each["operator"] == "In" for each in among)
    return all(labels.get(key) == value for key, value in exact.items()) and all(
        labels.get(each["key"]) in each["values"] for each in among
    )
