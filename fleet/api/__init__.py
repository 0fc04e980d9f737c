"""The registry over HTTP, for the command line, the dashboard and other programs."""
