"""The nouns of Interlock: frozen, without I/O, imported by every other folder and importing none."""
