"""Models: loading, adapters and sharding."""
