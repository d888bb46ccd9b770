"""The way in, light to import: what a command line needs to know before it starts a hub."""

from __future__ import annotations

from flame.hub.settings import Settings


def serve(settings: Settings) -> None:
    """Run a hub until SIGTERM or SIGINT; see `flame.hub.serving.serve`, which is imported only now."""
    from flame.hub.serving import serve as run

    run(settings)
