"""The admin API: what one may ask of a node and tell it, over HTTP."""
