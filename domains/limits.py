"""Lengths that data and requests share: what ingestion takes can be asked for, and the other way round."""

LONGEST_ID = 400
"""Characters of a user's or an item's id."""
LONGEST_ACTION = 60
"""Characters of an action's name."""
LONGEST_TEXT = 1000
"""Characters of a category; a longer one is read as missing."""
SPACES = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
"""What is cut from both ends of a text, in files and in requests alike: what ``str.strip`` cuts."""
