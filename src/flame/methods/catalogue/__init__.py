"""What methods there are: names, typed parameters, descriptions, exactness. Data only, importable anywhere."""

from flame.methods.catalogue.badges import Badge, badges_of
from flame.methods.catalogue.entries import CATALOGUE, Entry, Parameter

__all__ = ["CATALOGUE", "Badge", "Entry", "Parameter", "badges_of"]
