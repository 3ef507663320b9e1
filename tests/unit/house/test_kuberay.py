"""The Ray cluster of the component `kuberay`, checked by schema and by reading: no operator and no cluster has run it.

There is no schema of a RayCluster here. Its pods are validated as what they are, pod templates; the words for
`ray start` by Ray's own command line; the rest of its structure is looked at.
"""

import copy
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

from dearkd.addresses import check_ray_address
from dearkd.settings import Settings
from tests.support.compose import instructions
from tests.support.documents import read
from tests.unit.house.test_kubernetes import (
    BASE,
    KUBERNETES,
    OLDEST,
    VERSION,
    WORKLOADS,
    Resource,
    built,
    container_of,
    copied,
    documents,
    kustomization,
    pod_of,
)

__all__ = ["copied"]

(CLUSTER,) = documents(KUBERNETES / "kuberay" / "ray-cluster.yaml")
(POLICY,) = documents(KUBERNETES / "kuberay" / "network-policy.yaml")
(PATCH,) = documents(KUBERNETES / "kuberay" / "trainer.yaml")
HEAD = CLUSTER["spec"]["headGroupSpec"]
(WORKERS,) = CLUSTER["spec"]["workerGroupSpecs"]
GROUPS = {"head": HEAD, "workers": WORKERS}
(NODE,) = pod_of(PATCH)["initContainers"]
"""The Ray node beside the trainer."""


def patched() -> Resource:
    """The trainer's Deployment as the component makes it."""
    found = copy.deepcopy(WORKLOADS["trainer"])
    found["spec"]["template"]["metadata"]["labels"] |= PATCH["spec"]["template"]["metadata"]["labels"]
    pod_of(found).update(pod_of(PATCH))
    return found


def template_of(group: Resource, name: str) -> Resource:
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": group["template"]}


def given(container: Resource) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def container_in(group: Resource) -> Resource:
    (container,) = group["template"]["spec"]["containers"]
    return dict(container)


@pytest.mark.parametrize("version", [OLDEST, VERSION])
def test_all_that_is_of_a_known_kind_is_valid_by_its_schema(version: str) -> None:
    for resource in (POLICY, patched(), *(template_of(group, name) for name, group in GROUPS.items())):
        assert kubernetes_validate.validate(resource, version, strict=True) == version
    broken = template_of(copy.deepcopy(HEAD), "head")
    broken["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError, match="enableServiceLink"):
        kubernetes_validate.validate(broken, version, strict=True)


def test_the_structure_of_a_ray_cluster() -> None:
    """Of the operator's `raycluster_types.go`: the fields that must be there, and no other is used."""
    assert (CLUSTER["apiVersion"], CLUSTER["kind"]) == ("ray.io/v1", "RayCluster")
    assert CLUSTER["metadata"] == {"name": "ray", "namespace": kustomization("base")["namespace"]}
    assert CLUSTER["spec"].keys() == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert HEAD.keys() == {"rayStartParams", "template"}
    numbers = {"replicas", "minReplicas", "maxReplicas"}
    assert WORKERS.keys() == {"groupName", "rayStartParams", "template"} | numbers
    assert len({WORKERS[name] for name in numbers}) == 1, "there is no autoscaler"
    assert f"ray=={CLUSTER['spec']['rayVersion']}" in read("constraints.txt").splitlines()
    (wanted,) = [
        one
        for text in tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]["ray"]
        if (one := Requirement(text)).name == "ray"
    ]
    assert CLUSTER["spec"]["rayVersion"] in wanted.specifier
    assert "3.0" not in wanted.specifier, "nobody has tried it"


def test_ray_start_takes_what_nodes_are_started_with() -> None:
    start = pytest.importorskip("ray.scripts.scripts", reason="ray is not installed: pip install 'dearkd[ray]'").start
    for name, group in GROUPS.items():
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        words = [f"--{option}={value}" for option, value in group["rayStartParams"].items()]
        found = start.make_context(name, words).params
        # Or Ray would take all CPUs of the machine, which are not the pod's.
        assert found["num_cpus"] is not None
    # The trainer's own node only watches: the trainer's CPUs and GPU are not for runs of the cluster.
    assert NODE["command"] == ["tini", "-s", "--", "ray", "start"]
    found = start.make_context("ray", NODE["args"]).params
    assert (found["address"], found["block"]) == ("$(DEARKD_RAY_ADDRESS)", True)
    assert (found["num_cpus"], found["num_gpus"]) == (0, 0)
    assert start.make_context("head", [f"--port={HEAD['rayStartParams']['port']}"]).params["num_cpus"] is None


