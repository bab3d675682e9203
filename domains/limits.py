"""Lengths that data and requests share: what ingestion takes can be asked for, and the other way round."""

LONGEST_ID = 400
"""Characters of a user's or an item's id."""
LONGEST_ACTION = 60
"""Characters of an action's name."""
LONGEST_TEXT = 1000
"""Characters of a category; a longer one is read as missing."""
