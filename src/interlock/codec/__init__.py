"""Bytes to tensors and back for each protocol's messages; used by the wire, the client and remote models."""