def test_the_address_and_the_ports_are_those_of_the_cluster() -> None:
    (generator,) = kustomization("kuberay")["configMapGenerator"]
    assert generator["behavior"] == "merge"
    values = dict(literal.split("=", 1) for literal in generator["literals"])
    assert values.keys() == {"DEARKD_RAY_ADDRESS"}
    # The operator's name for the head's Service.
    name, namespace = CLUSTER["metadata"]["name"], CLUSTER["metadata"]["namespace"]
    address = f"{name}-head-svc.{namespace}.svc.cluster.local:{HEAD['rayStartParams']['port']}"
    assert values["DEARKD_RAY_ADDRESS"] == address == check_ray_address(address)
    assert given(NODE)["DEARKD_RAY_ADDRESS"] == {"configMapKeyRef": {"name": "dearkd", "key": "DEARKD_RAY_ADDRESS"}}
    for group, option in ((HEAD, "port"), (WORKERS, "node-manager-port")):
        (port,) = container_in(group)["ports"]
        assert str(port["containerPort"]) == group["rayStartParams"][option]
        for probe in ("readinessProbe", "livenessProbe"):
            # Without both, the operator adds its own, which need wget.
            assert container_in(group)[probe]["tcpSocket"] == {"port": port["name"]}
    # Between these, Ray's workers listen.
    assert int(HEAD["rayStartParams"]["port"]) < 10002 > int(WORKERS["rayStartParams"]["node-manager-port"])


