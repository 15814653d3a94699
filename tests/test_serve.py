"""The server: what real clients read over it is what lies there, and nothing else can be had."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import netCDF4
import numpy as np
import pystac
import pytest
import uvicorn

from pipeline.cli import run_command
from pipeline.errors import ConfigError
from pipeline.offer import publication, serve
from tests.offer import add_run


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with things in it that are not to be had."""
    folder = tmp_path_factory.mktemp("served") / "out"
    add_run(folder, "run-1", 0)
    publication.publish(folder)
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "observations.csv").write_text("secret")
    (folder / "products" / ".hidden").write_text("secret")
    (folder / "products" / ".folder").mkdir()
    (folder / "products" / ".folder" / "file").write_text("secret")
    (folder / "products" / "link.txt").symlink_to(folder.parent / "secret.txt")
    return folder


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A server on a free port of the loopback, in a thread."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(serve.application(folder), log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture(scope="module")
def url(out: Path) -> Iterator[str]:
    with served(out) as address:
        httpx.get(f"{address}/products/").raise_for_status()
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, follow_redirects=True, trust_env=False) as found:
        yield found


@pytest.fixture
def product(out: Path) -> Path:
    return next((out / "products").glob("*20190131*.nc"))


# ---- what is there ----


def test_the_page_and_every_file_it_leads_to(client: httpx.Client, out: Path) -> None:
    page = client.get("/")
    assert page.url.path == "/products/"
    assert page.content == (out / "products" / "index.html").read_bytes()
    assert "SIMULATED" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for line in (out / "products" / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ", 1)
        assert hashlib.sha256(client.get(f"/products/{name}").content).hexdigest() == digest, name


def test_a_crawler_finds_every_item_and_asset(client: httpx.Client, url: str) -> None:
    class Http(pystac.stac_io.DefaultStacIO):
        def read_text_from_href(self, href: str) -> str:
            return client.get(href).raise_for_status().text

    root = pystac.Catalog.from_file(f"{url}/products/catalog.json", stac_io=Http())
    items = list(root.get_items(recursive=True))
    assert len(items) == 2
    assets = [asset for item in items for key, asset in item.assets.items() if key != "cube"]
    assert len(assets) == 6
    for asset in assets:
        answer = client.head(asset.get_absolute_href())
        assert answer.status_code == 200
        assert int(answer.headers["content-length"]) == asset.extra_fields["file:size"]


def test_the_cube_is_there_too(client: httpx.Client, out: Path) -> None:
    files = [path for path in (out / "cube.icechunk").rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        assert client.get(f"/{path.relative_to(out).as_posix()}").content == path.read_bytes()


# ---- parts of files ----


def test_a_download_resumes(client: httpx.Client, product: Path) -> None:
    whole, path = product.read_bytes(), f"/products/{product.name}"
    first = client.get(path, headers={"Range": "bytes=0-999"})
    assert first.status_code == 206
    assert first.headers["content-range"] == f"bytes 0-999/{len(whole)}"
    same = {"Range": "bytes=1000-", "If-Range": first.headers["etag"]}
    assert first.content + client.get(path, headers=same).content == whole
    other = client.get(path, headers={"Range": "bytes=1000-", "If-Range": '"of another file"'})
    assert (other.status_code, other.content) == (200, whole)  # the file changed: begin again
    assert client.get(path, headers={"Range": "bytes=-8"}).content == whole[-8:]
    assert client.get(path, headers={"Range": f"bytes={len(whole)}-"}).status_code == 416
    assert client.get(path, headers={"If-None-Match": first.headers["etag"]}).status_code == 304


def test_netcdf_reads_a_part_over_the_network(url: str, product: Path) -> None:
    with netCDF4.Dataset(product) as here:
        expected = here["pm2p5"][5]
    try:
        there = netCDF4.Dataset(f"{url}/products/{product.name}#mode=bytes")
    except OSError as error:
        pytest.skip(f"needs a netCDF library with byte ranges: {error}")
    with there:
        np.testing.assert_array_equal(there["pm2p5"][5], expected)


def test_gdal_reads_a_part_over_the_network(url: str, product: Path) -> None:
    if shutil.which("gdalinfo") is None:
        pytest.skip("needs gdalinfo")
    name = f'HDF5:"/vsicurl/{url}/products/{product.name}"://pm2p5'
    done = subprocess.run(["gdalinfo", name], capture_output=True, text=True, env=os.environ | {"no_proxy": "*"})
    if "Unable to open" in done.stderr or "not recognized" in done.stderr:
        pytest.skip(f"needs GDAL with HDF5 and curl: {done.stderr}")
    assert "Size is 9, 9" in done.stdout, done.stdout + done.stderr


def test_a_web_page_of_another_site_may_read_in_parts(client: httpx.Client, product: Path) -> None:
    path, origin = f"/products/{product.name}", {"Origin": "https://browser.example"}
    asked = origin | {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "Range"}
    assert client.options(path, headers=asked).headers["access-control-allow-origin"] == "*"
    answer = client.get(path, headers=origin | {"Range": "bytes=0-1"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "Content-Range" in answer.headers["access-control-expose-headers"]


# ---- what is not to be had ----

NOT_THERE = [
    "/observations.csv",
    "/.products.lock",
    "/.cube.icechunk.lock",
    "/products/.hidden",
    "/products/%2ehidden",
    "/products/.folder/file",
    "/products/link.txt",
    "/products/../observations.csv",
    "/products/%2e%2e/observations.csv",
    "/products/..%2fobservations.csv",
    "/products/stac/../../observations.csv",
    "/products/..%5cobservations.csv",
    "/products//etc/passwd",
    "/products/%2fetc%2fpasswd",
    "/products/....//....//secret.txt",
    "/products/../../secret.txt",
    "/products/%00",
    "/products/index.html%00.txt",
    "/cube.icechunk/../observations.csv",
    "/cube.icechunk/",
    "/products/stac/",
    "/products/provenance/",
    "/etc/passwd",
    "//etc/passwd",
]


@pytest.mark.parametrize("path", NOT_THERE)
def test_nothing_else_can_be_had(url: str, path: str) -> None:
    """Asked as it stands, which httpx would tidy up first."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.putrequest("GET", path, skip_host=False)
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status in (400, 404, 405)
    assert b"secret" not in answer.read()
    connection.close()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_written(client: httpx.Client, out: Path, method: str) -> None:
    before = (out / "products" / "index.html").read_bytes()
    assert client.request(method, "/products/index.html", content=b"x").status_code == 405
    assert (out / "products" / "index.html").read_bytes() == before


# ---- while it runs ----


def test_a_publication_is_seen_at_once(out: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(out, tmp_path / "out", symlinks=True))
    with served(copy) as url, httpx.Client(base_url=url, trust_env=False) as client:
        former = client.get("/products/SHA256SUMS")
        next((copy / "products").glob("*.png")).unlink()
        publication.publish(copy)
        latter = client.get("/products/SHA256SUMS", headers={"If-None-Match": former.headers["etag"]})
    assert latter.status_code == 200
    assert latter.content == (copy / "products" / "SHA256SUMS").read_bytes() != former.content


def test_the_command_serves_until_it_is_stopped(out: Path) -> None:
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "serve", "--out", str(out), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "serving" in line)
        address = next(word for word in said.split() if word.startswith("http://"))
        assert address.startswith("http://127.0.0.1:")
        assert httpx.get(f"{address}products/catalog.json", trust_env=False).json()["type"] == "Catalog"
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert "Traceback" not in log
    assert "stopped serving" in log


def test_what_cannot_be_served_is_said(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["serve", "--out", str(tmp_path)]) == 1
    assert "found no folder 'products' in it" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: expected an address that is free"):
            serve.serve(out, port=port)


def test_publish_prints_where_to_begin(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(out, tmp_path / "out", ignore=shutil.ignore_patterns("link.txt")))
    assert run_command(["publish", "--out", str(copy)]) == 0
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in printed] == ["index.html", "catalog.json", "ro-crate-metadata.json", "SHA256SUMS"]
    assert all(path.is_file() for path in printed)
    assert run_command(["publish", "--out", str(tmp_path / "nothing")]) == 1
