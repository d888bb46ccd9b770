"""The researcher's side of the platform: keys, submission with a signature, start orders, watching, opening results.

Everything here speaks to a hub over HTTP and runs on the researcher's own machine. Neither hub nor node is imported.
"""
