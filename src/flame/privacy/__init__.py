from flame.privacy.release import Caps, ReleaseBook, Used, check_summary
from flame.privacy.sums import ClearSum

__all__ = ["Caps", "ClearSum", "ReleaseBook", "Used", "check_summary"]
