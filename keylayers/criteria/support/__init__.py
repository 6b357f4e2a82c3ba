"""What several criteria share; nothing here scores layers by itself."""
