"""What a training step costs, against its peers: run a module of this package from the repository's root."""
