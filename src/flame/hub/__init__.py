"""The hub: identity, projects, analyses, relay, storage and the log. It relays everything and can read none of it."""

from flame.hub.settings import Settings
from flame.hub.start import serve

__all__ = ["Settings", "serve"]
