"""Fetching from servers of this test, on the loopback address alone."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragvl.server.errors import Overloaded, TooLarge, Unprocessable
from ragvl.server.fetch import PictureFetcher, allowed_origin, is_public

PICTURE = b"\x89PNG any bytes: what they hold is looked at elsewhere"
MAX_BYTES = 1000


class Host:
    """A server on 127.0.0.1 that answers by path, and notes who was asked for."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        self.sent: dict[str, str] = {}
        self.released = threading.Event()
        self.picture = PICTURE
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append((self.headers["Host"], self.path))
                host.sent = dict(self.headers)
                host.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_port

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        headers: dict[str, str] = {"Content-Type": "image/png"}
        status, body = 200, self.picture
        if request.path.startswith("/to/"):
            status, headers["Location"] = 302, request.path.removeprefix("/to/")
        elif request.path.startswith("/status/"):
            status = int(request.path.removeprefix("/status/"))
        elif request.path.startswith("/type/"):
            headers["Content-Type"] = request.path.removeprefix("/type/")
        elif request.path == "/no-type":
            del headers["Content-Type"]
        elif request.path == "/round":
            status, headers["Location"] = 301, "/round"
        elif request.path == "/large":
            body = bytes(MAX_BYTES + 1)
        elif request.path == "/most":
            body = bytes(MAX_BYTES)
        elif request.path == "/gzip":
            headers["Content-Encoding"] = "gzip"
        elif request.path == "/cookie":
            headers["Set-Cookie"] = "user=1; Path=/"
        elif request.path in ("/endless", "/slow"):
            body = b""
        if request.path not in ("/endless", "/slow", "/unsaid"):
            headers["Content-Length"] = str(len(body))
        if request.path == "/cut":
            headers["Content-Length"] = "500"
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        if request.path == "/slow":
            self.released.wait(20)
        try:
            for _ in range(64 if request.path == "/endless" else 0):
                request.wfile.write(bytes(MAX_BYTES))
            request.wfile.write(body)
        except OSError:
            pass  # whoever asked has had enough


