"""Run folders: written, read, packed, listed and compared."""
