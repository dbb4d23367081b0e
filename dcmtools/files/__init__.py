"""Things done to files: import and sort."""
