"""The screens: one file each. They know Reporter, Film and Draft, and never a tensor."""
