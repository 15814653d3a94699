"""Credentials of a bucket from a Prefect block: lent to this process while a flow runs, and told to nobody.

`VARIABLE` names a ``Secret`` block whose value is a JSON object (`Keys`). Its values become the variables that the
store's client reads (``AWS_*``), so the processes that a flow starts have them too, and `pipeline.redact` takes them
out of whatever is said. Workers of a Dask scheduler elsewhere load the block by themselves::

    dask worker tcp://... --preload flows.credentials
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from pipeline import redact
from pipeline.errors import ConfigError

#: Environment variable that holds the name of the block, which is no secret: by its own name `redact` lets it be said.
#: Without it the environment's own credentials count.
VARIABLE = "AQNET_STORE_BLOCK"

Told = Annotated[SecretStr, Field(min_length=1)]


class Keys(BaseModel):
    """What the block holds; the endpoint and the region are the environment's where it has none."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    aws_access_key_id: Told
    aws_secret_access_key: Told
    aws_session_token: Told | None = None
    endpoint_url: Annotated[str, Field(pattern=r"^https?://[^@/?#\s]+/?$")] | None = None
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")] | None = None

    def secrets(self) -> dict[str, str]:
        """Variables that must not be told; None of them is left to be another pair's."""
        said = (self.aws_access_key_id, self.aws_secret_access_key, self.aws_session_token)
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        return {name: one.get_secret_value() for name, one in zip(names, said, strict=True) if one}

    def variables(self) -> dict[str, str]:
        """All variables, as the store's client reads them; of endpoints and regions, the names that count first."""
        place = {"AWS_ENDPOINT_URL_S3": self.endpoint_url, "AWS_REGION": self.region}
        return self.secrets() | {name: value for name, value in place.items() if value}


@contextmanager
def lent() -> Iterator[None]:
    """Put the block's credentials into the environment of this process, and what was there back at the end.

    A block within a block changes nothing, nor does one in a process that was started in one: `VARIABLE` is away
    meanwhile. Flows side by side in threads of one process are not foreseen; Prefect's workers start a process each.

    Raises
    ------
    ConfigError
        When there is no such block, or it holds something else; what it holds is not told.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        yield
        return
    keys = load(name)
    for secret in keys.secrets().values():
        redact.know(secret)
    with _environment(keys.variables(), without=(VARIABLE, "AWS_SESSION_TOKEN")):
        yield


def load(name: str) -> Keys:
    """Read a block; see `lent`."""
    from prefect.blocks.system import Secret

    expected = f"{VARIABLE}: expected the name of a Prefect block of type Secret that holds a JSON object with"
    expected = f"{expected} aws_access_key_id, aws_secret_access_key and, if need be, aws_session_token, endpoint_url"
    try:
        block: Any = Secret.load(name)
        return Keys.model_validate(block.get())
    except ValidationError as error:
        wrong = "; ".join(_wrong(tuple(one["loc"]), one["type"]) for one in error.errors(include_input=False))
        found = f"block '{name}': {wrong}"
    except ValueError:  # Prefect's word for a block that is not there
        found = f"no block '{name}'"
    raise ConfigError(f"{expected}, region; found {found}")  # here, for the errors above carry what they were given


def _wrong(where: tuple[int | str, ...], kind: str) -> str:
    """What is wrong with the block, in words of ours alone: no value is repeated, nor a key that we do not know."""
    if not where:
        return "no JSON object"
    field = str(where[0])
    if field not in Keys.model_fields:
        return "a key that is none of these"
    return f"{field} is missing" if kind == "missing" else f"{field} is not as expected"


@contextmanager
def _environment(values: Mapping[str, str], without: tuple[str, ...]) -> Iterator[None]:
    """Set and remove variables for a while."""
    before = {name: os.environ.get(name) for name in (*values, *without)}
    for name in without:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# ---- workers of a Dask scheduler elsewhere ----

_held = ExitStack()


async def dask_setup(_worker: object) -> None:
    """Lend the credentials to a Dask worker for its life; Prefect waits in a thread, for Dask's has an event loop."""
    await asyncio.to_thread(_held.enter_context, lent())


async def dask_teardown(_worker: object) -> None:
    """Take them back."""
    _held.close()
