"""Analyses: their life cycle, manifest, approvals, start orders and logs."""
