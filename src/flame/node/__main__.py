"""``python -m flame.node DIR``: serve the node in a directory.

With ``--enrol``: first read one line of JSON {"hub", "token"} from standard input, enrol, write one line of JSON with the
fingerprint to standard output, and serve when a second line comes: so a supervisor that plays the administrator can
confirm the fingerprint meanwhile, and no token stands in a command line or an environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flame.model.errors import FlameError


def main(arguments: list[str]) -> int:
    directory = Path(arguments[0])
    try:
        if "--enrol" in arguments[1:]:
            _enrol(directory)
        from flame.node.service import serve

        serve(directory)
    except FlameError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _enrol(directory: Path) -> None:
    import flame.node.service  # noqa: F401 - while the hub starts, this process imports what it will need
    from flame.node.enrolment import init

    order = json.loads(sys.stdin.readline())
    print(json.dumps(init(directory, order["hub"], order["token"])), flush=True)  # noqa: T201
    sys.stdin.readline()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
