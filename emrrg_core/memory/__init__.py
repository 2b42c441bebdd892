"""Cases that are remembered: films and reports that a new film is compared with (docs/memory.md)."""
