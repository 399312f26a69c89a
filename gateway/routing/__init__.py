"""The decision layer: documents and health to weights and attempt orders. It does no I/O."""
