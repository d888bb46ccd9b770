from flame.node.egress.guard import WITHHELD, Guard, Verdict, decode_summary
from flame.node.egress.policy import Policy, read_policy
from flame.node.egress.text import CodeText, read_code

__all__ = ["WITHHELD", "CodeText", "Guard", "Policy", "Verdict", "decode_summary", "read_code", "read_policy"]
