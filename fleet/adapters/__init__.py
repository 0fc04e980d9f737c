"""Everything of the registry that touches the world: database, broker, disk, HTTP client."""
