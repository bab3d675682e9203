"""``python -m domains.registry.migrations "what changes"``: writes the next revision file."""

import sys

from domains.registry.database import Database
from domains.registry.migrations import revise, upgrade

database = Database("sqlite://")
with database.change_tables() as connection:
    upgrade(connection)
    revise(connection, " ".join(sys.argv[1:]) or sys.exit(__doc__))
