"""What must hold before readers see a run, and what becomes of one that is stopped."""
