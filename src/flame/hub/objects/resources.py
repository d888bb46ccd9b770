"""What clients may ask about buckets."""

from __future__ import annotations

from flame.hub import authorisation as rules
from flame.hub.objects.tables import bucket_files, buckets
from flame.hub.resources import Relation, Resource

BUCKET = Resource(
    "bucket", buckets, rules.readable_buckets, filters=frozenset({"id", "name", "realmId", "actorType", "actorId"}),
    sorts=frozenset({"id", "updatedAt", "createdAt"}),
)  # fmt: skip
BUCKET_FILE = Resource(
    "bucket-file", bucket_files, rules.readable_bucket_files,
    filters=frozenset({"id", "name", "path", "directory", "realmId", "actorType", "actorId", "bucketId"}),
    sorts=frozenset({"id", "directory", "name", "updatedAt", "createdAt"}),
    relations={"bucket": Relation("bucket_id", lambda: BUCKET)},
)  # fmt: skip
