"""Words: one file a subcommand, and one frame that all of them stand in."""
