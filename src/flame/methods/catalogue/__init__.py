"""What methods there are: names, typed parameters, descriptions. Data only, importable anywhere."""

from flame.methods.catalogue.entries import CATALOGUE, Entry, Parameter

__all__ = ["CATALOGUE", "Entry", "Parameter"]
