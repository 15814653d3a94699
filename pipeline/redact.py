"""What must never be told: secrets of the environment and of addresses, taken out of whatever is said.

A secret is the value of an environment variable whose name looks like one (`NAME`), the user and password of an
address (of every variable: a proxy's, a database's), a value in its query under such a name, what an ``Authorization``
header carries, and what `know` and `know_files` were told. Values shorter than `LEAST`, and plain words such as
``false``, stay: taking them out would make every line unreadable.
"""

from __future__ import annotations

import json
import math
import os
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "***"
LEAST = 4

#: What a name of a secret holds.
NAME = re.compile(r"KEY|SECRET|TOKEN|PASSW|PASSPHRASE|CREDENTIAL", re.IGNORECASE)
_PLAIN = frozenset({"true", "false", "none", "null"})

#: Password of an address.
_PASSWORD = re.compile(r"://[^/?#\s:@]*:([^/?#\s\"'<>]+)@")

_known: set[str] = set()

_RULES = (
    (re.compile(r"(?<=://)[^/?#\s\"'<>]*@"), f"{HIDDEN}@"),
    (re.compile(rf"([?&;][^=&\s]*(?:{NAME.pattern}|signature)[^=&\s]*=)[^&\s\"'<>]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"(authorization\W{1,6}(?:(?:bearer|basic|token)\s+)?)[^\s\"',;]+", re.IGNORECASE), rf"\1{HIDDEN}"),
)


def know(secret: str) -> None:
    """Take a value that no variable holds (of a Prefect block, say) out of all that this process says from now on."""
    _known.update(_spellings(secret))


def know_files() -> None:
    """`know` what files of secrets hold that the environment names, such as ``AWS_SHARED_CREDENTIALS_FILE``.

    Of lines ``name = value`` those count whose name looks secret; a file of one line is a secret as a whole.
    """
    for name, path in os.environ.items():
        if not (NAME.search(name) and name.endswith("_FILE")):
            continue
        with suppress(OSError, UnicodeDecodeError):
            lines = Path(path).read_text().strip().splitlines()
            pairs = [line.partition("=") for line in lines]
            for secret in [v.strip() for k, _, v in pairs if v and NAME.search(k)] or lines[: len(lines) == 1]:
                know(secret)


def secrets(environment: Mapping[str, str] | None = None) -> list[str]:
    """Texts that must not be told, longest first: values of variables that look secret, and how they may be written."""
    found = set(_known) if environment is None else set()
    for name, value in (os.environ if environment is None else environment).items():
        if NAME.search(name):
            found |= _spellings(value)
        for password in _PASSWORD.findall(value):
            found |= _spellings(password) | _spellings(unquote(password)) | {_base64(value)}
    return sorted(found, key=len, reverse=True)


def _spellings(value: str) -> set[str]:
    """A value as it is, in an address, quoted, on one line, and each of its longer lines (of a private key, say)."""
    lines = {line.strip() for line in value.splitlines() if len(line.strip()) >= 4 * LEAST}
    written = {value, value.strip(), quote(value), quote(value, safe=""), quote_plus(value), " ".join(value.split())}
    written |= {repr(value)[1:-1], json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    told = {one for one in written | lines if len(one) >= LEAST and one.lower() not in _PLAIN}
    return told | {_base64(one) for one in told & {value}}


def _base64(value: str) -> str:
    return b64encode(value.encode(errors="surrogateescape")).decode()


def text(said: str, known: list[str] | None = None) -> str:
    """Return a text without secrets; `known` are those of `secrets`, where they were looked up already."""
    for secret in secrets() if known is None else known:
        said = said.replace(secret, HIDDEN)
    for rule, instead in _RULES:
        said = rule.sub(instead, said)
    return said


def value(said: Any, known: list[str] | None = None) -> Any:
    """Return anything ready for strict JSON and without secrets: in texts, keys, and fields whose name looks secret."""
    known = secrets() if known is None else known
    if isinstance(said, Mapping):
        return {text(str(k), known): HIDDEN if _secret_field(k, v) else value(v, known) for k, v in said.items()}
    if isinstance(said, list | tuple | set | frozenset):
        return [value(one, known) for one in said]
    if hasattr(said, "item") and getattr(said, "ndim", None) == 0:  # a number of numpy's
        said = said.item()
    if said is None or isinstance(said, bool | int) or (isinstance(said, float) and math.isfinite(said)):
        return said
    return text(str(said), known)


def _secret_field(name: object, said: Any) -> bool:
    return isinstance(said, str) and bool(NAME.search(str(name)))


@contextmanager
def errors() -> Iterator[None]:
    """Take secrets out of an exception that leaves the block, and of those behind it: Prefect keeps them, pickled.

    They stay what they are, without the objects (requests, say) that those of other libraries carry. One whose text
    cannot be mended is named by a RuntimeError.
    """
    try:
        yield
    except Exception as error:
        known, said = secrets(), f"{type(error).__name__}: {error}"
        for one in _behind(error):
            _mend(one, known)
            _mend_links(one, known)
        if not _mended(error, known):
            raise RuntimeError(text(said, known)) from None
        raise


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and what it came from."""
    todo, seen = [error], set[int]()
    while todo:
        one = todo.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            todo += [one.__cause__, one.__context__]


def _mend_links(error: BaseException, known: list[str]) -> None:
    """Let nothing stand behind an exception that is not shown, or whose text, mended, still holds a secret."""
    if error.__suppress_context__:
        error.__context__ = None
    for name in ("__cause__", "__context__"):
        behind = getattr(error, name)
        if behind is None:
            continue
        said = f"{type(behind).__name__}: {behind}"
        _mend(behind, known)
        if not _mended(behind, known):
            setattr(error, name, RuntimeError(text(said, known)))


def _mend(error: BaseException, known: list[str]) -> None:
    """Take secrets out of what an exception is said by."""
    error.args = tuple(_without(one, known) for one in error.args)
    for name in ("strerror", "filename", "filename2"):  # an OSError is said by these
        if isinstance(said := getattr(error, name, None), str):
            setattr(error, name, text(said, known))
    ours = type(error).__module__.startswith("pipeline.")
    for name, said in list(vars(error).items()):
        if isinstance(said, _KEPT):
            vars(error)[name] = _without(said, known)
        elif not ours:
            del vars(error)[name]


#: What may stay in an exception.
_KEPT = (str, bytes, int, float, list, tuple, dict, type(None))


def _without(said: Any, known: list[str]) -> Any:
    """A value of the same kind without secrets; a text where that of an object holds one."""
    if isinstance(said, dict):
        return {_without(name, known): _without(one, known) for name, one in said.items()}
    if type(said) in (list, tuple):
        return type(said)(_without(one, known) for one in said)
    told = said if isinstance(said, str) else str(said)
    without = text(told, known)
    return said if without == told else without


def _mended(error: BaseException, known: list[str]) -> bool:
    try:
        said = f"{error} {error!r}"
    except Exception:  # it is said by what was taken from it
        return False
    return text(said, known) == said
