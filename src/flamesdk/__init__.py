"""The name under which programs written for FLAME's own SDK import it: ``from flamesdk import FlameCoreSDK``."""

from flame.sdk.core import FlameCoreSDK

__all__ = ["FlameCoreSDK"]
