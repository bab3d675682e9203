"""Speed comparisons and reproductions of the papers' tables; each prints one table and writes JSON."""
