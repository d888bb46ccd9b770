from flame.node.gateway.port import Cancelled, RunSide
from flame.node.gateway.server import Gateway

__all__ = ["Cancelled", "Gateway", "RunSide"]
