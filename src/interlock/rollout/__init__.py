"""How a release goes forward: a pure plan over a snapshot, and the thin loop that carries it out."""
