"""Scripts that made what the package carries; none of them is in the wheel."""