def test_nodes_have_the_trainers_image_and_rights_and_settings_that_exist() -> None:
    trainer = WORKLOADS["trainer"]
    for container in (NODE, *map(container_in, GROUPS.values())):
        assert container["image"] == container_of(trainer)["image"]
        assert container["securityContext"] == container_of(trainer)["securityContext"]
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        # No settings at large, so no address of Redis: what a run's processes need comes with the run.
        assert "envFrom" not in container
        assert given(container)["RAY_USAGE_STATS_ENABLED"] == "0"
        ours = {name.removeprefix("DEARKD_").lower() for name in given(container) if name.startswith("DEARKD_")}
        assert ours <= set(Settings.model_fields)
    for group in GROUPS.values():
        pod = group["template"]["spec"]
        for name in ("securityContext", "automountServiceAccountToken", "enableServiceLinks"):
            assert pod[name] == pod_of(trainer)[name], name
        assert {mount["name"] for mount in container_in(group)["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    images = {image["name"]: image for image in kustomization("cpu")["images"]}
    assert kustomization("kuberay")["images"] == [images["dearkd-trainer"]]
    assert "EXTRAS" in instructions("trainer")["ARG"]


def test_secrets_are_where_the_bucket_is_read_and_nowhere_else() -> None:
    trainer, worker = container_of(WORKLOADS["trainer"]), container_in(WORKERS)
    keys = {name: value for name, value in given(worker).items() if name.startswith("AWS_")}
    assert keys == {name: value for name, value in given(trainer).items() if name.startswith("AWS_")}
    mine, theirs = (
        {mount["mountPath"]: mount for mount in container["volumeMounts"]} for container in (worker, trainer)
    )
    assert mine == theirs
    secrets = [volume for volume in WORKERS["template"]["spec"]["volumes"] if "secret" in volume]
    assert secrets == [volume for volume in pod_of(WORKLOADS["trainer"])["volumes"] if "secret" in volume]
    for container in (NODE, container_in(HEAD)):
        assert not [name for name in given(container) if name.startswith("AWS_")]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/dev/shm"}
    assert not [volume for volume in HEAD["template"]["spec"]["volumes"] if "secret" in volume]


def test_the_trainer_and_its_node_are_one_machine_to_ray() -> None:
    """A driver looks for its node in the process table, and meets it in /tmp and in shared memory."""
    assert PATCH["metadata"]["name"] == "trainer"
    assert pod_of(PATCH)["shareProcessNamespace"] is True
    assert NODE["restartPolicy"] == "Always"  # so it is a sidecar: the trainer does not wait for its end
    theirs = {mount["mountPath"]: mount["name"] for mount in container_of(WORKLOADS["trainer"])["volumeMounts"]}
    assert {mount["mountPath"]: mount["name"] for mount in NODE["volumeMounts"]}.items() <= theirs.items()


def test_nodes_are_reached_by_each_other_alone_and_reach_no_redis() -> None:
    nodes = {name: group["template"]["metadata"]["labels"] for name, group in GROUPS.items()}
    nodes["trainer"] = patched()["spec"]["template"]["metadata"]["labels"]
    others = {name: one["spec"]["template"]["metadata"]["labels"] for name, one in WORKLOADS.items()}
    del others["trainer"]

    def chosen(peer: Resource) -> set[str]:
        wanted = peer["matchLabels"].items()
        return {name for name, labels in (nodes | others).items() if wanted <= labels.items()}

    spec = POLICY["spec"]
    (rule,) = spec["ingress"]
    (peer,) = rule["from"]
    assert chosen(spec["podSelector"]) == chosen(peer["podSelector"]) == set(nodes)
    assert spec["policyTypes"] == ["Ingress"]
    assert rule.keys() == {"from"}, "Gloo, NCCL and trainers listen where the system chooses"
    policies = {one["metadata"]["name"]: one["spec"] for one in BASE if one["kind"] == "NetworkPolicy"}
    assert set.union(*(chosen(one["podSelector"]) for one in policies["redis"]["ingress"][0]["from"])) == {
        "api",
        "synth",
        "trainer",
    }
    # By these labels the operator's Service finds the head.
    assert not [name for name in nodes["head"] if name.startswith(("ray.io/", "app.kubernetes.io/"))]


@pytest.mark.parametrize(("overlay", "component"), [("cpu", "kuberay"), ("gpu", "kuberay-gpu")])
def test_what_kustomize_makes_of_an_overlay_with_a_ray_cluster(copied: Path, overlay: str, component: str) -> None:
    mine = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"../{overlay}"],
        "components": ["../keda", "../external-redis", f"../{component}"],
        "images": [{"name": "dearkd-trainer", "newName": "registry.example.com/dearkd-trainer"}],
    }
    folder = copied / f"with-{component}"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(mine))
    found = {(resource["kind"], resource["metadata"]["name"]): resource for resource in built(folder)}
    for (kind, _), resource in found.items():
        if kind not in ("ScaledObject", "RayCluster"):
            kubernetes_validate.validate(resource, VERSION, strict=True)
    (values,) = [resource["data"] for (kind, _), resource in found.items() if kind == "ConfigMap"]
    assert values["DEARKD_RAY_ADDRESS"] == "ray-head-svc.dearkd.svc.cluster.local:6379"
    assert values["DEARKD_STORAGE_URL"]
    spec, trainer = found["RayCluster", "ray"]["spec"], found["Deployment", "trainer"]
    (workers,) = spec["workerGroupSpecs"]
    (node,) = pod_of(trainer)["initContainers"]
    for name, group in (("head", spec["headGroupSpec"]), ("workers", workers)):
        kubernetes_validate.validate(template_of(group, name), VERSION, strict=True)
    image = "registry.example.com/dearkd-trainer:0.1.0"
    for container in (node, container_of(trainer), container_in(spec["headGroupSpec"]), container_in(workers)):
        assert container["image"] == image
    assert given(node)["DEARKD_RAY_ADDRESS"]["configMapKeyRef"]["name"] in {name for _, name in found}
    named = {v["secret"]["secretName"] for v in workers["template"]["spec"]["volumes"] if "secret" in v}
    assert {("Secret", name) for name in named} <= found.keys()
    limits = container_in(workers)["resources"]["limits"]
    assert limits == {"memory": "24Gi"} | ({"nvidia.com/gpu": "1"} if overlay == "gpu" else {})
    assert ("tolerations" in workers["template"]["spec"]) == (overlay == "gpu")
    assert "nvidia.com/gpu" not in container_in(spec["headGroupSpec"])["resources"]["limits"]
