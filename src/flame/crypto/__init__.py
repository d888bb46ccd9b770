"""Identities, signatures, sealed envelopes and the transparency log's arithmetic. Pure: no network, no database.

Import what you need from its module: `canonical`, `keys`, `signatures`, `envelope`, `counters`, `announce`,
`translog`, `atrest`, `keyfile`.
"""
