"""The node's next key: made here, named by the present one, in use once the hub has taken the statement.

Everything is on disk before the hub is told; a node that dies in between finds out at its next start how far it came.
"""

from __future__ import annotations

import os

import msgspec

from flame.crypto.keys import IdentityKey
from flame.model.errors import NotAuthenticated, Unavailable
from flame.node.context import Context, log, now
from flame.protocol.documents import Rotation
from flame.protocol.freeze import format_time
from flame.protocol.roster import Standing, Statement, sign_statement

RETRY_SECONDS = 2.0


async def rotate(context: Context, own: Standing) -> None:
    """Raises what the hub refuses with; then the present key stays in use."""
    layout = context.layout
    if not layout.next_identity.exists():
        IdentityKey.generate().save(layout.next_identity)
    following = IdentityKey.load(layout.next_identity)
    said = Rotation(
        member=own.member,
        kind="node",
        number=len(own.keys),
        previous=context.fingerprint,
        signer=context.fingerprint,
        next_key=following.public.hex_pem,
        time=format_time(now()),
    )
    statement = sign_statement(context.identity, said)
    await _remember(context, own.member, statement)
    await context.link.request("POST", "/core/key-statements", msgspec.to_builtins(statement))
    _put_in_use(context, following)


async def _remember(context: Context, member: str, statement: Statement) -> None:
    """The first key names the node from now on; the statement is what its own later checks begin with."""
    path = context.layout.first_key
    if not path.exists():
        temporary = path.with_suffix(".new")
        with temporary.open("w") as file:
            file.write(context.identity.public.hex_pem)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    await context.journal.execute(
        "INSERT OR IGNORE INTO key_statements VALUES(?, ?, ?)", member, statement.document, statement.signature
    )


def _put_in_use(context: Context, following: IdentityKey) -> None:
    context.layout.next_identity.replace(context.layout.identity)
    context.identity = following
    context.link.use(following)
    log.info("the key %s is in use", following.public.fingerprint.hex()[:16])


async def settle(context: Context) -> None:
    """After a start in the middle of a rotation: whichever key the hub knows is the one in use."""
    import asyncio

    while context.layout.next_identity.exists() and not context.link.online.is_set():
        following = IdentityKey.load(context.layout.next_identity)
        try:
            await context.link.try_key(following)
            _put_in_use(context, following)
        except NotAuthenticated:
            log.info("a rotation was not finished; `flame node keys rotate` takes it up again")
            break
        except Unavailable:
            await asyncio.sleep(RETRY_SECONDS)
    await asyncio.Event().wait()  # the node's other work goes on; this has no end of its own
