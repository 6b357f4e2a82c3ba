"""Gates on a user's own model before it is trusted, what each command can do with it, and what that costs."""
