from flame.node.local.port import NodeService
from flame.node.local.stewards import Account, Accounts, write_local_token

__all__ = ["Account", "Accounts", "NodeService", "write_local_token"]
