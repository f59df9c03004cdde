"""What one document says of another is true: labels, ports, files, secrets, times."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from sglang_ext.protocol import STATUS_PATH
from shell_router.config import RouterConfig, load_json, load_tree
from tests.launch.k8s.manifests import (
    K8S,
    OVERLAYS,
    ROOT,
    Overlay,
    container_of,
    labels_of,
    overlay,
    pod_of,
    ports_of,
    read_documents,
    selects,
)

ENGINES = {"prefill", "decode"}
CANCELLING_S = 15
"""For a shell router to cancel what is left, and to end."""


@pytest.fixture(params=OVERLAYS)
def deployed(request: pytest.FixtureRequest) -> Overlay:
    return overlay(request.param)


def router_config(deployed: Overlay) -> RouterConfig:
    return load_json(deployed.files["graft-shell-router"]["router.json"], RouterConfig)


def components(deployed: Overlay, selector: dict[str, Any]) -> set[str]:
    """Those whose pods `selector` takes."""
    return {
        labels_of(each)["app.kubernetes.io/component"]
        for each in deployed.workloads()
        if selects(selector, labels_of(each))
    }


def test_each_workload_selects_its_own_pods_and_no_others(deployed: Overlay) -> None:
    assert len(deployed.workloads()) == 4
    for workload in deployed.workloads():
        component = labels_of(workload)["app.kubernetes.io/component"]
        assert components(deployed, workload["spec"]["selector"]) == {component}


def test_services_lead_to_ports_that_pods_have(deployed: Overlay) -> None:
    for service in deployed.kind("Service"):
        (target,) = (
            each
            for each in deployed.workloads()
            if selects({"matchLabels": service["spec"]["selector"]}, labels_of(each))
        )
        for port in service["spec"]["ports"]:
            number = ports_of(target)[port["targetPort"]]
            if labels_of(target)["app.kubernetes.io/component"] != "shell-router":
                assert port["port"] == number, "URLs name the port"
    for workload in deployed.kind("StatefulSet"):
        assert deployed.named("Service", workload["spec"]["serviceName"])["spec"]["clusterIP"] == "None"


def test_probes_ask_ports_that_are_there_and_workers_seldom_for_tokens(deployed: Overlay) -> None:
    for workload in deployed.workloads():
        container = container_of(workload)
        probes = {kind: container[kind] for kind in container if kind.endswith("Probe")}
        assert {"readinessProbe", "livenessProbe"} <= set(probes)
        assert all(probe["httpGet"]["port"] in ports_of(workload) for probe in probes.values())
        if labels_of(workload)["app.kubernetes.io/component"] in ENGINES:
            assert probes["readinessProbe"]["httpGet"]["path"] == STATUS_PATH, "it costs no token"
            assert probes["livenessProbe"]["httpGet"]["path"] == "/health"
            assert probes["livenessProbe"]["periodSeconds"] >= 60, "each generates one"


def test_only_routers_reach_engines(deployed: Overlay) -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in deployed.kind("NetworkPolicy")}
    assert components(deployed, policies["graft-workers"]["podSelector"]) == ENGINES
    (routers, peers) = policies["graft-workers"]["ingress"]
    assert components(deployed, routers["from"][0]["podSelector"]) == {"sglang-router", "shell-router"}
    assert routers["ports"] == [{"port": "http"}]
    assert components(deployed, peers["from"][0]["podSelector"]) == ENGINES
    assert "ports" not in peers, "UCX chooses its ports"
    (clients,) = policies["graft-sglang-router"]["ingress"]
    assert components(deployed, clients["from"][0]["podSelector"]) == {"shell-router"}
    covered = {each for spec in policies.values() for each in components(deployed, spec["podSelector"])}
    assert covered == {labels_of(each)["app.kubernetes.io/component"] for each in deployed.workloads()}


def test_budgets_and_autoscalers_name_what_there_is(deployed: Overlay) -> None:
    guarded = [components(deployed, each["spec"]["selector"]) for each in deployed.kind("PodDisruptionBudget")]
    assert sorted(map(sorted, guarded)) == [["decode"], ["prefill"], ["shell-router"]]
    (scaler,) = deployed.kind("HorizontalPodAutoscaler")
    target = deployed.named("Deployment", scaler["spec"]["scaleTargetRef"]["name"])
    assert "replicas" not in target["spec"], "an apply would undo the scaling"
    assert scaler["spec"]["minReplicas"] == 2
    assert "cpu" in container_of(target)["resources"]["requests"], "a share of it is what is measured"


def test_optional_autoscalers_name_workers_of_the_gpu_overlay() -> None:
    deployed = overlay("gpu")
    scalers = read_documents(K8S / "components" / "worker-autoscaling" / "horizontal-pod-autoscalers.yaml")
    for scaler in scalers:
        spec = scaler["spec"]
        target = deployed.named(spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
        assert spec["minReplicas"] == target["spec"]["replicas"]


def test_monitors_read_ports_that_have_metrics() -> None:
    deployed = overlay("gpu")
    read: set[str] = set()
    policy = deployed.named("NetworkPolicy", "graft-metrics")["spec"]
    open_ports = {port["port"] for port in policy["ingress"][0]["ports"]}
    for monitor in deployed.kind("PodMonitor"):
        targets = [each for each in deployed.workloads() if selects(monitor["spec"]["selector"], labels_of(each))]
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        for target in targets:
            assert endpoint["port"] in ports_of(target)
            assert endpoint["port"] in open_ports
            read.add(labels_of(target)["app.kubernetes.io/component"])
    assert read == {"prefill", "decode", "sglang-router", "shell-router"}


def test_sglang_router_may_watch_pods_and_nobody_else_has_a_token(deployed: Overlay) -> None:
    (role,) = deployed.kind("Role")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    (binding,) = deployed.kind("RoleBinding")
    (account,) = deployed.kind("ServiceAccount")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [each["name"] for each in binding["subjects"]] == [account["metadata"]["name"]]
    for workload in deployed.workloads():
        pod, component = pod_of(workload), labels_of(workload)["app.kubernetes.io/component"]
        assert pod["automountServiceAccountToken"] == (component == "sglang-router")
        assert pod.get("serviceAccountName") == (account["metadata"]["name"] if component == "sglang-router" else None)


def test_pods_keep_the_restricted_standard_that_the_namespace_enforces(deployed: Overlay) -> None:
    (namespace,) = deployed.kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for workload in deployed.workloads():
        pod, container = pod_of(workload)["securityContext"], container_of(workload)["securityContext"]
        assert (pod["runAsNonRoot"], pod["seccompProfile"]["type"]) == (True, "RuntimeDefault")
        assert pod["runAsUser"] == 10001
        assert (container["allowPrivilegeEscalation"], container["capabilities"]) == (False, {"drop": ["ALL"]})


def test_the_router_configuration_loads_and_fits_its_surroundings(deployed: Overlay) -> None:
    config = router_config(deployed)
    workload = deployed.component("shell-router")
    container = container_of(workload)
    assert (config.host, config.port) == ("0.0.0.0", ports_of(workload)["http"])
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["args"] == ["python", "-m", "shell_router", "--config", f"{mounts['config']}/router.json"]
    environment = {variable["name"] for variable in container["env"]}
    assert config.api_key_env in environment
    (model,) = config.models
    assert model.discover_every_s is not None
    url = urlsplit(model.router_url)
    service = deployed.named("Service", str(url.hostname))
    assert [port["port"] for port in service["spec"]["ports"]] == [url.port]
    assert service["spec"]["selector"] == labels_of(deployed.component("sglang-router"))
    assert service["spec"]["selector"]["graft-model"] == model.name
    trees = deployed.files["graft-trees"]
    assert config.trees
    for path in map(Path, config.trees):
        assert str(path.parent) == mounts["trees"]
        tree = load_tree(trees[path.name])
        assert tree.models == {model.name}
        assert tree.early_exit.mode == "off", "no embedding model is deployed"


def test_volumes_name_config_maps_that_are_generated(deployed: Overlay) -> None:
    volumes = pod_of(deployed.component("shell-router"))["volumes"]
    assert {each["configMap"]["name"] for each in volumes if "configMap" in each} == set(deployed.files)
    for workload in deployed.workloads():
        claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", ())}
        there = claims | {volume["name"] for volume in pod_of(workload)["volumes"]}
        assert {mount["name"] for mount in container_of(workload)["volumeMounts"]} == there


def test_a_shell_router_has_time_to_drain(deployed: Overlay) -> None:
    workload = deployed.component("shell-router")
    farewell = container_of(workload)["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = pod_of(workload)["terminationGracePeriodSeconds"]
    assert grace >= farewell + router_config(deployed).limits.drain_s + CANCELLING_S


def test_secrets_are_named_in_the_documentation(deployed: Overlay) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    wanted = {
        (variable["valueFrom"]["secretKeyRef"]["name"], variable["valueFrom"]["secretKeyRef"]["key"])
        for workload in deployed.workloads()
        for variable in container_of(workload).get("env", ())
        if "secretKeyRef" in variable.get("valueFrom", {})
    }
    assert {name for name, _ in wanted} == {"graft-api-key", "huggingface-token"}
    for name, key in wanted:
        assert f"create secret generic {name} --from-literal={key}=" in page
