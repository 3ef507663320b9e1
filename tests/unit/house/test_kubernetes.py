"""The Kubernetes manifests, checked by schema and by reading: no cluster has run them.

Built-in kinds are validated by `kubernetes-validate`. Those of KEDA have no schema here: their structure alone is
looked at (and KubeRay's in `test_kuberay`). Where `kubectl` is installed, its Kustomize puts the overlays together;
elsewhere those tests are skipped, and the files are checked one by one.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from dearkd.settings import SECRETS, Settings
from dearkd.work.worker import GRACE_SECONDS
from dearkd_api.app import create_app
from dearkd_api.serving import GRACE_SECONDS as API_GRACE_SECONDS
from tests.support.compose import IMAGES, SERVICES, instructions, start_of
from tests.support.documents import ROOT, read, table

KUBERNETES = ROOT / "deploy" / "kubernetes"
VERSION = "1.37"
OLDEST = "1.30"
"""The versions between which the manifests are valid: that of the validator, and the oldest that is promised."""
SECRET_FILES = {
    "base": ("admin_key", "s3_access_key", "s3_secret_key"),
    "external-redis": ("redis_url",),
}

Resource = dict[str, Any]


def documents(path: Path) -> list[Resource]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


FILES = sorted(path for path in KUBERNETES.rglob("*.yaml") if "secrets" not in path.parts)
BASE = [document for path in FILES if path.parent.name == "base" for document in documents(path)]
BASE = [resource for resource in BASE if resource["kind"] != "Kustomization"]
WORKLOADS = {r["metadata"]["name"]: r for r in BASE if r["kind"] in ("Deployment", "StatefulSet")}
OURS = ("api", "synth", "trainer")


def pod_of(workload: Resource) -> dict[str, Any]:
    pod: dict[str, Any] = workload["spec"]["template"]["spec"]
    return pod


def container_of(workload: Resource) -> dict[str, Any]:
    (container,) = pod_of(workload)["containers"]
    return dict(container)


def kustomization(folder: str) -> Resource:
    (found,) = documents(KUBERNETES / folder / "kustomization.yaml")
    return found


def config() -> dict[str, str]:
    (generator,) = kustomization("base")["configMapGenerator"]
    return dict(literal.split("=", 1) for literal in generator["literals"])


def environment_of(name: str) -> dict[str, str]:
    container = container_of(WORKLOADS[name])
    assert container["envFrom"] == [{"configMapRef": {"name": "dearkd"}}]
    return config() | {entry["name"]: entry["value"] for entry in container["env"]}


@pytest.mark.parametrize("version", [OLDEST, VERSION])
@pytest.mark.parametrize("resource", BASE, ids=lambda resource: f"{resource['kind']}-{resource['metadata']['name']}")
def test_each_resource_is_valid_by_the_schema_of_its_kind(resource: Resource, version: str) -> None:
    assert kubernetes_validate.validate(resource, version, strict=True) == version


def test_the_schema_refuses_what_is_misspelt() -> None:
    """Or the test above could not fail."""
    broken = yaml.safe_load(yaml.safe_dump(WORKLOADS["api"]))
    pod_of(broken)["terminationGracePeriod"] = pod_of(broken).pop("terminationGracePeriodSeconds")
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(broken, VERSION, strict=True)


def test_every_file_is_part_of_a_kustomization() -> None:
    named = set()
    for folder in sorted(path.parent for path in FILES if path.name == "kustomization.yaml"):
        found = kustomization(folder.name)
        lists = ("resources", "components", "configurations")
        entries = [entry for name in lists for entry in found.get(name, [])]
        for entry in [*entries, *(patch.get("path") for patch in found.get("patches", []))]:
            if entry is not None:
                assert (folder / entry).exists(), entry
                named.add((folder / entry).resolve())
        for generator in found.get("secretGenerator", []):
            assert generator["files"] == [f"secrets/{Path(file).name}" for file in generator["files"]]
    rest = {path for path in FILES if path.name != "kustomization.yaml"} - named
    assert not rest
    files = {
        folder: [Path(file).name for one in kustomization(folder)["secretGenerator"] for file in one["files"]]
        for folder in SECRET_FILES
    }
    assert {folder: tuple(names) for folder, names in files.items()} == SECRET_FILES
    assert "secrets/" in read(".gitignore").splitlines()


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_pod_runs_without_rights_on_a_root_that_it_cannot_write(name: str) -> None:
    pod, container = pod_of(WORKLOADS[name]), container_of(WORKLOADS[name])
    assert pod["automountServiceAccountToken"] is False
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    user = SERVICES["redis"]["user"] if name == "redis" else instructions(name)["USER"][-1]
    assert f"{security['runAsUser']}:{security['runAsGroup']}" == user
    assert security["fsGroup"] == security["runAsGroup"]  # or its volumes and secrets could not be read
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    claimed = {claim["metadata"]["name"] for claim in WORKLOADS[name]["spec"].get("volumeClaimTemplates", [])}
    assert mounts == {volume["name"] for volume in pod.get("volumes", [])} | claimed
    labels = WORKLOADS[name]["spec"]["template"]["metadata"]["labels"]
    assert WORKLOADS[name]["spec"]["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("name", OURS)
def test_a_pod_runs_the_command_of_the_compose_file_with_settings_that_exist(name: str) -> None:
    container = container_of(WORKLOADS[name])
    assert "command" not in container  # that is the image's entry point
    assert ["tini", "--", "dearkd", *container["args"]] == start_of(name).command
    environment = environment_of(name)
    ours = {key.removeprefix("DEARKD_").lower(): value for key, value in environment.items() if "DEARKD_" in key}
    assert set(ours) <= set(Settings.model_fields)
    Settings.model_validate({key: value for key, value in ours.items() if not key.endswith("_file")})
    assert {key for key in environment if not key.startswith("DEARKD_")} == {
        "AWS_ACCESS_KEY_ID_FILE",
        "AWS_SECRET_ACCESS_KEY_FILE",
    }


@pytest.mark.parametrize("name", OURS)
def test_secrets_are_files_that_are_mounted_and_in_no_environment(name: str) -> None:
    generated = {
        generator["name"]: [Path(file).name for file in generator["files"]]
        for generator in kustomization("base")["secretGenerator"]
    }
    pod, container = pod_of(WORKLOADS[name]), container_of(WORKLOADS[name])
    secrets = {v["name"]: v["secret"] for v in pod["volumes"] if "secret" in v}
    lying = {
        f"{mount['mountPath']}/{file}"
        for mount in container["volumeMounts"]
        for file in generated.get(secrets.get(mount["name"], {}).get("secretName"), [])
    }
    named = {key: value for key, value in environment_of(name).items() if key.endswith("_FILE")}
    assert set(named.values()) == lying
    assert {secret["defaultMode"] for secret in secrets.values()} == {0o440}
    bare = {f"DEARKD_{secret.upper()}" for secret in SECRETS if secret != "redis_url"}
    assert not bare & environment_of(name).keys()
    assert ("DEARKD_ADMIN_KEYS_FILE" in named) == (name == "api")


@pytest.mark.parametrize("name", OURS)
def test_pods_get_the_time_to_hand_back(name: str) -> None:
    container = container_of(WORKLOADS[name])
    (*_, before) = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["0"])
    grace = float(before) + (API_GRACE_SECONDS if name == "api" else GRACE_SECONDS)
    assert pod_of(WORKLOADS[name])["terminationGracePeriodSeconds"] >= grace + 10


def test_probes_ask_routes_of_the_api_that_need_no_key(tmp_path: Path) -> None:
    container = container_of(WORKLOADS["api"])
    ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
    assert ports["http"] == environment_of("api")["DEARKD_PORT"]
    asked = {}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked[name] = container[name]["httpGet"]["path"]
        assert container[name]["httpGet"]["port"] in ports
    # An outage of Redis is no reason to restart what waits it out.
    assert asked == {"startupProbe": "/healthz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    routes = create_app(Settings(storage_url=f"file://{tmp_path}")).openapi()["paths"]
    assert set(asked.values()) <= set(routes)
    for name in ("synth", "trainer"):
        assert not {"startupProbe", "readinessProbe", "livenessProbe"} & container_of(WORKLOADS[name]).keys()


def test_services_policies_and_budgets_select_pods_that_exist() -> None:
    labels = [workload["spec"]["template"]["metadata"]["labels"] for workload in WORKLOADS.values()]

    def chosen(selector: dict[str, str]) -> int:
        return sum(selector.items() <= one.items() for one in labels)

    found = {
        (resource["kind"], resource["metadata"]["name"]): resource["spec"] for resource in BASE if "spec" in resource
    }
    assert chosen(found["Service", "api"]["selector"]) == chosen(found["Service", "redis"]["selector"]) == 1
    assert found["StatefulSet", "redis"]["serviceName"] == "redis"
    policies = {name: spec for (kind, name), spec in found.items() if kind == "NetworkPolicy"}
    assert {name: chosen(spec["podSelector"]["matchLabels"]) for name, spec in policies.items()} == {
        "redis": 1,
        "workers": 2,
        "api": 1,
    }
    callers = [peer["podSelector"]["matchLabels"] for peer in policies["redis"]["ingress"][0]["from"]]
    assert [chosen(caller) for caller in callers] == [1, 2]
    budget = found["PodDisruptionBudget", "api"]
    assert chosen(budget["selector"]["matchLabels"]) == 1
    # Else no node with an API on it could be drained.
    assert WORKLOADS["api"]["spec"]["replicas"] > budget["maxUnavailable"] > 0
    redis = container_of(WORKLOADS["redis"])
    assert (redis["image"], redis["args"]) == (SERVICES["redis"]["image"], SERVICES["redis"]["command"])
    assert config()["DEARKD_REDIS_URL"] == "redis://redis:6379/0"


def test_the_structure_of_kedas_resources_and_the_metrics_that_they_go_by() -> None:
    """Their kinds are KEDA's own: of them there is no schema here."""
    scaled = documents(KUBERNETES / "keda" / "scaled-objects.yaml")
    rows = {row[0].strip("`"): row for row in table(read("docs/metrics.md"), "Prometheus")}
    assert [one["spec"]["scaleTargetRef"]["name"] for one in scaled] == ["synth", "trainer"]
    for one in scaled:
        assert (one["apiVersion"], one["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
        spec, name = one["spec"], one["metadata"]["name"]
        assert one["metadata"]["namespace"] == kustomization("base")["namespace"]
        assert 0 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
        (trigger,) = spec["triggers"]
        assert trigger["type"] == "metrics-api"
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        match = re.fullmatch(r'(\w+)\{kind="(\w+)"\}', trigger["metadata"]["valueLocation"])
        assert match
        assert match.groups() == ("dearkd_workers_wanted", name)
        assert match[1] in rows
        assert trigger["metadata"]["url"] == "http://api.dearkd.svc.cluster.local:8000/metrics"
    # The inspector is a synth worker's.
    assert scaled[0]["spec"]["minReplicaCount"] == 1


def test_each_gpu_worker_has_a_gpu_of_its_own() -> None:
    for name in ("synth", "trainer"):
        (patch,) = documents(KUBERNETES / "gpu" / f"{name}.yaml")
        assert patch["metadata"]["name"] == name
        (container,) = patch["spec"]["template"]["spec"]["containers"]
        assert container["name"] == container_of(WORKLOADS[name])["name"]
        assert container["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    images = {folder: {image["name"] for image in kustomization(folder)["images"]} for folder in ("cpu", "gpu")}
    assert images["cpu"] == images["gpu"] == {f"dearkd-{name}" for name in IMAGES}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifests with secrets, beside which overlays may be put."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, whose Kustomize puts overlays together, is not installed")
    folder = tmp_path_factory.mktemp("kubernetes") / "kubernetes"
    shutil.copytree(KUBERNETES, folder, ignore=shutil.ignore_patterns("secrets"))
    for place, names in SECRET_FILES.items():
        (folder / place / "secrets").mkdir()
        for name in names:
            (folder / place / "secrets" / name).write_text("secret-0123456789\n")
    return folder


def built(folder: Path) -> list[Resource]:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [resource for resource in yaml.safe_load_all(done.stdout) if resource]


@pytest.mark.parametrize("overlay", ["cpu", "gpu", "mine"])
def test_what_kustomize_makes_of_an_overlay_is_valid(copied: Path, overlay: str) -> None:
    if overlay == "mine":
        (copied / "mine").mkdir()
        mine = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": ["../gpu"],
            "components": ["../keda", "../external-redis"],
        }
        (copied / "mine" / "kustomization.yaml").write_text(yaml.safe_dump(mine))
    resources = built(copied / overlay)
    for resource in resources:
        if resource["kind"] != "ScaledObject":
            kubernetes_validate.validate(resource, VERSION, strict=True)
        assert resource["kind"] == "Namespace" or resource["metadata"]["namespace"] == "dearkd"
    found = {(resource["kind"], resource["metadata"]["name"]): resource for resource in resources}
    made = {name for kind, name in found if kind in ("ConfigMap", "Secret")}
    for name in OURS:
        pod, container = pod_of(found["Deployment", name]), container_of(found["Deployment", name])
        assert container["envFrom"][0]["configMapRef"]["name"] in made
        assert {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume} <= made
        assert re.fullmatch(r"dearkd-\w+:[\d.]+", container["image"])
        gpus = container["resources"]["limits"].get("nvidia.com/gpu")
        assert gpus == ("1" if overlay != "cpu" and name != "api" else None)
        given = {entry["name"] for entry in container["env"]}
        assert ("DEARKD_REDIS_URL_FILE" in given) == (overlay == "mine")
        assert ("replicas" in found["Deployment", name]["spec"]) == (overlay != "mine" or name == "api")
    assert (("StatefulSet", "redis") in found) == (overlay != "mine")
    (values,) = [resource["data"] for (kind, _), resource in found.items() if kind == "ConfigMap"]
    assert bool(values["DEARKD_REDIS_URL"]) == (overlay != "mine")
