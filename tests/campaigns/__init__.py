"""Long campaigns against kills and damage; see README.md."""
