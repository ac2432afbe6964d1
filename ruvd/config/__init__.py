"""The settings, and how they are read from flags, variables and the settings file."""
