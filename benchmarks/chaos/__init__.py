"""What holds while something breaks: one row a fault, each with its goal, on servers of its own.

    python -m benchmarks.chaos --json chaos.json

A row is a function that takes the running stack and a number of seconds, does its harm, puts it back, and says what it
measured. A new one goes into a module of this package and into ``ROWS`` of ``__main__``.
"""
