"""A league of criteria: every entrant chooses layers on the user's own model and data, at the same budget."""
