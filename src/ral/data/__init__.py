"""Records: reading them, and turning them into prompts."""
