"""Pictures and tables of values."""
