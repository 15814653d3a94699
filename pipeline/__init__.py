"""Observations to product: sources, quality control, grid, analysis, cube. No Prefect in here."""