@contextmanager
def running(host: Host) -> Iterator[Host]:
    thread = threading.Thread(target=host.server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield host
    finally:
        host.released.set()
        host.server.shutdown()
        thread.join(20)
        host.server.server_close()


@pytest.fixture(scope="module")
def shared_host() -> Iterator[Host]:
    with running(Host()) as host:
        yield host


@pytest.fixture
def host(shared_host) -> Host:
    shared_host.asked.clear()
    return shared_host


def addresses(*found: str) -> Callable[[str, int], Any]:
    """A resolver to which every name has these addresses."""

    async def resolve(_host: str, _port: int) -> list[str]:
        return list(found)

    return resolve


def fetch(url: str, *hosts: str, **settings: Any) -> bytes:
    async def work() -> bytes:
        values = {"allow_private": True, "max_bytes": MAX_BYTES, "seconds": 20, **settings}
        return await PictureFetcher(hosts, **values).fetch(url, "documents[3].image_url")

    return asyncio.run(work())


def refused(url: str, *hosts: str, **settings: Any) -> str:
    """Why a URL is refused; the error names its place."""
    with pytest.raises(Unprocessable) as refusal:
        fetch(url, *hosts, **settings)
    assert refusal.value.param == "documents[3].image_url"
    assert refusal.value.message.startswith("documents[3].image_url: '")
    return refusal.value.message


class TestWhatComes:
    @pytest.mark.parametrize("path", ["/a.png", "/a.png?size=1#part", "/no-type", "/unsaid"])
    def test_bytes(self, host, path):
        assert fetch(f"http://127.0.0.1:{host.port}{path}", f"127.0.0.1:{host.port}") == PICTURE
        assert host.asked == [(f"127.0.0.1:{host.port}", path.partition("#")[0])]

    def test_nothing_of_ours_is_sent_along(self, host, monkeypatch):
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
        here = f"127.0.0.1:{host.port}"

        async def twice() -> None:
            fetcher = PictureFetcher([here], allow_private=True, max_bytes=MAX_BYTES, seconds=20)
            await fetcher.fetch(f"http://{here}/cookie", "query")
            await fetcher.fetch(f"http://{here}/cookie", "query")

        asyncio.run(twice())
        assert set(host.sent) == {"Host", "Accept", "Accept-Encoding", "User-Agent"}

    @pytest.mark.parametrize("path", ["/large", "/endless"])
    def test_too_many_bytes(self, host, path):
        with pytest.raises(TooLarge, match=r"documents\[3\]\.image_url: .*more than 1,000 bytes"):
            fetch(f"http://127.0.0.1:{host.port}{path}", f"127.0.0.1:{host.port}")
        assert len(fetch(f"http://127.0.0.1:{host.port}/most", f"127.0.0.1:{host.port}")) == 1000

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("/status/404", "answered 404"),
            ("/status/206", "answered 206"),
            ("/status/204", "answered 204"),
            ("/type/text/html", "of the type 'text/html'"),
            ("/gzip", "compressed"),
            ("/cut", "cannot be fetched"),
            ("/round", "redirects too often"),
            ("/to/", "redirects too often|redirects to no URL"),
        ],
    )
    def test_no_picture(self, host, path, reason):
        here = f"127.0.0.1:{host.port}"
        with pytest.raises(Unprocessable, match=reason):
            fetch(f"http://{here}{path}", here)
        assert len(host.asked) <= 4

    def test_not_in_time(self, host):
        here = f"127.0.0.1:{host.port}"
        assert "within 0.2 s" in refused(f"http://{here}/slow", here, seconds=0.2)

    def test_a_host_that_is_not_there(self):
        with Host().server as closed:
            port = closed.server_port
        assert "ConnectError" in refused(f"http://127.0.0.1:{port}/", f"127.0.0.1:{port}")

    def test_another_address_is_asked_where_one_takes_no_connection(self, host):
        url = f"http://pictures.test:{host.port}/"
        found = fetch(url, f"pictures.test:{host.port}", resolve=addresses("::1", "127.0.0.1"))
        assert found == PICTURE


class TestSeveral:
    """The URLs of one request."""

    @staticmethod
    def fetch(
        host: Host,
        paths: dict[str, str],
        max_bytes: int,
        hold: Callable[[int], None] = lambda _: None,
    ) -> dict[str, bytes]:
        async def work() -> dict[str, bytes]:
            here = f"127.0.0.1:{host.port}"
            fetcher = PictureFetcher([here], allow_private=True, max_bytes=MAX_BYTES, seconds=20)
            urls = {place: f"http://{here}{path}" for place, path in paths.items()}
            return await fetcher.fetch_all(urls, max_bytes=max_bytes, hold=hold)

        return asyncio.run(work())

    def test_each_is_fetched_once(self, host):
        paths = {"documents[0].image": "/a", "documents[1].image": "/most", "query.image": "/a"}
        found = self.fetch(host, paths, 2 * MAX_BYTES)
        assert found == {
            "documents[0].image": PICTURE,
            "documents[1].image": bytes(MAX_BYTES),
            "query.image": PICTURE,
        }
        assert sorted(path for _, path in host.asked) == ["/a", "/most"]
        assert self.fetch(host, {}, 1) == {}

    def test_too_many_bytes_together(self, host):
        paths = {f"documents[{n}].image": f"/{n}" for n in range(8)}
        assert len(self.fetch(host, paths, 8 * len(PICTURE))) == 8
        with pytest.raises(TooLarge, match=r"documents\[\d\]\.image: .* together"):
            self.fetch(host, paths, 8 * len(PICTURE) - 1)

    def test_what_has_come_counts_while_others_are_on_their_way(self, host):
        def refuse(num_bytes: int) -> None:
            assert num_bytes == len(PICTURE)
            raise Overloaded("no room", retry_after=1)

        paths = {"documents[0].image": "/slow", "documents[1].image": "/a"}
        with pytest.raises(Overloaded):
            self.fetch(host, paths, MAX_BYTES, refuse)
        assert not host.released.is_set()

    def test_an_error_ends_all(self, host):
        paths = {"documents[0].image": "/slow", "documents[1].image": "/status/404"}
        with pytest.raises(Unprocessable, match="answered 404") as refusal:
            self.fetch(host, paths, MAX_BYTES)
        assert refusal.value.param == "documents[1].image"
        assert not host.released.is_set()


