"""Which servers run, and their supervisor."""
