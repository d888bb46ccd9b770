"""``python -m flame.hub [DIR] [PORT]``: a hub with the settings of the environment."""

from __future__ import annotations

import sys
from pathlib import Path

from flame.hub import Settings, serve

if __name__ == "__main__":
    given = sys.argv[1:]
    directory, port = Path(given[0]) if given else None, int(given[1]) if len(given) > 1 else None
    serve(Settings.from_env(dir=directory, port=port))
