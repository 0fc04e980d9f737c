"""From a bundle's bytes to a release on the broker."""
