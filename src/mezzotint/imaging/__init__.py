"""Files and the receipt they carry, uploads, pictures brought to size. Knows nothing of engines or HTTP."""
