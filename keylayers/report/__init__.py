"""One static HTML page per run folder, and its plots as files."""
