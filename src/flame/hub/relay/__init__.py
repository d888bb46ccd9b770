"""The relay: sealed envelopes from node to node, stored and forwarded, never read."""
