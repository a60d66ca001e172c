"""Pictures behind http(s) URLs, from hosts that the server's settings name and no other."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NoReturn

import httpx2

from ragvl.messages import quoted
from ragvl.server.errors import ServerError, TooLarge, Unprocessable
from ragvl.server.request_memory import Hold

Resolve = Callable[[str, int], Awaitable[list[str]]]

_AT_ONCE = 16  # pictures
_URL_SHOWN = 100  # characters
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NO_TYPES = frozenset({"", "application/octet-stream", "binary/octet-stream"})
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
_MAX_PORT = 65535
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # IPv4 addresses, to hosts that have IPv6 only


async def resolve(host: str, port: int) -> list[str]:
    """A host's addresses, the one to prefer first.

    Raises:
        OSError: it has none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the Internet, and no machine, network or group of one's own.

    An IPv4 address inside of an IPv6 one counts as what it is.
    """
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        if found.sixtofour is not None or found.is_site_local:
            return False
        if found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        elif found in _NAT64:
            found = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    return found.is_global and not (found.is_multicast or found.is_reserved)


def allowed_origin(entry: str) -> tuple[str, int | None]:
    """A host to fetch from, and its port; None for the usual ones of http and https.

    Args:
        entry: `host` or `host:port`.

    Raises:
        ValueError: it is something else.
    """
    try:
        url = httpx2.URL(f"any://{entry}")  # of which no port is the usual one
        is_host = (
            _HOST.fullmatch(_host_of(url)) is not None
            and url.netloc.decode() == str(url).removeprefix("any://")
            and (url.port or 0) <= _MAX_PORT
        )
    except (httpx2.InvalidURL, ValueError):
        is_host = False
    if not is_host:
        raise ValueError(f"{quoted(entry)} is no host: expected example.org, or example.org:8080")
    return _host_of(url), url.port


class PictureFetcher:
    """Fetches pictures; safe for one event loop.

    The address that was checked is the address that is asked, whatever a second look at DNS would
    say. A redirect is looked at like a new URL. No cookies, credentials or proxies are used.

    Args:
        hosts: from which; see `allowed_origin`.
        allow_private: also where their addresses are private ones.
        max_bytes: of a picture.
        seconds: for a picture, redirects included.
        max_redirects: that are followed.
        resolve: finds a host's addresses.

    Raises:
        ValueError: a host is none.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        *,
        allow_private: bool = False,
        max_bytes: int,
        seconds: float,
        max_redirects: int = 3,
        resolve: Resolve = resolve,
    ) -> None:
        self._origins = frozenset(map(allowed_origin, hosts))
        self._allow_private = allow_private
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._max_redirects = max_redirects
        self._resolve = resolve
        self._room = asyncio.Semaphore(_AT_ONCE)
        # Below httpx's client, which follows redirects, keeps cookies and reads proxies' addresses.
        # A connection is not used twice: it was made for the host's name, not for its address alone
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._transport = httpx2.AsyncHTTPTransport(limits=limits) if self._origins else None

    async def fetch(self, url: str, place: str) -> bytes:
        """The bytes behind a URL, which may still be no picture.

        Args:
            url: where it is.
            place: the URL's place in the request, for errors.

        Raises:
            Unprocessable: the URL is none or not allowed, or what it names cannot be had.
            TooLarge: it has too many bytes.
        """
        try:
            async with self._room, asyncio.timeout(self._seconds):
                return await self._follow(url)
        except TimeoutError:
            error: ServerError = Unprocessable(f"it did not come within {self._seconds:g} s")
        except httpx2.HTTPError as failure:
            error = Unprocessable(f"it cannot be fetched ({type(failure).__name__})")
        except (Unprocessable, TooLarge) as failure:
            error = failure
        where = f"{place}: {quoted(url, _URL_SHOWN)}"
        raise type(error)(f"{where}: {error.message}", param=place) from error

    async def fetch_all(
        self, urls: Mapping[str, str], *, max_bytes: int, hold: Hold
    ) -> dict[str, bytes]:
        """`fetch` for a request's URLs, by place; an error ends what is on its way.

        Args:
            urls: by place; one that is there twice is fetched once.
            max_bytes: of all together.
            hold: counts each one's bytes as it comes, while others may still be on their way.

        Raises:
            ServerError: see `fetch`, and what `hold` raised.
            TooLarge: together they have more bytes.
        """
        left = max_bytes

        async def fetch(url: str, place: str) -> bytes:
            nonlocal left
            content = await self.fetch(url, place)
            hold(len(content))
            left -= len(content)
            if left < 0:
                many = f"the pictures behind URLs have more than {max_bytes:,} bytes together"
                raise TooLarge(f"{place}: {many}", param=place)
            return content

        coming: dict[str, asyncio.Task[bytes]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                for place, url in urls.items():
                    if url not in coming:
                        coming[url] = group.create_task(fetch(url, place))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {place: coming[url].result() for place, url in urls.items()}

    async def _follow(self, url: str) -> bytes:
        target = self._checked(url)
        for _ in range(self._max_redirects + 1):
            response = await self._ask(target)
            try:
                if response.status_code not in _REDIRECTS:
                    return await self._read(response)
                try:
                    target = target.join(response.headers.get("location", ""))
                except httpx2.InvalidURL:
                    _refuse("it redirects to no URL")
                target = self._checked(str(target))
            finally:
                await response.aclose()
        return _refuse("it redirects too often")

    def _checked(self, url: str) -> httpx2.URL:
        """The URL, if it may be fetched."""
        if self._transport is None:
            _refuse("this server fetches no URLs; send the picture itself, as a data: URI")
        try:
            target = httpx2.URL(url)
        except (httpx2.InvalidURL, UnicodeError):
            _refuse("it is no URL")
        if target.scheme not in _DEFAULT_PORTS or not target.host:
            _refuse("only http and https URLs are fetched")
        if target.userinfo:
            _refuse("a URL must not hold a user's name")
        usual = _DEFAULT_PORTS[target.scheme]
        ports = {target.port or usual} | ({None} if target.port is None else set())
        if self._origins.isdisjoint((_host_of(target), port) for port in ports):
            named = quoted(target.netloc.decode(), _URL_SHOWN)
            _refuse(f"{named} is none of the hosts that this server fetches from")
        return target

    async def _ask(self, target: httpx2.URL) -> httpx2.Response:
        """The answer of the first of the host's addresses that takes a connection."""
        assert self._transport is not None
        host = _host_of(target)
        headers = {
            "Host": target.netloc.decode(),
            "Accept": "image/*",
            "Accept-Encoding": "identity",
            "User-Agent": "ragvl",
        }
        *others, last = await self._addresses(host, target.port or _DEFAULT_PORTS[target.scheme])
        for address in [*others, last]:
            request = httpx2.Request(
                "GET",
                target.copy_with(host=address, fragment=None),
                headers=headers,
                extensions={"sni_hostname": host},  # whose certificate is asked for and checked
            )
            try:
                return await self._transport.handle_async_request(request)
            except httpx2.ConnectError:
                if address == last:
                    raise
        raise AssertionError("unreachable")

    async def _addresses(self, host: str, port: int) -> list[str]:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            _refuse("its host has no address")
        if not self._allow_private and not all(map(is_public, addresses)):
            _refuse("its host has an address that is not public")
        return addresses

    async def _read(self, response: httpx2.Response) -> bytes:
        headers = response.headers
        if response.status_code != 200:
            _refuse(f"its host answered {response.status_code}")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in _NO_TYPES and not kind.startswith("image/"):
            _refuse(f"it is of the type {quoted(kind, _URL_SHOWN)}, no picture")
        if headers.get("content-encoding", "identity").lower() != "identity":
            _refuse("it comes compressed, which was not asked for")
        content = bytearray()
        said = headers.get("content-length", "")
        too_large = said.isdigit() and int(said[:20]) > self._max_bytes
        if not too_large:
            async for chunk in response.aiter_raw():
                content += chunk
                if too_large := len(content) > self._max_bytes:
                    break
        if too_large:
            raise TooLarge(f"it has more than {self._max_bytes:,} bytes")
        return bytes(content)


def _host_of(url: httpx2.URL) -> str:
    """As DNS knows it: in lower case, without the dot of the root, in ASCII."""
    return url.raw_host.decode().lower().rstrip(".")


def _refuse(reason: str) -> NoReturn:
    raise Unprocessable(reason)
