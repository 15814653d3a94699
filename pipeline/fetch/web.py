"""HTTP as a guest behaves: says who we are, not too fast, patient with trouble that passes, plain about the rest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any, TypeVar

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from pipeline.errors import InputError

logger = logging.getLogger("aqnet")

USER_AGENT = f"aqnet-reanalysis/{version('aqnet-reanalysis')} (aqnet fetch)"

#: HTTP codes of trouble that may pass.
PASSING = {408, 425, 429, 500, 502, 503, 504}
ABSENT = {404, 410}
MAX_REDIRECTS = 5

Result = TypeVar("Result")


class FetchError(InputError):
    """A file or list cannot be had from where it should be."""


class PassingError(Exception):
    """Trouble that may pass: tried again, after `after` seconds where the server says so."""

    def __init__(self, found: str, after: float = 0) -> None:
        super().__init__(found)
        self.after = after


class AbsentError(Exception):
    """The server says that there is no such file."""


@dataclass(frozen=True)
class Limits:
    """How hard we ask.

    Attributes
    ----------
    rate : requests a second to one host, at most.
    tries : of one file, before it counts as failed.
    timeout : seconds without a byte that make a try fail.
    try_seconds : seconds that one try may take; the next one goes on from where it ended.
    pause : longest pause between tries, seconds; a server that asks for more (Retry-After) is left alone.
    """

    rate: float = 4.0
    tries: int = 5
    timeout: float = 30.0
    try_seconds: float = 600.0
    pause: float = 300.0


class Web:
    """One HTTP client for a whole run; one request at a time.

    Parameters
    ----------
    limits : how hard to ask.
    sleep, clock, now : the time, for tests to replace.
    """

    def __init__(
        self,
        limits: Limits,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.limits, self.sleep, self.clock, self.now = limits, sleep, clock, now
        self._next: dict[str, float] = {}
        self._client = httpx.Client(
            # Without compression on the way the bytes and their number are the file's own.
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(limits.timeout),
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
            event_hooks={"request": [self._wait_turn]},
        )

    def __enter__(self) -> Web:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def _wait_turn(self, request: httpx.Request) -> None:
        """Wait until the host may be asked again; redirects wait, too."""
        wait = self._next.get(request.url.host, 0.0) - self.clock()
        if wait > 0:
            self.sleep(wait)
        self._next[request.url.host] = self.clock() + 1 / self.limits.rate

    @contextmanager
    def open(self, method: str, url: str, **options: Any) -> Iterator[httpx.Response]:
        """Send a request and give its response, the body unread; the caller checks the code (`check`).

        Raises
        ------
        PassingError
            When there is no connection, it breaks, or no byte comes for `Limits.timeout` seconds.
        FetchError
            When there are too many redirects, or the address is none.
        """
        try:
            with self._client.stream(method, url, **options) as response:
                yield response
        except httpx.TooManyRedirects:
            raise FetchError(f"{shown(url)}: expected a file; found more than {MAX_REDIRECTS} redirects") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise FetchError(f"{shown(url)}: expected an address with http or https; found {error}") from None
        except httpx.TimeoutException:
            raise PassingError(f"no byte for {self.limits.timeout:g} s") from None
        except httpx.TransportError as error:
            raise PassingError(f"a broken connection ({error or type(error).__name__})") from None

    def check(self, response: httpx.Response, good: tuple[int, ...] = (200,)) -> None:
        """Raise AbsentError, PassingError or FetchError for a response whose code is not `good`."""
        code = response.status_code
        if code in good:
            return
        if code in ABSENT:
            raise AbsentError
        found = f"HTTP {code} {response.reason_phrase}".strip()
        if code in PASSING:
            raise PassingError(found, self._retry_after(response))
        raise FetchError(f"{shown(str(response.url))}: expected HTTP {good[0]}; found {found}")

    def _retry_after(self, response: httpx.Response) -> float:
        """Seconds that the server asks to wait, from seconds or a date (RFC 9110, 10.2.3); 0 where it says nothing."""
        text = response.headers.get("retry-after", "").strip()
        if text.isdecimal():
            return float(text)
        try:
            return max(0.0, (parsedate_to_datetime(text) - self.now()).total_seconds())
        except (ValueError, TypeError):
            return 0.0

    def patiently(self, url: str, expected: str, attempt: Callable[[], Result]) -> Result:
        """Do `attempt` until it ends well, pausing longer each time: at most `Limits.tries` times.

        Raises
        ------
        FetchError
            Naming the address, what was expected, what was found last and how many tries were made.
        """
        retrying = Retrying(
            stop=stop_after_attempt(self.limits.tries),
            retry=retry_if_exception_type(PassingError),
            wait=self._pause,
            sleep=self.sleep,
            before_sleep=lambda state: _say(url, state),
            reraise=True,
        )
        try:
            return retrying(attempt)
        except PassingError as error:
            tries = retrying.statistics.get("attempt_number", 1)
            raise FetchError(
                f"{shown(url)}: expected {expected}; found {error}; {tries} tries made, run again later"
            ) from None

    def _pause(self, state: RetryCallState) -> float:
        error = _trouble(state)
        if error.after > self.limits.pause:
            raise PassingError(f"{error}, which asks to wait {error.after:g} s")
        growing = wait_exponential_jitter(initial=1, max=self.limits.pause, jitter=1)
        return min(max(error.after, growing(state)), self.limits.pause)

    def body(self, method: str, url: str, expected: str, **options: Any) -> bytes:
        """Answer to a small question (a list, JSON), read whole, with the same patience."""

        def attempt() -> bytes:
            with self.open(method, url, **options) as response:
                self.check(response)
                return response.read()

        try:
            return self.patiently(url, expected, attempt)
        except AbsentError:
            raise FetchError(f"{shown(url)}: expected {expected}; found HTTP 404") from None


def shown(url: str) -> str:
    """`url` as it may be logged and kept: without user name and password."""
    scheme, mark, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return scheme + mark + host.rpartition("@")[2] + slash + path if mark else url


def _trouble(state: RetryCallState) -> PassingError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, PassingError)
    return error


def _say(url: str, state: RetryCallState) -> None:
    wait = state.next_action.sleep if state.next_action else 0
    logger.warning("%s: %s; try %d in %.0f s", shown(url), _trouble(state), state.attempt_number + 1, wait)
