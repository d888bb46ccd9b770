"""Nodes and their enrolment."""
