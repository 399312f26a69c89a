"""The execution layer: attempts, upstream connections, relaying."""
