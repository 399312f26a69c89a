"""Configuration files parsed into frozen documents, or into every fault with its position."""
