"""What draws: one protocol (`base`), behind it diffusers' modules, compiled graphs (`neuron`), or a fake."""
