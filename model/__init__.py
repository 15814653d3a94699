"""AQ-Net and its baselines. Sees arrays and tensors, never xarray, never Prefect."""
