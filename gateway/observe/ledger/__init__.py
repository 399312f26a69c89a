"""One row per request, in SQLite or PostgreSQL; it contains neither prompt nor answer."""
