"""Requests to addresses that somebody named: resolved once, private ones refused, every redirect checked anew.

The operator's own endpoint, from the settings, may lie anywhere; whatever it redirects to may not. What a remote server
says in its body never becomes part of an error.
"""

import ipaddress
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urljoin, urlsplit

import httpx

MOST_REDIRECTS = 5
TIMEOUT = httpx.Timeout(30.0, connect=10.0)
REDIRECTS = frozenset({301, 302, 303, 307, 308})


class RequestRefused(Exception):
    """The request is not made, or its answer is no use. ``str()`` is a sentence; ``status`` the answer's, if any came."""

    def __init__(self, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


@contextmanager
def fetched(
    url: str, *, trusted: str, headers: Mapping[str, str] | None = None, token: str = ""
) -> Iterator[httpx.Response]:
    """The answer to a GET, its body still to be read. ``trusted``: the endpoint whose own address is not checked, and
    which alone is shown the ``token``.

    Raises RequestRefused: an address that is private or no https, too many redirects, an error of server or network.
    """
    try:
        with httpx.Client(trust_env=False, timeout=TIMEOUT, follow_redirects=False) as client:
            response = _followed(client, url, trusted, dict(headers or {}), token)
            try:
                if response.status_code >= 400:
                    raise RequestRefused(_words(url, response.status_code), response.status_code)
                yield response
            finally:
                response.close()
    except httpx.HTTPError as error:
        raise RequestRefused(f"{_host(url)} does not answer ({type(error).__name__}).") from error


def _followed(client: httpx.Client, url: str, trusted: str, headers: dict[str, str], token: str) -> httpx.Response:
    for _ in range(MOST_REDIRECTS):
        own = origin(url) == origin(trusted)
        sent = headers | ({"Authorization": f"Bearer {token}"} if token and own else {})
        response = client.send(_request(client, url, sent, own), stream=True)
        if response.status_code not in REDIRECTS:
            return response
        response.close()
        url = urljoin(url, response.headers.get("Location", ""))
    raise RequestRefused(f"{_host(url)} redirects too often.")


def _request(client: httpx.Client, url: str, headers: dict[str, str], own: bool) -> httpx.Request:
    """To the address that was checked, whatever the name resolves to a moment later."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (own and parts.scheme == "http"):
        raise RequestRefused(f"{_host(url)} is not asked without https.")
    if parts.username or parts.password or not parts.hostname:
        raise RequestRefused("The address names no plain host.")
    address = _resolved(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), own)
    target = httpx.URL(url).copy_with(host=address)
    request = client.build_request(
        "GET", target, headers={**headers, "Host": parts.netloc, "Accept-Encoding": "identity"}
    )
    request.extensions["sni_hostname"] = parts.hostname
    return request


def _resolved(host: str, port: int, own: bool) -> str:
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise RequestRefused(f"The host {host[:100]} is not known.") from error
    if not own and not all(ipaddress.ip_address(address.partition("%")[0]).is_global for address in found):
        raise RequestRefused(f"The host {host[:100]} lies in a private network, which is not asked.")
    return found[0]


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of an address. Raises RequestRefused for one that has none."""
    try:
        parts = urlsplit(url)
        return parts.scheme, (parts.hostname or "").lower(), parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError as error:
        raise RequestRefused("The address cannot be read.") from error


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "The host")[:100]


def _words(url: str, status: int) -> str:
    reasons = {401: "wants a token that may read this", 403: "does not allow this", 404: "has no such thing",
               429: "asks to come back later"}  # fmt: skip
    return f"{_host(url)} {reasons.get(status, f'answered with the status {status}')}."
