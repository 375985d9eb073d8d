"""The Dockerfiles' own steps in a Debian root, where there is no container engine: what they build starts and is
healthy, as nobody special.

This fetches gigabytes, so it runs with `make soak` only. The root stands for python:3.11-slim-bookworm: bookworm's own
Python is 3.11 too. Packages come from where this machine's apt and pip take them.
"""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from test_manifests import DOCKERFILES, ROOT, dockerfile

pytestmark = [
    pytest.mark.skipif("GENMODELS_SOAK_SECONDS" not in os.environ, reason="takes minutes; runs with `make soak`"),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("debootstrap"), reason="needs debootstrap, and root for it"
    ),
    pytest.mark.timeout(1800),
]
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
OF_THIS_MACHINE = [Path("/etc", name) for name in ("apt/apt.conf.d", "ssl/certs", "pip.conf", "resolv.conf")]
OF_THIS_MACHINE += [Path.home() / ".config/pip"]
CERTIFICATES = {"SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt"}  # uv brings others of its own
NEEDED = {  # by Dockerfile: what must be up before its command
    "genmodels.Dockerfile": "prefect server start & until python -c 'from urllib.request import urlopen; "
    'urlopen("http://127.0.0.1:4200/api/health")\' 2> /dev/null; do sleep 1; done; '
    "export PREFECT_API_URL=http://127.0.0.1:4200/api",
    "mlflow.Dockerfile": "true",
}


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("debian") / "root"
    sources = "".join(path.read_text() for path in Path("/etc/apt").glob("sources.list*/*.sources"))
    mirror = re.findall(r"^URIs: *(\S+)", sources, re.MULTILINE)[:1]
    run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root), *mirror)
    for place in OF_THIS_MACHINE:
        if place.exists():
            target = root / place.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            run("cp", "--archive", "--no-target-directory", str(place), str(target))
    (root / "usr/bin/python").symlink_to("python3")
    for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):  # the image's Python is not Debian's
        marker.unlink()
    yield root
    shutil.rmtree(root)


@pytest.fixture
def roots(tmp_path: Path) -> Iterator[Path]:
    """Where the stages' roots lie, which are too large to be kept."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def run(*command: str, **environment: str) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-3000:]}"


def inside(
    root: Path, script: str, environment: dict[str, str], folder: str, user: str = "0:0", net: bool = True
) -> None:
    """A shell's script in the root, with the kernel's file systems and, unless it serves, this machine's network."""
    kernel = f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev && ip link set lo up || exit"
    settings = ["env", "--ignore-environment", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"]
    settings += [f"{name}={value}" for name, value in (CERTIFICATES | environment).items()]
    shell = ["chroot", f"--userspec={user}", str(root), *settings, "bash", "-c", f"cd {folder} && {script}"]
    namespaces = ["--mount", "--pid", "--fork", "--kill-child", *([] if net else ["--net"])]
    run("unshare", *namespaces, "bash", "-c", f"{kernel}; exec {shlex.join(shell)}")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_builds_and_what_it_starts_is_healthy(path: Path, debian: Path, roots: Path):
    stages: dict[str, Path] = {}
    root, environment, folder, user, health, command = debian, dict[str, str](), "/", "0:0", "", ""
    for name, argument in dockerfile(path):
        if name == "FROM":
            root, environment, folder = roots / str(len(stages)), {}, "/"
            run("cp", "--archive", "--reflink=auto", str(debian), str(root))
            stages[argument.partition(" AS ")[2]] = root
        elif name == "WORKDIR":
            folder = argument
            (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            copied, *words = argument.split() if "--from" in argument else ["", *argument.split()]
            source = stages[copied.partition("=")[2]] if copied else ROOT
            *names, target = words
            place = root / (Path(folder) / target).relative_to("/")
            for each in names:
                into = place / Path(each).name if target.endswith("/") or len(names) > 1 else place
                into.parent.mkdir(parents=True, exist_ok=True)
                run("cp", "--archive", "--no-target-directory", str(source / each.lstrip("/")), str(into))
        elif name == "RUN":
            inside(root, argument, environment, folder)
        elif name == "ENV":
            for variable, value in (word.split("=", 1) for word in shlex.split(argument)):
                environment[variable] = value.replace("$PATH", "/usr/local/bin:/usr/bin:/bin")
        elif name == "USER":
            user = argument
        elif name == "HEALTHCHECK":
            health = shlex.join(yaml.safe_load(argument.partition("CMD ")[2]))
        elif name == "CMD":
            command = shlex.join(yaml.safe_load(argument))
    healthy = f"for _ in $(seq 120); do {health} 2> /dev/null && exit 0; sleep 1; done; exit 1"
    started = f"{NEEDED[path.name]}; {command} & {healthy}"
    inside(root, started, environment | {"HOME": folder}, folder, user, net=False)
