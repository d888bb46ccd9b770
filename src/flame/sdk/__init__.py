"""What an analysis imports: ``connect()`` to take part in a run, ``FlameCoreSDK`` for programs written for it."""

from flame.sdk.core import FlameCoreSDK
from flame.sdk.federation import Federation, Message, NoMessage, connect
from flame.sdk.table import Table

__all__ = ["Federation", "FlameCoreSDK", "Message", "NoMessage", "Table", "connect"]
