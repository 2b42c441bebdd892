"""Cases and classes."""
