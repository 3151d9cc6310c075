"""Models from where they are kept to where they are trained: loading and sharding."""
