"""Dockerfiles, compose and Kubernetes against the code: what they name must exist, and what the code needs be named.

Nothing is started here. What a container engine or a cluster makes of the files is not tested.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genmodels.settings import Settings
from genmodels.stack.ports import USUAL_PORTS
from genmodels.stack.services import Stack, services

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "infra/compose.yaml"
KUBERNETES = ROOT / "infra/kubernetes"
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
VARIABLES = {f"GENMODELS_{name.upper()}" for name in Settings.model_fields}
SECRET = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING|FLASK_KEY")
POSTGRES = "postgres"  # the one program that is not ours


@dataclass(frozen=True)
class Container:
    """A container, wherever it is described. Values that are references to secrets are dicts."""

    place: str
    image: str
    command: list[str]
    environment: dict[str, Any]
    mounts: list[str]
    about: dict[str, Any]

    def __str__(self) -> str:
        return self.place


@cache
def dockerfile(path: Path) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile: name and argument."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, argument.strip()) for name, argument in re.findall(r"^([A-Z]+) +(.*)$", text, re.MULTILINE)]


def documents(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.yaml")):
        if path.name not in {"kustomization.yaml", "references.yaml"}:
            yield from yaml.safe_load_all(path.read_text())


RESOURCES = [*documents(KUBERNETES / "base"), *documents(KUBERNETES / "components/seaweedfs")]
KUSTOMIZATION = yaml.safe_load((KUBERNETES / "base/kustomization.yaml").read_text())
SHARED = dict(line.split("=", 1) for line in KUSTOMIZATION["configMapGenerator"][0]["literals"])
SERVICES = yaml.safe_load(COMPOSE.read_text())["services"]


def pod_templates() -> Iterator[tuple[str, dict[str, Any]]]:
    for resource in RESOURCES:
        name, spec = resource["metadata"]["name"], resource.get("spec", {})
        if resource["kind"] == "RayCluster":
            yield "ray", spec["headGroupSpec"]["template"]
            yield from ((f"ray-{group['groupName']}", group["template"]) for group in spec["workerGroupSpecs"])
        elif "template" in spec:
            yield name, spec["template"]


def kubernetes_containers() -> Iterator[Container]:
    for name, template in pod_templates():
        for about in template["spec"]["containers"]:
            own = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in about["env"]}
            environment = (SHARED if "envFrom" in about else {}) | own
            mounts = [mount["mountPath"] for mount in about["volumeMounts"]]
            command = about.get("command", []) + about.get("args", [])
            yield Container(f"kubernetes/{name}", about["image"], command, environment, mounts, about)


def compose_containers() -> Iterator[Container]:
    for name, about in SERVICES.items():
        mounts = [volume.split(":")[1] for volume in about.get("volumes", [])]
        mounts += [entry.split(":")[0] for entry in about.get("tmpfs", [])]
        mounts += [f"/run/secrets/{secret}" for secret in about.get("secrets", [])]
        yield Container(
            f"compose/{name}", about["image"], about.get("command", []), about.get("environment", {}), mounts, about
        )


CONTAINERS = [*compose_containers(), *kubernetes_containers()]
OURS = [container for container in CONTAINERS if not container.image.startswith(POSTGRES)]


def locked(package: str) -> str:
    match = re.search(rf"^{re.escape(package)}==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert match, f"{package} is not in requirements.lock"
    return match[1]


def commands() -> Iterator[tuple[str, list[str]]]:
    yield from ((str(container), container.command) for container in OURS if container.command)
    for path in DOCKERFILES:
        yield from ((path.name, yaml.safe_load(argument)) for name, argument in dockerfile(path) if name == "CMD")


def options_of(*command: str) -> set[str]:
    """The options that a program's own help names."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "300"})
    return set(re.findall(r"(?<![\w-])(--?[\w.][\w.-]*)", done.stdout + done.stderr))


