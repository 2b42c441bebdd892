"""Films: reading them, refusing what is none, text that is burned in, drawn findings."""
