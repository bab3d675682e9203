"""The servers of one machine: the plan, what runs, and the supervisor."""