class TestWhatIsAllowed:
    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("file:///etc/passwd", "only http and https"),
            ("ftp://pictures.test/a", "only http and https"),
            ("/etc/passwd", "only http and https"),
            ("http://", "only http and https|no URL"),
            ("http://pictures.test:99999999/", "no URL|none of the hosts"),
            ("http://[::1/", "no URL"),
            ("http://user:secret@pictures.test/", "user's name"),
            ("http://other.test/", "'other.test' is none of the hosts"),
            ("http://pictures.test.other.test/", "none of the hosts"),
            ("http://xpictures.test/", "none of the hosts"),
            ("http://pictures.test:8080/", "none of the hosts"),
            ("http://pictures.test\\@other.test/", "no URL|none of the hosts|user's name"),
            ("http://127.0.0.1/", "none of the hosts"),
            ("http://2130706433/", "none of the hosts"),
            ("http://\ud800.test/", "no URL|none of the hosts"),
        ],
    )
    def test_other_urls_are_refused_unasked(self, url, reason):
        async def resolve(_host: str, _port: int) -> list[str]:
            raise AssertionError("it was looked up")

        with pytest.raises(Unprocessable, match=reason):
            fetch(url, "pictures.test", resolve=resolve)

    def test_nothing_without_hosts(self, host):
        assert "fetches no URLs" in refused(f"http://127.0.0.1:{host.port}/")
        assert host.asked == []

    def test_a_host_is_known_in_any_spelling(self, host):
        where = {"resolve": addresses("127.0.0.1")}
        for spelt in ("PICTURES.test", "pictures.test.", "BÜCHER.test", "xn--bcher-kva.test"):
            hosts = [f"{name}:{host.port}" for name in ("pictures.test", "bücher.test")]
            assert fetch(f"http://{spelt}:{host.port}/", *hosts, **where) == PICTURE

    def test_a_redirect_within_the_list_is_followed(self, host):
        url = f"http://one.test:{host.port}/to/http://two.test:{host.port}/a.png"
        hosts = [f"one.test:{host.port}", f"two.test:{host.port}"]
        assert fetch(url, *hosts, resolve=addresses("127.0.0.1")) == PICTURE
        assert [asked for asked, _ in host.asked] == hosts

    @pytest.mark.parametrize(
        "target", ["http://other.test/a.png", "file:///etc/passwd", "//127.0.0.1/", "http://["]
    )
    def test_a_redirect_out_of_it_is_not(self, host, target):
        url = f"http://one.test:{host.port}/to/{target}"
        with pytest.raises(Unprocessable, match=r"none of the hosts|only http|no URL"):
            fetch(url, f"one.test:{host.port}", resolve=addresses("127.0.0.1"))
        assert len(host.asked) == 1

    def test_private_addresses_are_not_asked(self, host):
        here = f"127.0.0.1:{host.port}"
        assert "not public" in refused(f"http://{here}/", here, allow_private=False)
        named = f"pictures.test:{host.port}"
        for found in (["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"]):
            why = refused(f"http://{named}/", named, allow_private=False, resolve=addresses(*found))
            assert "not public" in why
        assert host.asked == []

    def test_what_was_checked_is_what_is_asked(self, host):
        """A name that has another address at the second look, as an attacker's DNS gives it."""
        looks = []

        async def resolve(name: str, port: int) -> list[str]:
            looks.append((name, port))
            return ["127.0.0.1"] if len(looks) == 1 else ["192.0.2.1"]

        named = f"pictures.test:{host.port}"
        assert fetch(f"http://{named}/", named, resolve=resolve) == PICTURE
        assert looks == [("pictures.test", host.port)]
        assert host.asked == [(named, "/")]

    def test_a_name_without_address(self):
        async def resolve(_host: str, _port: int) -> list[str]:
            raise OSError("no such host")

        assert "no address" in refused("http://pictures.test/", "pictures.test", resolve=resolve)


