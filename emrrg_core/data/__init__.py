"""Film sets to learn from and be judged on."""
