"""Bytes of the network to requests of the core: one file a protocol, over one HTTP/1.1 transport."""
