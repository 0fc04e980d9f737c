"""How an older database becomes this program's; run by `serve` when it starts."""
