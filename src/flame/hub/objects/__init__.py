"""Buckets and their files."""
