"""Objects in a bucket of S3, or of what speaks like it. Bodies on their way in are spooled on the local disk."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

from flame.model.errors import Conflict, Invalid, NotFound, Unavailable
from flame.storage.failpoints import reached
from flame.storage.objects import AFTER_KEEP, AFTER_SPOOL, CHUNK, Kept, Spooled, _Spooling, check_key

if TYPE_CHECKING:
    from io import FileIO

PART: Final = 8 << 20
_AT_ONCE: Final = 4
"""Parts of one upload that are in memory: with `PART`, 32 MiB."""
_PARAMETERS: Final = {"endpoint", "region", "path-style"}


class S3Objects(_Spooling):
    """Objects below a prefix of one bucket.

    url: ``s3://BUCKET/PREFIX?endpoint=https://…&region=…&path-style=true``. secrets: ``access_key_id`` and
    ``secret_access_key``; without them obstore looks where AWS' tools look (environment, instance).
    """

    def __init__(
        self,
        url: str,
        spool: Path,
        *,
        bytes_max: int | None = None,
        secrets: Mapping[str, str] | None = None,
        retry: bool = True,
    ) -> None:
        self._store = _store(url, secrets or {}, retry)
        super().__init__(spool, bytes_max)
        if bytes_max is not None:
            self.usage.used = sum(one.size for one in self.kept())

    async def keep(self, spooled: Spooled, key: str) -> None:
        await asyncio.to_thread(self.keep_blocking, spooled, key)

    def keep_blocking(self, spooled: Spooled, key: str, *, same: bool = False) -> None:
        import obstore

        reached(AFTER_SPOOL)
        there = self._size(key)
        if there is not None and not same:
            raise Conflict("An object of this name is there already.")
        if there == spooled.size:
            self._stays(spooled)
        else:
            with _told(), spooled.path.open("rb") as file:
                obstore.put(self._store, check_key(key), file, chunk_size=PART, max_concurrency=_AT_ONCE)
            spooled.path.unlink()
        reached(AFTER_KEEP)

    async def stream(self, key: str) -> AsyncIterator[bytes]:
        with _told():
            answer = await self._store.get_async(check_key(key))
        async for piece in answer.stream(min_chunk_size=CHUNK):
            yield bytes(piece)

    def open(self, key: str) -> FileIO:
        """A copy on the local disk, without a name: whoever sends from a file finds one."""
        import obstore

        with _told():
            answer = obstore.get(self._store, check_key(key))
        file: FileIO = tempfile.TemporaryFile(dir=self._spool, buffering=0)  # noqa: SIM115
        try:
            with _told():
                for piece in answer.stream(min_chunk_size=CHUNK):
                    view = memoryview(bytes(piece))
                    while view:
                        view = view[file.write(view) or 0 :]
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def kept(self) -> Iterator[Kept]:
        import obstore

        with _told():
            for page in obstore.list(self._store):
                for one in page:
                    yield Kept(one["path"], one["size"], one["last_modified"].timestamp())

    async def remove(self, key: str) -> None:
        await asyncio.to_thread(self.remove_blocking, key)

    def remove_blocking(self, key: str) -> None:
        import obstore

        size = self._size(key)
        if size is not None:
            with _told():
                obstore.delete(self._store, key)
            self.usage.give_back(size)

    def _size(self, key: str) -> int | None:
        import obstore

        try:
            with _told():
                return int(obstore.head(self._store, check_key(key))["size"])
        except NotFound:
            return None


def read_secrets(path: Path | None) -> dict[str, str]:
    """A TOML file with ``access_key_id`` and ``secret_access_key``. Raises Invalid, repeating nothing of it."""
    if path is None:
        return {}
    import tomllib

    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Invalid(f"The credentials file {path} cannot be read: {type(error).__name__}.") from None
    names = {"access_key_id", "secret_access_key"}
    if found.keys() != names or not all(isinstance(value, str) for value in found.values()):
        raise Invalid(f"The credentials file {path} needs access_key_id and secret_access_key, and nothing else.")
    return found


def _store(url: str, secrets: Mapping[str, str], retry: bool) -> Any:
    from obstore.store import S3Store

    place = urlsplit(url)
    given = {name: values[-1] for name, values in parse_qs(place.query).items()}
    if place.scheme != "s3" or not place.netloc or place.username or given.keys() - _PARAMETERS:
        raise Invalid(
            "The objects' URL cannot be read.",
            next_step="Write s3://BUCKET/PREFIX, with ?endpoint=…&region=…&path-style=true where needed, and no secret.",
        )
    settings: dict[str, Any] = dict(secrets)
    if "endpoint" in given:
        settings["endpoint"] = given["endpoint"]
    if "region" in given:
        settings["region"] = given["region"]
    settings["virtual_hosted_style_request"] = given.get("path-style") != "true"
    plain = given.get("endpoint", "").startswith("http://")
    prefix = place.path.strip("/") or None
    if not retry:
        settings["retry_config"] = {"max_retries": 0}
    return S3Store(place.netloc, prefix=prefix, client_options={"allow_http": plain}, **settings)


@contextmanager
def _told() -> Iterator[None]:
    """The store's errors in our words; its own text may hold addresses and is kept as the cause."""
    from obstore.exceptions import BaseError, NotFoundError

    try:
        yield
    except (NotFoundError, FileNotFoundError):
        raise NotFound("The file was not found.") from None
    except BaseError as error:
        raise Unavailable(
            "The hub's object store does not answer as it should.", next_step="Repeat the request; tell the operator."
        ) from error
