"""The HTTP service in front: pool for small models, coordinator for large ones."""
