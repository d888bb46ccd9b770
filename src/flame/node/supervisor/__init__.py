"""What decides whether something runs here, and brings it from order to end."""

from flame.node.supervisor.supervisor import Supervisor

__all__ = ["Supervisor"]
