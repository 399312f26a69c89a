"""Files to frozen documents, or every fault with its place."""
