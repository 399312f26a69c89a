"""One row a request, in SQLite or PostgreSQL; no prompt and no answer is in it."""
