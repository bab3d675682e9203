"""The registry: which domains, versions, runs and answers exist, in SQLite or PostgreSQL."""
