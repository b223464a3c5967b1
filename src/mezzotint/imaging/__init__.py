"""Pictures as files: formats and the receipt they carry. Knows nothing of models, engines or HTTP."""