@cache
def known_options(program: str, *subcommands: str) -> set[str]:
    tools = Path(sys.executable).parent
    asking = ["help", *subcommands] if program == "weed" else [*subcommands, "--help"]
    return options_of(str(tools / program), *asking)


@pytest.mark.parametrize(("place", "command"), list(commands()), ids=str)
def test_commands_and_their_options_exist(place: str, command: list[str]):
    program, *rest = command
    if program == "python":
        assert rest[0] == "-c"
        compile(rest[1], place, "exec")
        module, names = re.findall(r"from ([\w.]+) import (\w+)", rest[1])[0]
        assert hasattr(__import__(module, fromlist=[names]), names)
        return
    position = next((index for index, word in enumerate(rest) if word.startswith("-")), len(rest))
    known = known_options(program, *rest[:position])
    given = {word.partition("=")[0] for word in rest[position:] if word.startswith("-")}
    assert known, f"{place}: {shlex.join(command)} has no help"
    assert given <= known, f"{place}: {program} knows no {given - known}"


@pytest.mark.parametrize("container", CONTAINERS, ids=str)
def test_variables_are_ones_that_somebody_reads(container: Container):
    import mlflow.environment_variables as of_mlflow
    import prefect.settings as of_prefect

    mlflow_options = {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"}
    ray = services(Path("/home"), a_stack())["ray"].environment
    for name in container.environment:
        if name.startswith("GENMODELS_"):
            assert name in VARIABLES
        elif name.startswith("PREFECT_") and name != "PREFECT_DATABASE_PASSWORD":
            assert hasattr(of_prefect, name)
        elif name.startswith("MLFLOW_") and name != "MLFLOW_DATABASE_PASSWORD":
            assert hasattr(of_mlflow, name) or name in mlflow_options
        elif name.startswith("RAY_"):
            assert name in ray


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_copy_what_there_is_and_run_as_nobody_special(path: Path):
    instructions = dockerfile(path)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name, argument in instructions:
        if name == "COPY" and "--from" not in argument:
            for source in argument.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in ignored, f".dockerignore keeps {source} out of the build"
        if name == "ENV":
            for variable in re.findall(r"\bGENMODELS_\w+", argument):
                assert variable in VARIABLES
    names = [name for name, _ in instructions]
    assert names.count("FROM") == 2, "what builds is not what runs"
    assert ("USER", "10001:10001") in instructions
    assert names.index("USER") > names.index("FROM", 1)
    assert "HEALTHCHECK" in names
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    bases = [argument.split()[0] for name, argument in instructions if name == "FROM"]
    assert set(bases) == {"python:3.11-slim-bookworm"}
    assert "3.11" in version
    runs = " ".join(argument for name, argument in instructions if name == "RUN")
    assert "--require-hashes" in runs
    assert "--constraint" in runs
    assert "requirements.lock" in runs


def test_versions_are_those_of_the_lock():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    tags = {"genmodels": version, "genmodels-mlflow": locked("mlflow")}
    for service in SERVICES.values():
        name, _, tag = service["image"].partition(":")
        assert tag == tags.get(name, tag)
    images = {entry["name"]: entry["newTag"] for entry in KUSTOMIZATION["images"]}
    assert images == tags
    postgres = {c.image for c in CONTAINERS if c.image.startswith(POSTGRES)}
    assert len(postgres) == 1
    assert {c.image for c in kubernetes_containers()} - postgres == set(tags)
    [ray] = [resource for resource in RESOURCES if resource["kind"] == "RayCluster"]
    assert ray["spec"]["rayVersion"] == locked("ray")
    assert yaml.safe_load((ROOT / "infra/prefect.yaml").read_text())["prefect-version"] == locked("prefect")


def a_stack() -> Stack:
    names = [*USUAL_PORTS, *("s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc")]
    names += [f"ray.{part}" for part in ("gcs", "client", "node", "objects", "agent", "agent.grpc", "env", "metrics")]
    token = ROOT / "pyproject.toml"  # any file: its content is of no interest here
    stack = Stack(bucket="genmodels", s3_access_key="k", s3_secret_key="s", ray_token_path=token)
    return stack.on_ports({name: number or 1 for name, number in dict.fromkeys(names, 1).items()})


@pytest.mark.parametrize("container", OURS, ids=str)
def test_what_the_local_stack_found_out_holds_for_the_others(container: Container):
    """The switches of `genmodels up` that have nothing to do with where things are."""
    programs = {"weed": "s3", "mlflow": "mlflow", "ray": "ray"}
    name = programs.get(container.command[0]) if container.command else "ray"
    if container.command[:2] == ["prefect", "server"]:
        name = "prefect"
    if name is None:
        return
    local = services(Path("/home"), a_stack())[name]
    places = re.compile(r"URL|URI|PATH|HOME|ACCESS_KEY|REGION|RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER|RAY_AUTH_MODE")
    for variable, value in local.environment.items():
        if not places.search(variable):
            assert container.environment.get(variable) == value, f"{container} lacks {variable}={value}"
    if name == "s3":
        switches = {"-master.peers=none", "-volume.max=0", "-s3.autoCreateBucket=false", "-filer.disableHttp"}
        assert switches <= set(local.command)
        assert switches <= set(container.command)


def port_of(container: Container) -> int:
    """The port that a server's command listens on."""
    for previous, word in zip(["", *container.command], container.command, strict=False):
        if previous == "--port" or word.startswith(("-s3.port=", "--dashboard-port=")):
            return int(word.rpartition("=")[2])
    raise AssertionError(f"{container} names no port")


USUAL = {"s3": 8333, "mlflow": 5000, "prefect": 4200, "ray": 8265}


def test_addresses_lead_to_the_servers_of_that_name():
    compose = {str(container).rpartition("/")[2]: container for container in compose_containers()}
    variables = {"S3_ENDPOINT": "s3", "MLFLOW_URL": "mlflow", "PREFECT_API_URL": "prefect", "RAY_ADDRESS": "ray"}
    for variable, name in variables.items():
        address = compose["worker"].environment[f"GENMODELS_{variable}"]
        assert re.match(rf"http://{name}:{USUAL[name]}(/api)?$", address)
        assert port_of(compose[name]) == USUAL[name]
    ports = {r["metadata"]["name"]: r["spec"]["ports"][0]["port"] for r in RESOURCES if r["kind"] == "Service"}
    servers = {str(container).rpartition("/")[2]: container for container in kubernetes_containers()}
    for variable, name in variables.items():
        host = "genmodels-head-svc" if name == "ray" else name  # KubeRay's name for the service of a head
        assert re.match(rf"http://{host}:{USUAL[name]}(/api)?$", SHARED[f"GENMODELS_{variable}"])
        listening = {port["containerPort"] for port in servers[name].about["ports"]}
        assert USUAL[name] in listening
        if name != "ray":
            assert ports[name] == USUAL[name] == port_of(servers[name])
    assert ports["postgres"] == 5432
    for container in CONTAINERS:
        for address in re.findall(r"postgresql\S*://(\w+):\S+@postgres:5432/(\w+)", str(container.environment)):
            assert address in {("prefect", "prefect"), ("mlflow", "mlflow")}


def test_a_nodes_cache_keeps_below_the_size_at_which_its_pod_is_evicted():
    nodes = [template["spec"] for name, template in pod_templates() if name.startswith("ray")]
    assert nodes
    for node in nodes:
        (limit,) = (v["emptyDir"]["sizeLimit"].removesuffix("Gi") for v in node["volumes"] if v["name"] == "cache")
        (kept,) = (e["value"] for e in node["containers"][0]["env"] if e["name"] == "GENMODELS_CACHE_GIB")
        assert float(kept) <= 0.8 * float(limit), "a preparation writes beside what is kept"


def test_the_worker_is_told_all_that_the_flows_need():
    needed = VARIABLES - {
        "GENMODELS_BIND",
        "GENMODELS_MIRROR",
        "GENMODELS_DATABASE_URL",
        "GENMODELS_CACHE_DIR",
        "GENMODELS_CACHE_GIB",
        "GENMODELS_HOME",
        "GENMODELS_S3_REGION",
        "GENMODELS_WORKER_RESOURCES",
    }
    for container in CONTAINERS:
        if str(container).endswith("/worker"):
            assert needed <= set(container.environment)
            assert container.environment["PREFECT_API_URL"] == container.environment["GENMODELS_PREFECT_API_URL"]
        elif "/ray" in str(container):
            assert {name for name in needed if "S3" in name or "MLFLOW" in name} <= set(container.environment)


@pytest.mark.parametrize("container", CONTAINERS, ids=str)
def test_folders_that_are_written_to_are_mounted(container: Container):
    """The root file system is read-only."""
    about = container.about
    if container.place.startswith("compose"):
        assert about["read_only"] is True
        assert about["cap_drop"] == ["ALL"]
        assert about["security_opt"] == ["no-new-privileges:true"]
    if container.command[:2] == ["prefect", "server"]:  # else it lays its pages down beside its own sources
        assert "PREFECT_UI_STATIC_DIRECTORY" in container.environment
    written = ["GENMODELS_HOME", "GENMODELS_CACHE_DIR", "GENMODELS_RAY_TOKEN_PATH", "PREFECT_HOME", "PGDATA"]
    for variable in (*written, "PREFECT_UI_STATIC_DIRECTORY"):
        if value := container.environment.get(variable):
            assert any(value == mount or value.startswith(f"{mount}/") for mount in container.mounts), variable
    assert "/tmp" in container.mounts
    for word in container.command:
        if word.startswith("-dir="):
            assert word.removeprefix("-dir=") in container.mounts


@pytest.mark.parametrize("container", CONTAINERS, ids=str)
def test_no_secret_stands_in_a_file(container: Container):
    for name, value in container.environment.items():
        if isinstance(value, dict):
            [[kind, reference]] = value.items()
            assert kind in {"secretKeyRef", "configMapKeyRef"}
            if kind == "secretKeyRef":
                told = re.search(rf"secret generic {reference['name']}\b[^#]*(#[^#]*)*?{reference['key']}=", SETUP)
                assert told, f"nobody is told to make {reference}"
        elif SECRET.search(name):
            assert container.place.startswith("compose")
            assert re.fullmatch(r"\$\{\w+:\?\}", value)
        else:
            assert not re.search(r"://\w+:(?!\$)[^/]*@", str(value)), "a password in an address"


SETUP = (KUBERNETES / "base/kustomization.yaml").read_text().split("apiVersion")[0]


@pytest.mark.parametrize(("name", "template"), list(pod_templates()))
def test_pods_are_locked_down_probed_and_bounded(name: str, template: dict[str, Any]):
    pod = template["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    if name != "ray":  # the head's autoscaler asks the cluster for workers
        assert pod["automountServiceAccountToken"] is False
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for container in pod["containers"]:
        locked = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert container["securityContext"] == locked
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} - {"data"} <= volumes
        if name != "bucket":
            ports = {port["name"] for port in container["ports"]}
            for probe in ("readinessProbe", "livenessProbe"):
                asked = container[probe].get("httpGet")
                assert asked is None or asked["port"] in ports


def test_network_policies_speak_of_pods_and_ports_that_there_are():
    labels = {template["metadata"]["labels"]["app"] for _, template in pod_templates()}
    ports = {port["containerPort"] for c in kubernetes_containers() for port in c.about.get("ports", [])}
    covered = set()
    for policy in (resource["spec"] for resource in RESOURCES if resource["kind"] == "NetworkPolicy"):
        covered.add(policy["podSelector"].get("matchLabels", {}).get("app"))
        for rule in policy.get("ingress", []):
            assert {entry["port"] for entry in rule.get("ports", [])} <= ports
            for peer in rule["from"]:
                selector = peer["podSelector"]
                named = {selector.get("matchLabels", {}).get("app")} - {None}
                named |= {
                    value for expression in selector.get("matchExpressions", []) for value in expression["values"]
                }
                assert named <= labels
    assert covered == {None} | (labels - {"worker", "bucket"}), "all that serves, and the rule for everybody"
    for service in (resource for resource in RESOURCES if resource["kind"] == "Service"):
        assert service["spec"]["selector"]["app"] in labels


class KubeRay(BaseModel):
    """`ray.io/v1` as the CRD of KubeRay's operator has it: ray-project/kuberay at 017710c,
    `helm-chart/kuberay-operator/crds/ray.io_rayclusters.yaml`, without descriptions. What that schema takes over
    from Kubernetes, pods and the fields of containers, is Kubernetes' to check."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(KubeRay):
    annotations: dict[str, str] = {}
    finalizers: list[str] = []
    labels: dict[str, str] = {}
    name: str | None = None
    namespace: str | None = None


class PodTemplate(KubeRay):
    metadata: Metadata = Metadata()
    spec: dict[str, Any] = {}


class Group(KubeRay):
    template: PodTemplate
    rayStartParams: dict[str, str] = {}
    resources: dict[str, str] = {}
    labels: dict[str, str] = {}


class HeadGroup(Group):
    serviceType: str | None = None
    headService: dict[str, Any] = {}
    enableIngress: bool | None = None


class ScaleStrategy(KubeRay):
    workersToDelete: list[str] = []


class WorkerGroup(Group):
    groupName: str
    minReplicas: int
    maxReplicas: int
    replicas: int = 0
    numOfHosts: int = 1
    idleTimeoutSeconds: int | None = None
    suspend: bool | None = None
    scaleStrategy: ScaleStrategy = ScaleStrategy()


class AutoscalerOptions(KubeRay):
    resources: dict[str, Any] = {}
    securityContext: dict[str, Any] = {}
    env: list[dict[str, Any]] = []
    envFrom: list[dict[str, Any]] = []
    volumeMounts: list[dict[str, Any]] = []
    image: str | None = None
    imagePullPolicy: str | None = None
    idleTimeoutSeconds: int | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    version: Literal["v1", "v2"] | None = None


class AuthOptions(KubeRay):
    mode: Literal["disabled", "token"] | None = None
    enableK8sTokenAuth: bool | None = None


class GcsFaultToleranceOptions(KubeRay):
    redisAddress: str
    redisUsername: dict[str, Any] = {}
    redisPassword: dict[str, Any] = {}
    externalStorageNamespace: str | None = None


class UpgradeStrategy(KubeRay):
    type: Literal["Recreate", "None"] | None = None


class RayClusterSpec(KubeRay):
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = []
    rayVersion: str | None = None
    enableInTreeAutoscaling: bool | None = None
    autoscalerOptions: AutoscalerOptions = AutoscalerOptions()
    authOptions: AuthOptions = AuthOptions()
    headServiceAnnotations: dict[str, str] = {}
    gcsFaultToleranceOptions: GcsFaultToleranceOptions | None = None
    managedBy: Literal["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"] | None = None
    suspend: bool | None = None
    ttlSecondsAfterIdle: int | None = Field(None, ge=0)
    upgradeStrategy: UpgradeStrategy = UpgradeStrategy()


def test_kubernetes_and_kuberay_know_every_field():
    """Strictly: by the schemas that Kubernetes publishes, and a RayCluster by KubeRay's around its pods."""
    kubernetes = pytest.importorskip("kubernetes_validate")
    version = kubernetes.latest_version()
    for resource in RESOURCES:
        if resource["kind"] != "RayCluster":
            kubernetes.validate(resource, version, strict=True)
            continue
        assert resource["apiVersion"] == "ray.io/v1"
        spec = RayClusterSpec.model_validate(resource["spec"])
        for group in spec.workerGroupSpecs:
            assert group.minReplicas <= group.replicas <= group.maxReplicas
        taken = {"env", "envFrom", "resources", "securityContext", "volumeMounts"}
        autoscaler = {"name": "autoscaler", **spec.autoscalerOptions.model_dump(include=taken)}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [autoscaler]}}
        kubernetes.validate(pod, version, strict=True)
    for name, template in pod_templates():
        wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": template}
        kubernetes.validate(wrapped, version, strict=True)
    typo = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"prots": []}}
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(typo, version, strict=True)


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        ("rayStartParams", {"headGroupSpec": {"template": {}, "rayStartParams": {"num-cpus": 0}}}),
        ("metadata.ownerReferences", {"headGroupSpec": {"template": {"metadata": {"ownerReferences": []}}}}),
        ("minReplicas", {"workerGroupSpecs": [{"groupName": "cpu", "maxReplicas": 8, "template": {}}]}),
        ("upgradeStrategy.type", {"upgradeStrategy": {"type": "RollingUpdate"}}),
        ("autoscalerOptions.idleTimeout", {"autoscalerOptions": {"idleTimeout": 300}}),
    ],
)
def test_what_kuberay_would_not_take_is_seen(where: str, wrong: dict[str, Any]):
    [ray] = [resource for resource in RESOURCES if resource["kind"] == "RayCluster"]
    with pytest.raises(ValidationError, match=re.escape(where)) as refused:
        RayClusterSpec.model_validate(ray["spec"] | wrong)
    assert refused.value.error_count() == 1


