"""Environments, and sandboxes that run programs in them."""

from flame.runtime.backends import choose_backend
from flame.runtime.environments import (
    HostEnvironment,
    check,
    load_host_environment,
    register_host_environment,
)
from flame.runtime.sandbox import (
    CODE,
    GATEWAY,
    Broken,
    Ended,
    EndReason,
    Isolation,
    Level,
    Limits,
    Promise,
    Running,
    RunSpec,
    Sandbox,
)

__all__ = [
    "CODE",
    "GATEWAY",
    "Broken",
    "EndReason",
    "Ended",
    "HostEnvironment",
    "Isolation",
    "Level",
    "Limits",
    "Promise",
    "RunSpec",
    "Running",
    "Sandbox",
    "check",
    "choose_backend",
    "load_host_environment",
    "register_host_environment",
]
