"""How the embedded model ``demo`` is made: data, VAE, UNet with its text encoders, export, evaluation."""
