"""The units, the installer and what systemd makes of them."""
