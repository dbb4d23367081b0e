"""Things at rest: one file format a module."""
