"""What draws: one protocol (`base`), and a module for each kind of device behind it."""
