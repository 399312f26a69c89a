"""The decision layer: it turns documents and health into weights and attempt orders, and does no I/O."""
