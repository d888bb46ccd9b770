"""What a build is until images come: the program as one OCI layer, paired with the environment's digest.

Nothing is executed here, and no registry is needed. The layer is the same bytes wherever it is made: files in order of
their paths, below ``program/``, with no times, owners or extra modes. The image manifest names the layer and, as
annotations, the environment and FLAME's own manifest; its digest is the analysis' ``buildHash``.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
PROGRAM_TYPE: Final = "application/vnd.flame.program.v1"
FOLDER: Final = "program/"
_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)
_EMPTY: Final = b"{}"


class File(Protocol):
    """A file of a program, as the database has it."""

    path: str
    size: int
    sha256: str
    hash: str


Opened = Callable[[str], AsyncIterator[bytes]]
"""The bytes of a stored object, by its `hash`."""


@dataclass(frozen=True, slots=True)
class Layer:
    digest: str
    """Hex."""
    size: int
    damaged: str | None = None
    """The first file whose bytes are not those that were frozen."""


def header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o644, 0
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


async def layer_bytes(
    files: Sequence[File], opened: Opened, check: Callable[[File, str], None]
) -> AsyncIterator[bytes]:
    """The layer, piece by piece. `check` is told each file's SHA-256 when it has passed."""
    for file in files:
        yield header(FOLDER + file.path, file.size)
        hashed = hashlib.sha256()
        async for piece in opened(file.hash):
            hashed.update(piece)
            yield piece
        check(file, hashed.hexdigest())
        if rest := file.size % _BLOCK:
            yield bytes(_BLOCK - rest)
    yield _END


async def measure(files: Sequence[File], opened: Opened) -> Layer:
    """Digest and size of the layer, and whether each file is still what was frozen."""
    damaged: list[str] = []

    def check(file: File, digest: str) -> None:
        if digest != file.sha256:
            damaged.append(file.path)

    hashed, size = hashlib.sha256(), 0
    async for piece in layer_bytes(files, opened, check):
        hashed.update(piece)
        size += len(piece)
    return Layer(hashed.hexdigest(), size, damaged[0] if damaged else None)


def image_manifest(layer: Layer, environment: str, environment_digest: str, manifest: str) -> bytes:
    """The OCI manifest that pairs a layer with its environment; the digest of these bytes names the build."""
    annotations = {
        "flame.environment": environment,
        "flame.environment.digest": environment_digest,
        "flame.manifest": manifest,
    }
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": PROGRAM_TYPE,
        "config": _descriptor(EMPTY_TYPE, _EMPTY),
        "layers": [{"mediaType": LAYER_TYPE, "digest": f"sha256:{layer.digest}", "size": layer.size}],
        "annotations": {name: value for name, value in annotations.items() if value},
    }
    return _written(document)


async def layout(manifest: bytes, layer: Layer, files: Sequence[File], opened: Opened) -> AsyncIterator[bytes]:
    """An OCI image layout as a tar archive: what ``skopeo copy oci-archive:…`` and the like read."""
    index = {"schemaVersion": 2, "manifests": [_descriptor(MANIFEST_TYPE, manifest)]}
    small = {"oci-layout": _written({"imageLayoutVersion": "1.0.0"}), "index.json": _written(index)}
    small |= {_blob(data): data for data in (manifest, _EMPTY)}
    for name, data in small.items():
        yield header(name, len(data)) + data + bytes(-len(data) % _BLOCK)
    yield header(f"blobs/sha256/{layer.digest}", layer.size)
    async for piece in layer_bytes(files, opened, lambda file, digest: None):
        yield piece
    yield bytes(-layer.size % _BLOCK) + _END


def _descriptor(kind: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}


def _blob(data: bytes) -> str:
    return f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"


def _written(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
