"""What clients may ask about master images and registries."""

from __future__ import annotations

from flame.hub import authorisation as rules
from flame.hub.registry.tables import master_image_groups, master_images, registries, registry_projects
from flame.hub.resources import Relation, Resource

_NAMES = frozenset({"id", "name", "path", "virtualPath"})
_SORTS = frozenset({"id", "name", "path", "virtualPath", "createdAt", "updatedAt"})

MASTER_IMAGE_GROUP = Resource(
    "master-image-group", master_image_groups, rules.everyone, filters=_NAMES, sorts=_SORTS, default_sort="path"
)
MASTER_IMAGE = Resource(
    "master-image", master_images, rules.everyone, filters=_NAMES | {"groupVirtualPath"}, sorts=_SORTS,
    default_sort="path", json=frozenset({"commandArguments"}),
)  # fmt: skip

REGISTRY = Resource(
    "registry", registries, rules.everyone, filters=frozenset({"id", "name"}),
    sorts=frozenset({"id", "updatedAt", "createdAt"}), extra=frozenset({"accountSecret"}),
    guarded={"accountSecret": rules.manages_registries},
)  # fmt: skip
REGISTRY_PROJECT = Resource(
    "registry-project", registry_projects, rules.readable_registry_projects,
    filters=frozenset({"id", "name", "registryId", "externalName", "type"}),
    sorts=frozenset({"id", "updatedAt", "createdAt"}), extra=frozenset({"accountSecret"}),
    guarded={"accountSecret": rules.manages_registry_projects},
    relations={"registry": Relation("registry_id", lambda: REGISTRY)},
)  # fmt: skip
