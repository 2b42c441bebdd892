"""Past one film at a time: a folder of films (batch), a cluster of machines (serve)."""
