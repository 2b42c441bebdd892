"""Heat maps, and whether what they show matters."""
