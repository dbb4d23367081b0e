"""The vocabulary: frozen values that every other floor speaks in, and nothing that does I/O."""
