"""Training and evaluation: one file per thing you run, over one loop."""
