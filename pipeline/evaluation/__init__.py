"""How good estimates and forecasts are where no method saw the observation."""