SIGNS = "/\\@#?:. \t\u202e。ß"
WORDS = ["http:", "https:", "file:", "//", "%2e", "%00", "user", ":80", ":8080", ":0", "127.0.0.1"]
NAMES = ["pictures.test", "PICTURES.test", "ｐictures.test", "other.test", "[::1]", "0x7f.1"]
PIECES = st.sampled_from([*SIGNS, *WORDS, *NAMES])


@pytest.fixture(scope="module")
def looking_up() -> tuple[PictureFetcher, list[tuple[str, int]]]:
    """What fetches from two hosts, and what it has looked up."""
    looked_up: list[tuple[str, int]] = []

    async def resolve(name: str, port: int) -> list[str]:
        looked_up.append((name, port))
        return []

    hosts = ["pictures.test", "more.test:8080"]
    return PictureFetcher(hosts, max_bytes=1, seconds=20, resolve=resolve), looked_up


@given(st.lists(PIECES, max_size=9).map("".join), st.sampled_from(["", "http://", "https://"]))
@settings(max_examples=300)
def test_no_text_leads_to_another_host(looking_up, url, beginning):
    fetcher, looked_up = looking_up
    looked_up.clear()
    with pytest.raises(Unprocessable):
        asyncio.run(fetcher.fetch(beginning + url, "query"))
    allowed = {("pictures.test", 80), ("pictures.test", 443), ("more.test", 8080)}
    assert set(looked_up) <= allowed


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # where clouds keep a machine's credentials
        "100.64.0.1",
        "192.0.2.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "fc00::1",
        "fd00::1",
        "fe80::1",
        "fe80::1%1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
    ],
)
def test_other_addresses(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    ("entry", "origin"),
    [
        ("example.org", ("example.org", None)),
        ("Example.ORG.", ("example.org", None)),
        ("example.org:443", ("example.org", 443)),
        ("[::1]:8080", ("::1", 8080)),
        ("bücher.example", ("xn--bcher-kva.example", None)),
    ],
)
def test_hosts_of_the_settings(entry, origin):
    assert allowed_origin(entry) == origin


@pytest.mark.parametrize(
    "entry",
    ["", "*", "*.example.org", "http://example.org", "a/b", "a/", "a b", "a?b", "a:99999", "u@a"],
)
def test_what_is_no_host(entry):
    with pytest.raises(ValueError, match="is no host"):
        PictureFetcher([entry], max_bytes=1, seconds=1)


@pytest.fixture(scope="module")
def secure(tmp_path_factory) -> Iterator[tuple[Host, Path]]:
    """A host with a certificate of its own, for the name pictures.test."""
    folder = tmp_path_factory.mktemp("certificate")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        " -subj /CN=pictures.test -addext subjectAltName=DNS:pictures.test"
        " -keyout key.pem -out certificate.pem"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    with running(Host(context)) as host:
        yield host, folder / "certificate.pem"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates by openssl")
class TestCertificates:
    """The address is asked, and the name's certificate is checked."""

    @pytest.mark.parametrize(("name", "fits"), [("pictures.test", True), ("other.test", False)])
    def test_by_name(self, secure, name, fits, monkeypatch):
        host, certificate = secure
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        url, allowed = f"https://{name}:{host.port}/", f"{name}:{host.port}"
        settings = {"resolve": addresses("127.0.0.1")}
        if fits:
            assert fetch(url, allowed, **settings) == PICTURE
        else:
            assert "ConnectError" in refused(url, allowed, **settings)

    def test_unknown(self, secure, monkeypatch):
        host, _ = secure
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        url = f"https://pictures.test:{host.port}/"
        why = refused(url, f"pictures.test:{host.port}", resolve=addresses("127.0.0.1"))
        assert "ConnectError" in why
