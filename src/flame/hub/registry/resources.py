"""What clients may ask about master images."""

from __future__ import annotations

from flame.hub import authorisation as rules
from flame.hub.registry.tables import master_image_groups, master_images
from flame.hub.resources import Resource

_NAMES = frozenset({"id", "name", "path", "virtualPath"})
_SORTS = frozenset({"id", "name", "path", "virtualPath", "createdAt", "updatedAt"})

MASTER_IMAGE_GROUP = Resource(
    "master-image-group", master_image_groups, rules.everyone, filters=_NAMES, sorts=_SORTS, default_sort="path"
)
MASTER_IMAGE = Resource(
    "master-image", master_images, rules.everyone, filters=_NAMES | {"groupVirtualPath"}, sorts=_SORTS,
    default_sort="path", json=frozenset({"commandArguments"}),
)  # fmt: skip