@pytest.fixture(params=["small", "gpu"])
def built(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What `kubectl apply` sends of an overlay."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("overlays are built by kubectl, which is not here")
    command = [kubectl, "kustomize", str(KUBERNETES / "overlays" / request.param)]
    return [*yaml.safe_load_all(subprocess.run(command, capture_output=True, check=True).stdout)]


def values_of(key: str, within: Any) -> Iterator[Any]:
    """All values under that key, however deep."""
    for name, value in within.items() if isinstance(within, dict) else enumerate(within):
        if name == key:
            yield value
        if isinstance(value, dict | list):
            yield from values_of(key, value)


def test_overlays_lie_in_their_namespace_and_name_what_there_is(built: list[dict[str, Any]]):
    assert {resource["metadata"].get("namespace") for resource in built} == {"genmodels"}
    configurations = {each["metadata"]["name"]: each["data"] for each in built if each["kind"] == "ConfigMap"}
    whole = [
        *values_of("configMapRef", built),
        *(v["configMap"] for v in values_of("volumes", built) if "configMap" in v),
    ]
    assert len(whole) >= 4  # the worker, Ray's head and both of its groups
    assert {reference["name"] for reference in whole} <= set(configurations)
    for reference in values_of("configMapKeyRef", built):
        assert reference["key"] in configurations[reference["name"]]


def test_every_image_has_the_tag_that_is_built(built: list[dict[str, Any]]):
    images = {image for resource in built for image in values_of("image", resource.get("spec", {}))}
    assert images == {image for service in SERVICES.values() if (image := service["image"])}


def test_a_training_worker_fits_on_a_node_that_may_come(built: list[dict[str, Any]]):
    """Ray counts a pod's CPUs by its limit and its GPUs by the name that NVIDIA's device plugin gives them."""
    [asked] = {value for each in built for value in values_of("GENMODELS_WORKER_RESOURCES", each.get("data", {}))}
    [ray] = [resource for resource in built if resource["kind"] == "RayCluster"]
    nodes = []
    for group in ray["spec"]["workerGroupSpecs"]:
        [limits] = [container["resources"]["limits"] for container in group["template"]["spec"]["containers"]]
        if group["maxReplicas"]:
            nodes.append({"CPU": int(limits["cpu"]), "GPU": limits.get("nvidia.com/gpu", 0)})
    worker = Settings.model_validate({"worker_resources": asked}).worker_resources
    assert worker
    assert any(all(node[kind] >= count for kind, count in worker.items()) for node in nodes)
